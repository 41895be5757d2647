"""Text from a decoder, token by token: greedy or sampled, with a cache of keys and values.

Prompts of a batch are padded on the left, so that all of them end at the same place. The
layers are taken apart once, before the first token: a stack of them would be copied for
every token.
"""

import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcl.errors import (
    as_numbers,
    check_key,
    check_kind,
    check_number,
    check_size,
    require,
    shown,
)
from jaxcl.models.decoder import DecoderConfig, block, logits
from jaxcl.models.layers import attend, rms_norm, unstacked
from jaxcl.models.prompts import (
    Tokens,
    check_params,
    checked_prompts,
    padded_left,
    warn_beyond,
)
from jaxcl.progress import progress
from jaxcl.typing import Key, Params

_CHUNK = 16  # tokens between two looks at which rows have ended


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: draw from so many most likely tokens; from all if None.
      top_p: draw from the fewest tokens that have this probability together.
      repetition_penalty: divides positive logits of tokens that came before, in the
        prompt too, and multiplies negative ones (Keskar et al. 2019, arXiv:1909.05858).
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0


GREEDY = Sampling()


class _Writing(NamedTuple):
    """A batch in progress; the cache and ``seen`` have room for all tokens."""

    cache: Any  # for each layer keys and values [b, m, kv, s]
    token: Int[Array, " b"]  # the last one, not in the cache yet
    place: Int[Array, ""]  # where it goes
    number: Int[Array, ""]  # of new tokens so far
    done: Bool[Array, " b"]
    seen: Bool[Array, "b v"]  # tokens so far, for the penalty of repetitions


def generate(
    key: Key,
    config: DecoderConfig,
    params: Params,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    stop: Iterable[int] = (),
    sampling: Sampling = GREEDY,
    batch_size: int = 8,
    quiet: bool | None = None,
) -> list[Int[np.ndarray, " n"]]:
    """Go on from prompts until a stop token, or for ``max_new_tokens``.

    What a prompt gives depends on its place in the list and the key, not on its neighbours
    or the size of the batch, to rounding.

    Args:
      key: for sampling.
      config: of the decoder.
      params: with an adapter or without one.
      prompts: token numbers of each, at least one.
      max_new_tokens: at most, for each.
      stop: a row ends with any of these tokens, such as that of the end of a text.
      sampling: greedy by default.
      batch_size: prompts at a time, those of similar length together.
      quiet: no progress; by default it is shown on a terminal.

    Returns:
      The new tokens of each prompt, without the stop token.

    Raises:
      ValueError: for a prompt that is empty, is longer than the model's context, or has a
        token that the model does not know; for the parameters of another model.

    Cost: one pass over the prompts, then one step a token. Memory: a copy of the layers,
    and ``2 b m`` times the size of all key heads for ``m`` tokens of ``b`` rows.
    """
    sampling = _checked_sampling(sampling)
    check_size("generate", max_new_tokens=max_new_tokens, batch_size=batch_size)
    check_params("generate", config, params)
    asked = checked_prompts("generate", config, prompts)
    longest = max(map(len, asked), default=0) + max_new_tokens
    warn_beyond("generate", config, longest)
    key = check_key("generate", key)
    stop = jnp.asarray(_stop_tokens(stop, config.vocab_size), jnp.int32)
    apart = _apart(params, config.num_hidden_layers)
    order = np.argsort([len(prompt) for prompt in asked], kind="stable")
    found: list[Any] = [None] * len(asked)
    quiet = not sys.stderr.isatty() if quiet is None else quiet
    total = len(asked) * max_new_tokens
    with nullcontext() if quiet else progress(total, "tokens") as advance:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            # The last batch is filled up, so that its program is the one of the others.
            rows = np.resize(chosen, min(batch_size, len(order)))
            held = [asked[row] for row in rows]
            keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(rows))
            new = _batch(config, apart, held, keys, max_new_tokens, stop, sampling)
            done = 0
            for tokens in new:
                if advance:
                    advance((tokens.shape[1] - done) * len(chosen))
                done = tokens.shape[1]
            for row, line in zip(chosen, tokens, strict=False):
                ends = np.flatnonzero(np.isin(line, stop))
                found[row] = line[: ends[0]] if ends.size else line
            if advance:
                advance((max_new_tokens - done) * len(chosen))
    return found


def _checked_sampling(sampling: Sampling) -> Sampling:
    """The same with numbers of Python, which programs are chosen by."""
    check_kind("generate", Sampling, sampling=sampling)
    temperature, top_k, top_p, penalty = sampling
    check_size("generate", optional=True, top_k=top_k)
    check_number("generate", temperature=temperature)
    check_number("generate", above=True, repetition_penalty=penalty)
    check_number("generate", above=True, most=1.0, top_p=top_p)
    return Sampling(float(temperature), top_k, float(top_p), float(penalty))


def _stop_tokens(stop: Iterable[int], vocab_size: int) -> list[int]:
    """The tokens that end a text, each once."""
    many = isinstance(stop, Iterable) and not isinstance(stop, str)
    tokens = as_numbers("generate", "stop", list(stop) if many else stop)
    fits = tokens.shape == (0,) or (tokens.ndim == 1 and tokens.dtype.kind in "iu")
    fits = fits and bool(np.all((tokens >= 0) & (tokens < vocab_size)))
    wanted = f"stop must be a list of tokens from 0 to {vocab_size - 1}"
    remedy = "give such as [tokenizer.eos_token_id]"
    require(fits, "generate", f"{wanted}, got {shown(stop)}; {remedy}")
    return sorted({*tokens.astype(int).tolist()})


