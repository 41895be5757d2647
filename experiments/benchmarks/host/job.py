"""The decoder that all jobs train, its step compiled with and without SAM, its loops."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.benchmarks.host.config import NUM_ROWS, Config
from jaxcl.data import Task, array_dataset
from jaxcl.losses import single_head, token_cross_entropy
from jaxcl.method import make_method
from jaxcl.models import LlamaConfig, llama
from jaxcl.training import Options, ShardingPlan
from jaxcl.training.batches import shapes_of, take_rows
from jaxcl.training.checkpoint import saving
from jaxcl.training.compiled import Program, Rows, compile_program
from jaxcl.training.logging import metrics_file
from jaxcl.training.loop import Run, fit
from jaxcl.training.processes import interruptible
from jaxcl.training.results import spent_so_far
from jaxcl.training.run_state import begin
from jaxcl.transforms import sam
from jaxcl.tree import as_batch
from jaxcl.typing import Batch, Params

NUM_BYTES = 256
RHO = 0.05  # SAM's radius, on which its cost does not depend
KEY_SEED = 1  # no array before main has chosen threads and device


class Job(NamedTuple):
    """What is learned from what, and by what."""

    task: Task
    params: Params  # at the start
    program: Program  # the functions of the host loop
    batch: Batch  # the first rows, on the device


def make_job(
    config: Config,
    batch_size: int,
    *,
    with_sam: bool = False,
    large: bool = False,
    sharding: ShardingPlan | None = None,
) -> Job:
    """Random bytes, of which the next is predicted; AdamW, alone or after SAM."""
    model = llama(sizes(config, large=large))
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
    params, key = model.init(jax.random.key(config.seed)), jax.random.key(0)
    example = rows.read(np.arange(1))
    shapes = Rows(example, *[shapes_of(example, batch_size, sharding)] * 3)
    program = compile_program(build, params, (), shapes, key=key, sharding=sharding)
    numbers = np.arange(batch_size)
    batch = take_rows(rows, numbers, size=batch_size, sharding=sharding)
    return Job(Task("bytes", rows, rows), params, program, batch)


def sizes(config: Config, *, large: bool) -> LlamaConfig:
    """The decoder's; those that do not fit each other are refused when it is made."""
    hidden = config.large_hidden_size if large else config.hidden_size
    return LlamaConfig(
        vocab_size=NUM_BYTES,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=max(1, config.num_heads // 2),
    )


def one_step(job: Job) -> Callable:
    """``(state, batch) -> (state, info)``, to be compiled by itself."""
    zero, key = np.int32(0), jax.random.key(KEY_SEED)
    return lambda state, batch: job.program.step(state, key, zero, zero, batch)


def bare_loop(job: Job, num_steps: int, state: Any = None) -> Any:
    """The jitted step and nothing else, on a batch that is ready."""
    key, count = jax.random.key(KEY_SEED), np.int32(num_steps)
    state = job.program.start(job.params) if state is None else state
    for step in range(num_steps):
        state, _ = job.program.step(state, key, np.int32(step), count, job.batch)
    return state


def host_loop(job: Job, options: Options) -> Any:
    """The part of :func:`jaxcl.training.learn` that walks the steps of a task."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        enter, folder = stack.enter_context, Path(place)
        run = Run(
            jax.random.key(KEY_SEED),
            [job.task],
            {},
            options,
            None,
            job.program,
            results={},
            measured=np.zeros((2, 1), bool),
            spent=spent_so_far({}, 1),
            interrupted=enter(interruptible()),
            save=enter(saving(folder / "checkpoints")),
            write=enter(metrics_file(folder / "metrics.jsonl")),
            scalar=lambda name, value, step: None,
            advance=lambda steps, words: None,
        )
        start = begin(job.program.start(job.params), options)
        run_state, status = fit(run, start)
    if status != "done":  # a signal came: what was timed is not the whole
        raise KeyboardInterrupt
    return run_state.state


def both_loops(config: Config) -> dict[str, Callable]:
    """One task by the bare loop, and by the host's."""
    job = make_job(config, config.batch_size)
    options = Options(num_steps=config.num_steps, batch_size=config.batch_size)
    return {
        "bare": partial(bare_loop, job, config.num_steps),
        "loop": partial(host_loop, job, options),
    }
