"""What all benchmarks share: clocks, and turns within rounds, each a line of results."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxcl.progress import progress
from jaxcl.runs.folder import RunFolder, append, finished


class Seconds(NamedTuple):
    """What some work cost."""

    cpu: float  # of all threads of this process
    wall: float


def timed(work: Callable[[], Any]) -> tuple[Any, Seconds]:
    """The result of the work, ready on the device, and what it cost."""
    cpu, wall = time.process_time(), time.perf_counter()
    done = jax.block_until_ready(work())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return done, Seconds(round(cpu, 6), round(wall, 6))  # no clock tells more


def compiled(
    function: Callable, *args: Any, donate: int | tuple[int, ...] = ()
) -> tuple[Any, Seconds]:
    """The program for arguments of these shapes, and what tracing and compiling cost."""
    if not hasattr(function, "lower"):  # a jitted one keeps its own donations
        function = jax.jit(function, donate_argnums=donate)
    return timed(lambda: function.lower(*args).compile())


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


#: ``(turn) -> what was found``, as fields of its line.
Work = Callable[[Turn], dict[str, Any]]


def take_turns(
    folder: RunFolder, turns: Sequence[Turn], prepare: Callable[[Turn], Work]
) -> None:
    """Take every turn that has no line in ``results.jsonl`` yet.

    Args:
      folder: of the results.
      turns: in their order.
      prepare: called before the first turn, once for each job and who does it, to compile
        what they need; what it returns takes a turn. An answer that is not ``finite`` has
        diverged.
    """
    done = finished(folder)
    todo = [turn for turn in turns if turn.name not in done]
    kind = lambda turn: (turn.job, *turn.by.values())
    kinds = {kind(turn): turn for turn in todo}
    works = {name: prepare(kinds[name]) for name in sorted(kinds)}
    with progress(len(turns), "turns", done=len(turns) - len(todo)) as advance:
        for turn in todo:
            head = {"run": turn.name, "round": turn.round, "job": turn.job, **turn.by}
            head["load"] = round(os.getloadavg()[0], 1)
            answer = works[kind(turn)](turn)
            head["status"] = "diverged" if answer.get("finite") is False else "done"
            append(folder, [head | answer])
            advance(1, turn.name)
