"""Runs of the host loop: each learned, or gone on with, and written down as one line."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcl.data import Task
from jaxcl.runs.run_folder import CHECKPOINTS, RunFolder, append, finished
from jaxcl.runs.workers import share_out
from jaxcl.training import Options, ShardingPlan, fsdp, learn, make_mesh
from jaxcl.training.compiled import Build, Metrics
from jaxcl.training.logging import progress
from jaxcl.training.options import steps_of
from jaxcl.typing import Key, Params


class Trial(NamedTuple):
    """One run to be done: an arm with its numbers, and a seed."""

    arm: str
    hyper: Mapping[str, float]
    seed: int


class RunSpec(NamedTuple):
    """What a trial learns, and how: the arguments of :func:`jaxcl.training.learn`."""

    key: Key
    build: Build
    params: Params
    tasks: Sequence[Task]
    metrics: Metrics
    options: Options
    frozen: Any = ()


class ProgressMessage(NamedTuple):
    """How far a run has come since the last time, as a share of the whole, in words."""

    run: str
    share: Fraction
    words: str


class Finished(NamedTuple):
    """A run: its line, and the folder that is no longer needed."""

    line: dict
    place: Path


def run_trials(
    config: Any,
    folder: RunFolder,
    trials: Sequence[Trial],
    worker: Callable,
    *,
    num_workers: int,
) -> None:
    """Do every trial that has no line yet.

    Args:
      config: handed to the workers.
      folder: where lines go.
      trials: in this order.
      worker: ``(config, folder) -> do``, found by its name in a module; ``do`` takes a
        trial and ``send``, and calls :func:`learn_trial`.
      num_workers: processes.
    """
    done = finished(folder)
    todo = [trial for trial in trials if run_id(trial) not in done]
    walked: dict[str, Fraction] = {}
    with progress(len(trials), "runs", done=len(trials) - len(todo)) as advance:

        def receive(sent: ProgressMessage | Finished) -> None:
            if isinstance(sent, ProgressMessage):
                walked[sent.run] = walked.get(sent.run, Fraction()) + sent.share
                advance(sent.share, sent.words)
                return
            append(folder, [sent.line])
            shutil.rmtree(sent.place, ignore_errors=True)
            advance(1 - walked.get(sent.line["run"], 0))  # diverged, or begun earlier

        share_out(worker, (config, folder), todo, receive, num_workers=num_workers)


def learn_trial(
    trial: Trial,
    spec: RunSpec,
    folder: RunFolder,
    send: Callable[[ProgressMessage | Finished], None],
    *,
    setting: str,
    fsdp: int = 1,
    named: bool = False,
) -> None:
    """Learn one trial to its end, over all devices there are, and send its line.

    The line has the tasks' names if they are ``named``: if these tell more than a number.

    Raises:
      KeyboardInterrupt: after a signal, when the checkpoint is on the disk.
    """
    name = run_id(trial)
    lengths = [steps_of(task, spec.options) for task in spec.tasks]
    total = sum(lengths)
    on_progress = lambda steps, words: send(
        ProgressMessage(name, Fraction(steps, total), f"{name}, {words}")
    )
    place = folder.path / CHECKPOINTS / name.replace("/", "-")
    result = learn(
        spec.key,
        spec.build,
        spec.params,
        spec.tasks,
        spec.options,
        folder=place,
        frozen=spec.frozen,
        metrics=spec.metrics,
        sharding=sharding_of(fsdp),
        metadata={"run": name},
        on_progress=on_progress,
    )
    if result.status == "interrupted":
        raise KeyboardInterrupt
    names = {"tasks": [task.name for task in spec.tasks]} if named else {}
    matrix = np.round(result.matrix(), 4)
    line = {
        "run": name,
        "setting": setting,
        "arm": trial.arm,
        "hyper": dict(trial.hyper),
        "seed": trial.seed,
        **names,
        "status": result.status,
        "accuracy": np.diagonal(matrix),
        "final": matrix[-1],
        "matrix": matrix,
        "on_non_finite": spec.options.on_non_finite,
        "not_finite": int(result.run_state.num_bad),
        **told_of(place, lengths),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    send(Finished(line, place))


def sharding_of(parts: int) -> ShardingPlan | None:
    """Rows over all devices, large leaves over ``parts`` of them; None for one device.

    Raises:
      ValueError: if ``parts`` does not divide the devices there are.
    """
    if jax.device_count() == 1 and parts == 1:
        return None
    return ShardingPlan(make_mesh(fsdp=parts), fsdp())


def told_of(place: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """Mean training loss of each task, and seconds of steps, of a run.

    Both are read from its metrics, which hold every step once, however often the run
    was cut.
    """
    text = (place / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    losses: dict[int, float] = {}
    seconds, before = 0.0, (0, 0)
    for line in lines:
        if "loss" not in line:
            continue
        task, step = line["task"], line["step"]
        steps = step - (before[1] if task == before[0] else 0)
        seconds += line["seconds"]
        mean = math.nan if line["loss"] is None else line["loss"]
        losses[task] = losses.get(task, 0.0) + steps * mean / lengths[task]
        before = task, step
    rounded = [round(loss, 4) for loss in losses.values()]
    return {"loss": rounded, "seconds": round(seconds, 1)}


def run_id(trial: Trial) -> str:
    """``er/strength=100/seed=0``."""
    numbers = "".join(f"{name}={value:g}/" for name, value in trial.hyper.items())
    return f"{trial.arm}/{numbers}seed={trial.seed}"


__all__ = [
    "Finished",
    "ProgressMessage",
    "RunSpec",
    "Trial",
    "learn_trial",
    "run_id",
    "run_trials",
    "sharding_of",
]
