"""The decoder that all jobs train, and its step compiled with and without SAM."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from experiments.benchmarks.host.config import NUM_ROWS, Config
from jaxcl.data import Task, array_dataset
from jaxcl.losses import single_head, token_cross_entropy
from jaxcl.method import make_method
from jaxcl.models import LlamaConfig, llama
from jaxcl.training import ShardingPlan
from jaxcl.training.batches import shapes_of
from jaxcl.training.compiled import Program, Rows, compile_program
from jaxcl.transforms import sam
from jaxcl.tree import as_batch
from jaxcl.typing import Method, Params

NUM_BYTES = 256
RHO = 0.05  # SAM's radius, on which its cost does not depend


class Job(NamedTuple):
    """What is learned from what, and by what."""

    build: Callable[..., Method]
    start: Params
    task: Task


def make_job(config: Config, *, with_sam: bool = False, large: bool = False) -> Job:
    """Random bytes, of which the next is predicted; AdamW, alone or after SAM."""
    hidden = config.large_hidden_size if large else config.hidden_size
    sizes = LlamaConfig(
        vocab_size=NUM_BYTES,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=max(1, config.num_heads // 2),
    )
    model = llama(sizes)
    loss = token_cross_entropy(single_head(model.apply))

    def build(frozen):
        del frozen
        gradient = sam(RHO) if with_sam else None
        optimizer, size = optax.adamw(1e-3), config.chunk_size
        return make_method(loss, optimizer, gradient=gradient, chunk_size=size)

    text = np.random.default_rng(config.seed).integers(
        NUM_BYTES, size=(NUM_ROWS, config.length + 1), dtype=np.int32
    )
    rows = array_dataset(as_batch(text[:, :-1], text[:, 1:]))
    key = jax.random.key(config.seed)
    return Job(build, model.init(key), Task("bytes", rows, rows))


def make_program(
    job: Job, batch_size: int, sharding: ShardingPlan | None = None
) -> Program:
    """The functions of the host loop for this job."""
    example = job.task.train.read(np.arange(1))
    batch = shapes_of(example, batch_size, sharding)
    rows, key = Rows(example, batch, batch, batch), jax.random.key(0)
    return compile_program(job.build, job.start, (), rows, key=key, sharding=sharding)
