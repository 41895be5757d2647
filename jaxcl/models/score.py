"""Log-likelihoods of several answers to one prompt, which is computed once.

The answers to a prompt are packed side by side, in lines of one width: each token attends
to the cached keys and values of its prompt and to its own answer, and has the position that
it would have alone. That needs no copy of the cache for each answer.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcl.errors import check_size, require, shown
from jaxcl.models.decoder import DecoderConfig, block, logits
from jaxcl.models.layers import attend, check_depth, rms_norm
from jaxcl.models.prompts import (
    Tokens,
    bucket,
    check_params,
    checked_prompts,
    checked_tokens,
    padded_left,
    warn_beyond,
)
from jaxcl.progress import progress
from jaxcl.tree import by_chunks
from jaxcl.typing import Params

_LINE = 256  # tokens of short answers in a line: attention grows with its square
_ROWS = 128  # rows of logits held at once


class _Line(NamedTuple):
    """Some answers to each prompt of a batch, without the last token of each."""

    tokens: Int[np.ndarray, "b t"]
    labels: Int[np.ndarray, "b t"]  # the token that follows each
    answer: Int[np.ndarray, "b t"]  # which one it is of, -1 for padding
    place: Int[np.ndarray, "b t"]  # in its answer


def answer_scores(
    config: DecoderConfig,
    params: Params,
    prompts: Sequence[Tokens],
    answers: Sequence[Sequence[Tokens]],
    *,
    batch_size: int = 8,
    quiet: bool | None = None,
) -> list[Float[np.ndarray, " k"]]:
    r"""The log-likelihood of every answer to every prompt, in nats.

    .. math:: \sum_i \log p(y_i | y_{<i}, \text{prompt})

    over the tokens of an answer. It depends on the prompt and the answer only, not on other
    answers, other prompts, or the size of the batch, to rounding::

        found = read_choices("questions.jsonl", tokenizer)
        scores = answer_scores(config, params, found.prompts, found.answers)

    Args:
      config: of the decoder.
      params: with an adapter or without one.
      prompts: token numbers of each, at least one.
      answers: for each prompt its answers, at least one; of each the token numbers.
      batch_size: prompts at a time, those of similar length together.
      quiet: no progress; by default it is shown on a terminal.

    Returns:
      For each prompt one number for each answer, in float64: sums of numbers in the
      precision of logits, float32 or wider.

    Raises:
      ValueError: for another number of lists of answers than of prompts; for a prompt or an
        answer that is empty or has a token that the model does not know; for a prompt that
        is longer than the model's context; for the parameters of another model.

    Cost: one pass over the prompts, and one over all answers without their last tokens.
    Memory: ``2 b m`` times the size of all key heads for ``b`` prompts of ``m`` tokens, and
    logits of 128 tokens at a time.
    """
    who = "answer_scores"
    check_size(who, batch_size=batch_size)
    check_params(who, config, params)
    check_depth(who, params["layers"], config.num_hidden_layers)
    asked = checked_prompts(who, config, prompts)
    held = _checked_answers(who, config, asked, answers)
    order = np.argsort([len(prompt) for prompt in asked], kind="stable")
    found: list[Any] = [None] * len(asked)
    width = _line_width(held)
    quiet = not sys.stderr.isatty() if quiet is None else quiet
    with nullcontext() if quiet else progress(len(asked), "prompts") as advance:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            # The last batch is filled up, so that its program is the one of the others.
            rows = np.resize(chosen, min(batch_size, len(order)))
            some = [asked[row] for row in rows], [held[row] for row in rows]
            scores = _batch(config, params, *some, width)
            for row, own in zip(chosen, scores, strict=False):
                found[row] = own
            if advance:
                advance(len(chosen))
    return found


def _checked_answers(who, config, asked, answers) -> list[list[np.ndarray]]:
    """The answers to each prompt as arrays; refuse what the model cannot score."""
    answers = list(answers)
    wanted = f"answers must be {len(asked)} lists, one for each prompt"
    require(len(answers) == len(asked), who, f"{wanted}, got {len(answers)}")
    held, longest = [], 0
    for number, (prompt, given) in enumerate(zip(asked, answers, strict=True)):
        if not hasattr(given, "__len__") or not len(given):
            wanted = f"answers to prompt {number} must be some lists of tokens"
            require(False, who, f"{wanted}, got {shown(given)}; give at least one")
        name = f"of prompt {number}"
        own = [
            checked_tokens(who, config, f"answer {place} {name}", answer)
            for place, answer in enumerate(given)
        ]
        longest = max(longest, len(prompt) + max(map(len, own)))
        held.append(own)
    warn_beyond(who, config, longest)
    return held


def _batch(config, params, prompts, answers, width: int) -> list[np.ndarray]:
    """The scores of the answers to some prompts, in lines of one width."""
    tokens, real = padded_left(prompts)
    first, cache = _read(config, params, tokens, real)
    first = np.asarray(first)
    found = [
        first[row, [answer[0] for answer in own]].astype(np.float64)
        for row, own in enumerate(answers)
    ]
    for line in _lines(answers, width):
        likely = np.asarray(_go_on(config, params, cache, real, *line))
        for row, total in enumerate(found):
            counts = line.answer[row] >= 0
            np.add.at(total, line.answer[row, counts], likely[row, counts])
    return found


# ------------------------------------------------------------------------------- lines


def _line_width(answers: Sequence[Sequence[np.ndarray]]) -> int:
    """Room for all answers to any prompt, if that is not too much, and for any answer."""
    lengths = [[len(answer) - 1 for answer in own] for own in answers]
    most = max((sum(own) for own in lengths), default=0)
    longest = max((max(own) for own in lengths), default=0)
    return bucket(max(min(most, _LINE), longest))


def _lines(answers: Sequence[Sequence[np.ndarray]], width: int) -> Iterator[_Line]:
    """The answers to each prompt in as few lines as fit them in their order."""
    packed = [_packed(own, width) for own in answers]
    for number in range(max(map(len, packed))):
        line = _Line(*(np.zeros((len(answers), width), np.int32) for _ in range(4)))
        line.answer[:] = -1
        for row, lines in enumerate(packed):
            begin = 0
            for which in lines[number] if number < len(lines) else ():
                answer = answers[row][which]
                there = np.s_[row, begin : begin + len(answer) - 1]
                line.tokens[there], line.labels[there] = answer[:-1], answer[1:]
                line.answer[there] = which
                line.place[there] = np.arange(len(answer) - 1)
                begin += len(answer) - 1
        yield line


def _packed(answers: Sequence[np.ndarray], width: int) -> list[list[int]]:
    """The numbers of the answers in each line; those of one token need none."""
    lines, room = [], 0
    for number, answer in enumerate(answers):
        length = len(answer) - 1
        if length > room:
            lines.append([])
            room = width
        if length:
            lines[-1].append(number)
            room -= length
    return lines


# ------------------------------------------------------------------------------ passes


@partial(jax.jit, static_argnames="config")
def _read(config, params, tokens, real):
    """Log-probabilities ``[b, v]`` after the prompts, and all layers' keys and values."""
    at = jnp.arange(tokens.shape[1])
    allowed = _within(config, at[:, None] - at) & (real > 0)[:, None, :]
    turns = config.rope.turns(len(at), config.heads[2])

    def attention(_, q, k, v):
        return attend(q, k, v, mask=allowed[:, None]), (k, v)

    h, cache = _states(config, params, None, tokens, turns, attention)
    return jax.nn.log_softmax(logits(params, h[:, -1])), cache


