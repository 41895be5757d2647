"""A pool of prompts: selected by what is asked, in training as at generation.

For generation their vectors are further tokens of the decoder.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.adapters import mean_query, select_prompts
from jaxcl.models import DecoderConfig, decoder
from jaxcl.typing import Batch, Params

_ROWS = 8  # prompts whose queries are computed at once


def asked_query(hidden: Callable, batch: Batch) -> Callable:
    """The query of rows by their tokens before the last answer.

    Generation has only these: with the answer in its query, training would select other
    prompts than generation does.

    Args:
      hidden: as of :func:`jaxcl.adapters.mean_query`.
      batch: rows of :func:`jaxcl.data.instruct_dataset`; ``y`` is below zero where the
        next token is not of an answer.
    """
    counts = batch.y >= 0
    before = jnp.pad(counts[:, :-1], ((0, 0), (1, 0)))
    at = jnp.arange(counts.shape[1])
    # The label at the last token of the prompt is the first token of the answer.
    last = jnp.max(jnp.where(counts & ~before, at, 0), axis=1)
    mask = batch.x["mask"] * (at <= last[:, None])
    query = mean_query(hidden)
    return lambda params, x: query(params, {**x, "mask": mask})


def with_pool(
    config: DecoderConfig, params: Params, prompts: Sequence[Any], num_selected: int
) -> tuple[DecoderConfig, Params, list[np.ndarray]]:
    """A decoder whose last tokens are the vectors of the pool, and prompts with them.

    Each prompt begins with the vectors that L2P selects for it, as numbers of tokens from
    ``vocab_size`` on. Outputs keep their number, so that these are read and not written.

    Args:
      config: of the decoder.
      params: with a ``pool``, see :func:`jaxcl.adapters.add_prompt_pool`.
      prompts: numbers of tokens.
      num_selected: prompts of the pool for each.

    Cost: a pass over the prompts for their queries, and a copy of the embedding.
    """
    rest = {name: part for name, part in params.items() if name != "pool"}
    pool, table = params["pool"], params["embedding"]
    size, length, _ = pool["prompts"].shape
    vectors = pool["prompts"].reshape(size * length, -1).astype(table.dtype)
    out = rest.get("out", {"kernel": table.T})
    wider = {**rest, "embedding": jnp.concatenate([table, vectors]), "out": out}
    first = config.vocab_size
    chosen = _selected(config, rest, pool, prompts, num_selected)
    places = first + chosen[..., None] * length + np.arange(length)
    begun = [
        np.concatenate([own.ravel(), np.asarray(prompt)]).astype(np.int32)
        for own, prompt in zip(places, prompts, strict=True)
    ]
    count = first + size * length
    return config._replace(vocab_size=count, tie_word_embeddings=False), wider, begun


def _selected(config, params, pool, prompts, num_selected: int) -> np.ndarray:
    """The numbers of the nearest prompts of the pool, ``[n, k]``."""
    query = jax.jit(mean_query(decoder(config).hidden))
    width = max(map(len, prompts))
    found = []
    for begin in range(0, len(prompts), _ROWS):
        some = prompts[begin : begin + _ROWS]
        tokens, mask = np.zeros((2, _ROWS, width), np.int32)
        for row, prompt in enumerate(some):
            tokens[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        own = query(params, {"tokens": tokens, "mask": mask})
        numbers = select_prompts(pool, own, num_selected)[1]
        found.append(np.asarray(numbers)[: len(some)])
    return np.concatenate(found)
