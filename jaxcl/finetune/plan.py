"""What a run will take: weights that are trained, memory, steps, and time."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from jaxcl.data.widths import padding_fraction
from jaxcl.errors import MissingFileError
from jaxcl.finetune.config import Config, as_adapter, room_of
from jaxcl.finetune.method import learning_rate
from jaxcl.finetune.run import Job, tested_after
from jaxcl.runs.folder import CHECKPOINTS
from jaxcl.training import learn, step_memory
from jaxcl.training.options import steps_of
from jaxcl.typing import Params

_TIMED = 5  # steps
_LINES = 4  # of the loop, of which the fastest counts


def plan(job: Job, *, timed: bool = False) -> dict[str, str]:
    """What the run will take, by topic; with ``timed`` a few steps are made and undone."""
    config, setup = job.config, job.setup
    trained = num_params(setup.trainable)
    total = trained + num_params(setup.frozen)
    steps = [steps_of(task, job.options) for task in job.tasks]
    rate = learning_rate(config)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(setup.frozen)} - {"int32"}
    held = f", frozen ones in {' and '.join(sorted(dtypes))}" if dtypes else ""
    what = f"{trained_part(config)}, AdamW at {rate:g}{held}"
    found = {
        "model": f"{config.model}: {total:,} weights on {_devices(setup)}",
        "trained": f"{trained:,} ({trained / total:.2%}): {what}",
        "method": f"{config.method}, gradient {config.gradient}",
    }
    for task, number in zip(job.tasks, steps, strict=True):
        rows = f"{task.train.count:,} rows, {number:,} steps"
        padding = padding_fraction(task.train)
        found[f"task {task.name}"] = f"{rows}, {padding:.0%} padding"
    for one in job.files:
        how = f"choice among {len(one.tested.labels)} answers"
        how = f"generated answers{f', {how}' if one.tested.labels else ''}"
        found[f"test {one.task.name}"] = f"{one.task.test.count:,} rows, {how}"
    for name, questions in job.general.items():
        found[f"general {name}"] = f"{len(questions.prompts)} questions"
    done = steps_done(job)
    left = sum(steps) - done
    found["steps"] = f"{sum(steps):,} of {config.training.batch_size} rows"
    found["steps"] += f", {left:,} of them left" if done else ""
    found["memory"] = _memory(job)
    if timed:
        each = _seconds_of_a_step(job)
        known = f"{each:.2g} s a step, {duration(each * left)} of steps"
        found["time"] = f"{known}, without tests and compiling"
    return found


def trained_part(config: Config) -> str:
    """What of the model is trained, in words."""
    lora = config.lora
    slots = f" for each of {room_of(config)} tasks" * (config.method == "olora")
    return {
        "lora": f"LoRA of rank {lora.rank}{slots} on {' '.join(lora.targets)}",
        "full": "all weights",
        "prompts": f"a pool of {config.numbers.prompts} prompts",
    }[as_adapter(config)]


def num_params(params: Params) -> int:
    """How many numbers they are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def say(lines: Mapping[str, str]) -> None:
    """Print the plan as a table."""
    wide = max(map(len, lines))
    for name, line in lines.items():
        print(f"{name:{wide}}  {line}", flush=True)


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _devices(setup: Any) -> str:
    plan = setup.sharding
    devices = jax.devices()[:1] if plan is None else plan.mesh.devices.ravel()
    several = f"{len(devices)} x " if len(devices) > 1 else ""
    return f"{several}{devices[0].device_kind}"


def _memory(job: Job) -> str:
    """XLA's own analysis of a step on the widest rows, beside what there is."""
    config, setup = job.config, job.setup
    needed = step_memory(
        jax.random.key(0),
        setup.build,
        setup.trainable,
        job.tasks,
        job.options,
        frozen=setup.frozen,
        sharding=setup.sharding,
    )
    there = _available()
    text = f"{needed / 1e9:.2f} GB in a step on the widest rows, by XLA"
    if there is None:
        return text
    text += f", of {there / 1e9:.1f} GB"
    if needed > 0.95 * there:
        text += f". It may not fit: lower {remedies(config)}"
    return text


def remedies(config: Any) -> str:
    """What to lower where memory runs out."""
    size = config.training.batch_size
    ways = [f"--chunk-size {max(1, size // 4)}", "--recompute"]
    ways += [
        f"--max-length {config.text.max_length // 2}",
        f"--batch-size {max(1, size // 2)}",
    ]
    if as_adapter(config) == "full":
        ways.append("train an --adapter lora")
    return ", ".join(ways)


def _available() -> int | None:
    """Bytes of a device; those that are free on this machine for a CPU."""
    with suppress(Exception):
        stats = jax.devices()[0].memory_stats()
        if stats:
            return stats["bytes_limit"]
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * int(line.split()[1])
    with suppress(ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return None


def steps_done(job: Job) -> int:
    """Steps that the run has made, as its newest checkpoint holds them."""
    if not (job.config.out / CHECKPOINTS).is_dir():
        return 0
    from jaxcl.runs import learned  # with all that draws figures

    with suppress(MissingFileError):
        return sum(learned.read(job.config.out).spent.get("steps", ()))
    return 0


def _seconds_of_a_step(job: Job) -> float:
    """The mean over a few steps of the first task, in runs that are not kept.

    The second run has the same rows, for which the first has compiled all programs.
    """
    setup = job.setup
    task = job.tasks[0]._replace(num_steps=_TIMED, num_epochs=None)
    options = job.options._replace(report_every=_TIMED, eval_start=False)
    for _ in range(2):
        result = learn(
            jax.random.key(0),
            setup.build,
            setup.trainable,
            [task],
            options,
            folder=None,
            frozen=setup.frozen,
            sharding=setup.sharding,
            quiet=True,
        )
    return result.seconds / _TIMED


class Clock:
    """Says after the first line, and once more after a few, how long the rest will take.

    A program is compiled for each width of rows, within the first steps that have it. So
    the second estimate is from the fastest of the lines. That of the tests is from those
    before the first task, if this process has made them.
    """

    def __init__(self, job: Job):
        self.job = job
        self.total = sum(steps_of(task, job.options) for task in job.tasks)
        self.done = steps_done(job)
        self.each: list[float] = []
        self.a_row = self.learners = 0

    def tested(self, learners: int, rows: int, seconds: float) -> None:
        """Take the time of some tests."""
        self.learners, self.a_row = learners, seconds / rows

    def note(self, line: Mapping[str, Any]) -> None:
        """Take a line of the loop; the last one of a task is of fewer steps."""
        if "seconds" not in line or len(self.each) >= _LINES:
            return
        before, self.done = self.done, line["at"] - line["task"]
        self.each.append(line["seconds"] / max(self.done - before, 1))
        left = self.total - self.done
        if len(self.each) not in (1, _LINES) or left <= 0:
            return
        each = min(self.each)
        other = f"{duration(each * left)} for the other {left:,}"
        tests = self.a_row * self.learners * self._rows_left(line["task"])
        known = f"about {duration(tests)} of tests" if tests else "without tests"
        rest = "without what is still to compile"
        rest = "with compiling; better known soon" if len(self.each) == 1 else rest
        print(f"time  {each:.2g} s a step, {other}, {known}, {rest}", flush=True)

    def _rows_left(self, ended: int) -> int:
        """Rows on which each learner is still to be tested."""
        count = 0
        for number in range(ended + 1, len(self.job.tasks) + 1):
            files, general = tested_after(self.job, number)
            count += sum(len(one.tested.prompts.tokens) for one in files)
            count += sum(len(one.prompts) for one in general.values())
        return count