@partial(jax.jit, static_argnames="config")
def _go_on(config, params, cache, real, tokens, labels, answer, place):
    """Log-probabilities ``[b, t]`` of labels after the tokens of a line."""
    (b, t), width = tokens.shape, real.shape[1]
    # Padding on the left shifts all positions of a row, which rotations do not notice.
    turns = [
        jnp.asarray(turn)[width + place]
        for turn in config.rope.turns(width + t, config.heads[2])
    ]
    prompt = _within(config, width + place[:, :, None] - jnp.arange(width))
    prompt &= (real > 0)[:, None, :]
    own = _within(config, place[:, :, None] - place[:, None, :])
    own &= answer[:, :, None] == answer[:, None, :]
    allowed = jnp.concatenate([prompt, own], axis=-1)[:, None]

    def attention(held, q, k, v):
        join = lambda *both: jnp.concatenate(both, axis=1)
        keys, values = map(join, held, (k, v))
        return attend(q, keys, values, mask=allowed), None

    h, _ = _states(config, params, cache, tokens, turns, attention)

    def likely(h, labels):
        scores = jax.nn.log_softmax(logits(params, h))
        return jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]

    rows = h.reshape(b * t, -1), labels.ravel()
    return by_chunks(likely, rows, _ROWS).reshape(b, t)


def _within(config: DecoderConfig, distance: Array) -> Array:
    """Whether a key so many positions before a query may be attended to."""
    allowed = distance >= 0
    if config.sliding_window is not None:
        allowed &= distance < config.sliding_window
    return allowed


def _states(
    config: DecoderConfig,
    params: Params,
    cache: Any,
    tokens: Int[Array, "b n"],
    turns: Any,
    attention: Callable,
) -> tuple[Float[Array, "b n d"], Any]:
    """The states from which logits are computed, and what attention returned by layer.

    ``attention(held, q, k, v)`` gets what the cache holds of a layer.
    """

    def step(h, given):
        layer, held = given
        return block(config, layer, h, turns, partial(attention, held), shape=(b, n))

    b, n = tokens.shape
    h = params["embedding"][tokens].reshape(b * n, -1)
    h, new = jax.lax.scan(step, h, (params["layers"], cache))
    return rms_norm(params["norm"], h, config.rms_norm_eps).reshape(b, n, -1), new
