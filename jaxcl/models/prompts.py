"""Prompts of a decoder: what they must be, and batches of them."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxcl.errors import as_numbers, check_kind, require, shown, warn
from jaxcl.models.decoder import DecoderConfig
from jaxcl.typing import Params

#: Numbers of tokens.
Tokens = Sequence[int] | np.ndarray


def check_params(who: str, config: DecoderConfig, params: Params) -> None:
    """Refuse the parameters of another model, as far as shapes tell."""
    check_kind(who, DecoderConfig, config=config)
    lacks = "params lack the embedding and layers of a decoder; with an adapter apart"
    known = isinstance(params, Mapping) and {"embedding", "layers"} <= set(params)
    require(known, who, f"{lacks}, give combine(trainable, frozen)")
    kernel = jnp.shape(params["layers"]["attention"]["q_proj"]["kernel"])
    came = jnp.shape(params["embedding"]), kernel[0]
    fits = came == ((config.vocab_size, config.hidden_size), config.num_hidden_layers)
    wanted = f"params must be those of config, got an embedding {list(came[0])}"
    require(fits, who, f"{wanted} and {came[1]} layers; give both of one model")


def checked_prompts(
    who: str, config: DecoderConfig, prompts: Sequence[Tokens]
) -> list[Int[np.ndarray, " n"]]:
    """The prompts as arrays; refuse what the model cannot go on from."""
    held, context = [], config.max_position_embeddings
    for number, prompt in enumerate(prompts):
        tokens = checked_tokens(who, config, f"prompt {number}", prompt)
        if context is not None and tokens.size > context:
            wanted = f"at most {context} tokens (max_position_embeddings)"
            came = f"prompt {number} must have {wanted}, got {tokens.size}; cut it"
            require(False, who, came)
        held.append(tokens)
    return held


def checked_tokens(
    who: str, config: DecoderConfig, name: str, given: Tokens
) -> Int[np.ndarray, " n"]:
    """Numbers of tokens as an array; refuse what the model does not know."""
    tokens = as_numbers(who, name, given)
    if tokens.shape == (0,):
        require(False, who, f"{name} is empty; begin it with a token")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        came = f"numbers of tokens, got {shown(given)}"
        require(False, who, f"{name} must be a list of {came}")
    least, most = tokens.min(), tokens.max()
    if least < 0 or most >= config.vocab_size:
        wanted = f"tokens from 0 to {config.vocab_size - 1}, got {least} to {most}"
        require(False, who, f"{name} must have {wanted}; use the model's tokenizer")
    return tokens.astype(np.int32)


def warn_beyond(who: str, config: DecoderConfig, longest: int) -> None:
    """Say that texts of ``longest`` tokens are beyond the context."""
    context = config.max_position_embeddings
    if context is not None and longest > context:
        beyond = f"texts of up to {longest} tokens, the model was trained for {context}"
        warn(f"{who}: {beyond}; later tokens may make no sense.")


def bucket(length: int) -> int:
    """A few widths, so that a few programs serve all lengths."""
    step = max(16, 2 ** (length.bit_length() - 2))
    return -(-length // step) * step


def padded_left(
    prompts: Sequence[np.ndarray],
) -> tuple[Int[np.ndarray, "b w"], Int[np.ndarray, "b w"]]:
    """Tokens of one of a few widths, and 1 for the real ones.

    Padding is on the left, so that all prompts end at the same place.
    """
    width = bucket(max(map(len, prompts)))
    tokens, real = (np.zeros((len(prompts), width), np.int32) for _ in range(2))
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        real[row, width - len(prompt) :] = 1
    return tokens, real
