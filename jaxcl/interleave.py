"""Replay in separate optimizer steps, interleaved with the others."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.random import split

from jaxcl.errors import check_key, check_size
from jaxcl.lockstep import when
from jaxcl.memory import after
from jaxcl.tree import subtract
from jaxcl.typing import Memory, Method, State, StepRecord


class InterleavedState(NamedTuple):
    """The state in the method's field ``memory``."""

    own: State  # of the memory that the method was built with (usually none)
    replay: State  # of the memory that the replay steps sample from


def interleave(method: Method, memory: Memory, *, every: int) -> Method:
    """Take a step on rows of a memory after every ``every`` steps on new rows.

    The replay step is an ordinary step of the method, on a batch of ``sample_size``
    rows: with its own optimizer update, penalty and gradient transformation. It is
    skipped while the memory is empty and at all other steps, also under ``vmap``.

    Args:
      method: the learner; build it without a memory.
      memory: which examples are replayed; ``sample`` must give rows ``[r, ...]``. It
        observes the batch, the parameters and their change, but not the gradient. What
        it stores beside rows (DER's logits) is not given to the step.
      every: steps between two replays, within a task; new batches alone count.

    Returns:
      A method whose info is that of the step on new rows.

    Source: the replay of C&F (arXiv:2309.11305), taken from MbPA++ (d'Autume et al. 2019,
    arXiv:1906.01076), where one step in a hundred or more is a replay.
    """
    check_size("interleave", every=every)

    def init(params, example):
        state = method.init(params, example)
        replay = memory.init(params, example)
        return state._replace(memory=InterleavedState(state.memory, replay))

    def step(key, state, batch):
        key_step, key_replay, key_sample, key_observe = split(check_key("step", key), 4)
        own, replay = state.memory
        before = state._replace(memory=own)
        stepped, info = method.step(key_step, before, batch)
        rows = memory.sample(key_sample, replay)._replace(stored=batch.stored)
        due = (stepped.progress.step % every == 0) & jnp.any(rows.weight > 0)
        # Parts see the progress of the step before, which may be the last of its task.
        same_place = stepped._replace(progress=before.progress)
        again = lambda _: method.step(key_replay, same_place, rows)[0]
        new = when(due, again, stepped)._replace(progress=stepped.progress)
        seen = after((new.params, info.loss), batch)
        change = subtract(new.params, before.params)
        record = StepRecord(before.params, (), change, seen, rows, (), before.progress)
        replay = memory.observe(key_observe, replay, record, new.params)
        return new._replace(memory=InterleavedState(new.memory, replay)), info

    def end_task(key, state, data):
        key_method, key_memory = split(check_key("end_task", key))
        own, replay = state.memory
        ended = method.end_task(key_method, state._replace(memory=own), data)
        replay = memory.end_task(key_memory, replay, ended.params, data)
        return ended._replace(memory=InterleavedState(ended.memory, replay))

    def learners(state):
        own, replay = state.memory
        kept = own if hasattr(own, "kept") else replay  # for what is made from examples
        return method.learners(state._replace(memory=kept))

    return Method(init, step, end_task, learners)
