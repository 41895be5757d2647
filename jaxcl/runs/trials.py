"""The runs of an experiment: arms with their numbers, seeds, and a line of results each."""

import hashlib
import math
import shutil
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcl.data import Task
from jaxcl.progress import progress
from jaxcl.runs.folder import CHECKPOINTS, RunFolder, append, finished
from jaxcl.runs.jobs import Do, Job, run_jobs, worker_count
from jaxcl.training import Options, ShardingPlan, fsdp, learn, make_mesh
from jaxcl.training.compiled import Build, Metrics
from jaxcl.training.options import steps_of
from jaxcl.typing import Key, Params

#: ``(part, text) -> None``: reports the part of a job since the last message, and a text.
Tell = Callable[[Fraction, str], None]


class Trial(NamedTuple):
    """One run: an arm with all of its numbers, and a seed, on one stream of tasks.

    Attributes:
      setting: the stream.
      arm: the method.
      hyper: every number that makes the arm what it is, none of the instruments that
        measure it.
      seed: draws the start and the batches.
      group: of arms that are reported together, where there are several groups.
    """

    setting: str
    arm: str
    hyper: Mapping[str, float]
    seed: int
    group: str = ""

    @property
    def run(self) -> str:
        """Its name in the results, ``permuted/sam/learning_rate=0.01,rho=0.05/seed=3``."""
        numbers = ",".join(f"{name}={_digits(v)}" for name, v in self.hyper.items())
        return f"{self.setting}/{self.arm}/{numbers}/seed={self.seed}"


