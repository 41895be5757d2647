"""The memory of a step, known before it runs."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from jaxcl.data.dataset import Task
from jaxcl.sequences import sequence_width
from jaxcl.sharding import ShardingPlan
from jaxcl.training.batches import first_rows, shapes_of
from jaxcl.training.compiled import Build, shard
from jaxcl.training.host import program_of
from jaxcl.training.options import Options
from jaxcl.typing import Batch, Key, Params


def step_memory(
    key: Key,
    build: Build,
    params: Params,
    tasks: Sequence[Task],
    options: Options,
    *,
    frozen: PyTree = (),
    sharding: ShardingPlan | None = None,
) -> int:
    """Bytes on each device during a step of :func:`learn` on the widest rows, by XLA.

    Weights, the state of the method, the batch, and the largest temporary arrays; a batch
    that is read ahead, other programs and checkpoints are not counted. The arguments are
    those of :func:`learn`; the step is compiled, and not run.
    """
    frozen = shard(sharding, frozen, "frozen/")
    given = key, build, params, tasks, options, frozen, (), {}, sharding
    parts = program_of(*given).parts
    train, _ = first_rows(tasks, {}, measured=False)
    widest = max(map(_widest_row, tasks), key=sequence_width)
    batch = shapes_of(widest, options.batch_size, sharding)
    state = parts.start.eval_shape(params, frozen, train)
    typed, number = jax.eval_shape(lambda: key), jax.ShapeDtypeStruct((), np.int32)
    lowered = parts.step.lower(state, frozen, typed, number, number, batch)
    found = lowered.compile().memory_analysis()
    # The state is donated: what is written over it takes no memory of its own.
    held = found.argument_size_in_bytes + found.output_size_in_bytes
    return int(held - found.alias_size_in_bytes + found.temp_size_in_bytes)


def _widest_row(task: Task) -> Batch:
    """A training row of a task at the largest width that one of them has."""
    rows = task.train
    groups = np.zeros(rows.count, int) if rows.groups is None else rows.groups
    return rows.read(np.array([groups.argmax()]))
