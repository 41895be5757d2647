"""What all benchmarks share: clocks, and turns within rounds, each a line of results."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxcl.runs.folder import RunFolder, append, finished
from jaxcl.training.logging import progress

#: ``() -> what a turn found``, as fields of its line.
Work = Callable[[], dict[str, Any]]


class Seconds(NamedTuple):
    """What some work cost."""

    cpu: float  # of all threads of this process
    wall: float


def timed(work: Callable[[], Any]) -> tuple[Any, Seconds]:
    """The result of the work, ready on the device, and what it cost."""
    cpu, wall = time.process_time(), time.perf_counter()
    done = jax.block_until_ready(work())
    return done, Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def compiled(
    function: Callable,
    *args: Any,
    donate: int | tuple[int, ...] = (),
    options: dict[str, Any] | None = None,
) -> tuple[Any, Seconds]:
    """The program for arguments of these shapes, and what tracing and compiling cost."""
    if not hasattr(function, "lower"):  # a jitted one keeps its own donations
        function = jax.jit(function, donate_argnums=donate)
    return timed(lambda: function.lower(*args).compile(compiler_options=options))


def in_turn(works: Mapping[str, Callable], number: int) -> dict[str, Seconds]:
    """The cost of each; who goes first changes from round to round."""
    order = list(works)[:: -1 if number % 2 else 1]
    costs = {name: timed(works[name])[1] for name in order}
    return {name: costs[name] for name in works}


class Turn(NamedTuple):
    """One job in one round, by one of those that are compared."""

    name: str  # ``round=1/ewc/torch``
    round: int
    job: str
    by: dict[str, Any]  # whose turn it is, as fields of its line


def take_turns(
    folder: RunFolder,
    turns: Sequence[Turn],
    prepare: Callable[[Sequence[Turn]], Callable[[Turn], dict[str, Any]]],
) -> None:
    """Take every turn that has no line in ``results.jsonl`` yet.

    Args:
      folder: of the results.
      turns: in their order.
      prepare: called once with those that are left, to compile what they need; what it
        returns takes one. An answer that is not ``finite`` has diverged.
    """
    done = finished(folder)
    todo = [turn for turn in turns if turn.name not in done]
    with progress(len(turns), "turns", done=len(turns) - len(todo)) as advance:
        take = prepare(todo)
        for turn in todo:
            head = {"run": turn.name, "round": turn.round, "job": turn.job, **turn.by}
            head["load"] = round(os.getloadavg()[0], 1)
            answer = take(turn)
            lost = answer.get("finite") is False
            status = "diverged" if lost else "done"
            append(folder, [{**head, "status": status, **answer}])
            advance(1, turn.name)