def _digits(value: int | float) -> str:
    """Six digits where these are all: ``0.01``, ``100``; otherwise as many as it has."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


#: ``(trials, tell) -> lines``: learns trials side by side.
Learn = Callable[[Sequence[Trial], Tell], list[dict]]


def all_trials(
    setting: str, config: Any, numbers: Mapping[str, Sequence[str]]
) -> list[Trial]:
    """Every arm with every seed; seed by seed, so that what is cut short compares.

    ``config`` has ``arms``, ``seeds``, and the fields that ``numbers`` names for each arm.
    """
    hyper = lambda arm: {name: getattr(config, name) for name in numbers[arm]}
    return [
        Trial(setting, arm, hyper(arm), seed)
        for seed in range(config.seeds)
        for arm in config.arms
    ]


def result_line(trial: Trial, finite: Any, *, seconds: float, **more: Any) -> dict:
    """What ``results.jsonl`` keeps of a run.

    ``finite`` [T] says whether all steps of each task were; ``more`` is ``accuracy`` [T] of
    the task just learned, and whatever else is measured.
    """
    finite = np.asarray(finite)
    bad = None if finite.all() else int(np.argmin(finite))
    return {
        "run": trial.run,
        "setting": trial.setting,
        "arm": trial.arm,
        **({"group": trial.group} if trial.group else {}),
        "hyper": dict(trial.hyper),
        "seed": trial.seed,
        "status": "done" if bad is None else "diverged",
        "first_bad_task": bad,
        "device": jax.devices()[0].device_kind,
        **more,
        "seconds": round(seconds, 2),
    }


def run_trials(
    folder: RunFolder,
    trials: Sequence[Trial],
    prepare: Callable[[RunFolder], Learn],
    *,
    workers: int | None,
    size: int = 1,
    program: Callable[[Trial], Hashable] = lambda trial: None,
) -> None:
    """Do every trial that has no line of results yet, and append its line.

    Args:
      folder: of the run.
      trials: in this order; those of one name are done once.
      prepare: ``prepare(folder) -> learn``, found by its name in a module;
        ``learn(trials, tell)`` learns up to ``size`` trials of one setting and arm side by
        side and returns their lines, in order. It keeps its checkpoints in
        :func:`checkpoint_folder`.
      workers: processes; by default one per core on a CPU and one on an accelerator.
      size: trials in one call.
      program: what is compiled for a trial: a process prefers those of the same.
    """
    done = finished(folder)
    named: dict[str, Trial] = {}
    for trial in trials:
        named.setdefault(trial.run, trial)
    todo = [trial for name, trial in named.items() if name not in done]
    jobs = [Job(pack, program(pack[0])) for pack in packs(todo, size)]
    _note_other_packs(folder, [*packs(todo, size), *packs(list(named.values()), size)])
    # Parts of runs, until their lines come.
    sent = {job.work[0].run: Fraction() for job in jobs}
    turn = threading.Lock()  # messages come in another thread than results

    with progress(len(named), "runs", done=len(named) - len(todo)) as advance:

        def on_message(message: tuple[str, Fraction, str]) -> None:
            name, part, words = message
            with turn:
                if name in sent:  # otherwise its lines have overtaken it
                    sent[name] += part
                    advance(part, words)

        def on_result(job: Job, lines: list[dict]) -> None:
            append(folder, lines)
            shutil.rmtree(checkpoint_folder(folder, job.work), ignore_errors=True)
            with turn:  # a run that diverged or was resumed has sent less than all
                advance(len(lines) - sent.pop(job.work[0].run))

        do = partial(_prepared, prepare, folder)
        count = worker_count(workers)
        run_jobs(do, jobs, on_result, on_message, num_workers=count)


def _note_other_packs(folder: RunFolder, known: Sequence[Sequence[Trial]]) -> None:
    """Say that work is lost where other trials were learned side by side."""
    kept = {checkpoint_folder(folder, pack) for pack in known}
    others = set((folder.path / CHECKPOINTS).glob("*")) - kept
    if others and known:
        said = "were packed otherwise, and begin again; see runs_per_call"
        print(f"note: runs of {len(others)} checkpoints {said}: {folder.path}")


def _prepared(prepare: Callable[[RunFolder], Learn], folder: RunFolder) -> Do:
    """A job as :func:`run_jobs` has it: its messages say which trials they are of."""
    learn_trials = prepare(folder)

    def work(pack: Sequence[Trial], send: Callable[[Any], None]) -> list[dict]:
        tell = lambda part, words: send((pack[0].run, len(pack) * part, words))
        return learn_trials(pack, tell)

    return work


def packs(trials: Sequence[Trial], size: int) -> list[list[Trial]]:
    """Trials in groups of at most ``size`` that have group, setting and arm in common."""
    if size == 1:
        return [[trial] for trial in trials]
    families: dict[tuple, list[Trial]] = {}
    for trial in trials:
        families.setdefault((trial.group, trial.setting, trial.arm), []).append(trial)
    return [
        family[first : first + size]
        for family in families.values()
        for first in range(0, len(family), size)
    ]


def checkpoint_folder(folder: RunFolder, trials: Sequence[Trial]) -> Path:
    """Where the unfinished state of trials that are learned side by side lies."""
    names = ";".join(trial.run for trial in trials)
    return folder.path / CHECKPOINTS / hashlib.sha256(names.encode()).hexdigest()[:16]


# ------------------------------------------------------------------ by the host loop


class RunSpec(NamedTuple):
    """What a trial learns, and how: the arguments of :func:`jaxcl.training.learn`."""

    key: Key
    build: Build
    params: Params
    tasks: Sequence[Task]
    metrics: Metrics
    options: Options
    frozen: Any = ()


def learner(spec: Callable[[Any, Trial], RunSpec], folder: RunFolder) -> Learn:
    """Learn each trial by the host loop; ``config.fsdp`` devices share large parameters."""
    return lambda pack, tell: [
        learn_trial(trial, spec(folder.config, trial), folder, tell) for trial in pack
    ]


def run_specs(
    folder: RunFolder,
    trials: Sequence[Trial],
    spec: Callable[[Any, Trial], RunSpec],
) -> None:
    """:func:`run_trials` by the host loop over all devices.

    The settings have ``workers`` and ``fsdp``; ``spec(config, trial)`` is a function that
    is found by its name in a module.
    """
    sharding_of(folder.config.fsdp)
    spec(folder.config, trials[0])  # refuses what does not fit the data
    run_trials(folder, trials, partial(learner, spec), workers=folder.config.workers)


def learn_trial(trial: Trial, spec: RunSpec, folder: RunFolder, tell: Tell) -> dict:
    """Learn one trial to its end, or go on with it; its line.

    KeyboardInterrupt after a signal is raised when the checkpoint is on the disk.
    """
    lengths = [steps_of(task, spec.options) for task in spec.tasks]
    result = learn(
        spec.key,
        spec.build,
        spec.params,
        spec.tasks,
        spec.options,
        folder=checkpoint_folder(folder, [trial]),
        frozen=spec.frozen,
        metrics=spec.metrics,
        sharding=sharding_of(folder.config.fsdp),
        metadata={"run": trial.run},
        on_progress=lambda steps, words: tell(
            Fraction(steps, sum(lengths)), f"{trial.arm}, seed {trial.seed}, {words}"
        ),
    )
    if result.status == "interrupted":
        raise KeyboardInterrupt
    matrix = np.round(result.matrix(), 4)
    ended = int(result.run_state.task)  # fewer than all if the run diverged
    return result_line(
        trial,
        np.arange(len(lengths)) < ended,
        seconds=result.seconds,
        accuracy=np.diagonal(matrix),
        final=matrix[-1],
        matrix=matrix,
        loss=np.round(result.loss[: ended + 1], 4),
        tasks=[task.name for task in spec.tasks],
        on_non_finite=spec.options.on_non_finite,
        not_finite=int(result.run_state.num_bad),
        device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    )


def sharding_of(parts: int) -> ShardingPlan | None:
    """Rows over all devices, large leaves over ``parts`` of them; None for one device."""
    if jax.device_count() == 1 and parts == 1:
        return None
    return ShardingPlan(make_mesh(fsdp=parts), fsdp())


# ------------------------------------------------------------------ on the device


def rounded(values: Any, digits: int = 4) -> list[float | None]:
    """So many significant digits; None for NaN and infinity."""
    return [
        float(f"{v:.{digits}g}") if math.isfinite(v) else None
        for v in np.asarray(values).tolist()
    ]