@partial(jax.jit, static_argnames="depth")
def _apart(params: Params, depth: int) -> Params:
    """The parameters with a list of layers."""
    return {**params, "layers": list(unstacked(params["layers"], depth))}


def _batch(config, params, prompts, keys, max_new_tokens, stop, sampling):
    """Yield the tokens ``[b, k]`` so far, chunk by chunk."""
    tokens, real = padded_left(prompts)
    width = tokens.shape[1]
    room = width + -(-max_new_tokens // _CHUNK) * _CHUNK
    now = _begin(config, params, tokens, real, keys, stop, room, sampling)
    real = jnp.pad(real, ((0, 0), (0, room - width)), constant_values=1)
    new = [np.asarray(now.token)[:, None]]
    yield new[0]
    while sum(part.shape[1] for part in new) < max_new_tokens and not now.done.all():
        now, part = _go_on(config, params, now, real, keys, stop, sampling)
        new.append(np.asarray(part))
        yield np.concatenate(new, axis=1)[:, :max_new_tokens]


@partial(jax.jit, static_argnames=("config", "room", "sampling"))
def _begin(config, params, tokens, real, keys, stop, room, sampling) -> _Writing:
    """Read the prompts, and choose the first token of each."""
    b, width = tokens.shape
    _, kv, size = config.heads
    blank = jnp.zeros((b, room, kv, size), params["embedding"].dtype)
    cache = [(blank, blank) for _ in params["layers"]]
    known = jnp.pad(real, ((0, 0), (0, room - width)))
    last, cache = _extend(config, params, cache, tokens, 0, known)
    hot = jnp.zeros((b, config.vocab_size), jnp.int32)
    seen = hot.at[jnp.arange(b)[:, None], tokens].add(real) > 0
    token = _choose(last, seen, keys, 0, sampling)
    seen = seen.at[jnp.arange(b), token].set(True)
    place, number, done = jnp.int32(width), jnp.int32(1), jnp.isin(token, stop)
    return _Writing(cache, token, place, number, done, seen)


@partial(jax.jit, static_argnames=("config", "sampling"), donate_argnames="now")
def _go_on(config, params, now, real, keys, stop, sampling):
    """The next tokens of all rows; those of rows that have ended mean nothing."""

    def step(now, _):
        tokens, place = now.token[:, None], now.place
        last, cache = _extend(config, params, now.cache, tokens, place, real)
        token = _choose(last, now.seen, keys, now.number, sampling)
        done = now.done | jnp.isin(token, stop)
        seen = now.seen.at[jnp.arange(token.size), token].set(True)
        return _Writing(cache, token, place + 1, now.number + 1, done, seen), token

    now, tokens = jax.lax.scan(step, now, length=_CHUNK)
    return now, tokens.T


def _extend(
    config: DecoderConfig,
    params: Params,
    cache: Any,
    tokens: Int[Array, "b n"],
    place: Any,
    real: Int[Array, "b m"],
) -> tuple[Float[Array, "b v"], Any]:
    """Logits after the last of more tokens, which begin at ``place``, and the cache."""
    (b, n), m = tokens.shape, real.shape[1]
    # Padding on the left shifts all positions of a row, which rotations do not notice.
    turns = [
        jax.lax.dynamic_slice_in_dim(jnp.asarray(turn), place, n)
        for turn in config.rope.turns(m, config.heads[2])
    ]
    own, at = place + jnp.arange(n)[:, None], jnp.arange(m)
    allowed = at <= own
    if config.sliding_window is not None:
        allowed &= at > own - config.sliding_window
    allowed = allowed[None, None] & (real > 0)[:, None, None, :]

    def attention(held, q, k, v):
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=1)
        keys, values = (put(old, new) for old, new in zip(held, (k, v), strict=True))
        return attend(q, keys, values, mask=allowed), (keys, values)

    h = params["embedding"][tokens].reshape(b * n, -1)
    new = []
    for layer, held in zip(params["layers"], cache, strict=True):
        mixed = partial(attention, held)
        h, held = block(config, layer, h, turns, mixed, shape=(b, n))
        new.append(held)
    last = h.reshape(b, n, -1)[:, -1]
    return logits(params, rms_norm(params["norm"], last, config.rms_norm_eps)), new


def _choose(scores, seen, keys, number, sampling: Sampling) -> Int[Array, " b"]:
    """The next token of each row."""
    if sampling.repetition_penalty != 1.0:
        factor = sampling.repetition_penalty
        less = jnp.where(scores > 0, scores / factor, scores * factor)
        scores = jnp.where(seen, less, scores)
    if sampling.temperature == 0.0:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    # Differences to the highest score: near 0 a quotient of scores would overflow.
    scores = scores - jnp.max(scores, axis=-1, keepdims=True)
    scores = scores / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        least = jax.lax.top_k(scores, sampling.top_k)[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if sampling.top_p < 1.0:
        order = jnp.argsort(-scores, axis=-1)
        ranked = jnp.take_along_axis(scores, order, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1)
        # The first token whose own probability completes top_p is kept.
        count = 1 + jnp.sum(before < sampling.top_p, axis=-1, keepdims=True)
        # By place, not by score: of equal ones only as many as are needed.
        scores = jnp.where(jnp.argsort(order, axis=-1) < count, scores, -jnp.inf)
    draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, number), row)
    return jax.vmap(draw)(keys, scores).astype(jnp.int32)
