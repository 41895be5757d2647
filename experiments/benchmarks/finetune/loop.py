"""Rows of text by ``jaxcl finetune``'s own way: padding, the loop, the first step."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.finetune.config import REPORT_EVERY, Config
from experiments.benchmarks.finetune.text import settings, tokenizer_of
from experiments.benchmarks.rounds import Seconds, Work
from jaxcl.data.widths import padding_fraction, row_lengths
from jaxcl.errors import require
from jaxcl.finetune import run as finetune
from jaxcl.finetune.tasks import joined, read_tasks
from jaxcl.training import learn
from jaxcl.training.batches import fit_keys, take_rows, task_keys, training_order
from jaxcl.training.host import program_of
from jaxcl.training.options import Options
from jaxcl.typing import Batch

FIRST_STEP = "experiments.benchmarks.finetune.first_step"


def padding(config: Config, place: Path) -> Work:
    """The part of all positions of new rows that is padding; nothing is timed."""
    given = settings(config, place, config.max_length)
    files, widths = read_tasks(given, tokenizer_of(config, place))
    rows = joined([one.task for one in files]).train
    lengths = row_lengths(rows)
    found = {
        "rows": rows.count,
        "tokens": int(lengths.sum()),
        "median_length": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "widths": list(widths),
        "padding": padding_fraction(rows),
        "padding_of_one_width": 1 - float(lengths.mean() / lengths.max()),
    }
    return lambda _: found


class Two(NamedTuple):
    """A task, and what both loops over it need."""

    job: finetune.Job
    task: Any
    options: Options
    batches: list[Batch]  # on the device, in the order of the steps
    step: Any  # (state, frozen, key, number, num_steps, batch)
    start: Any


def loop(config: Config, place: Path) -> Work:
    """Steps by ``learn`` and in a bare loop; the same batches, and the same program."""
    two = both_loops(config, place)
    works = {"bare": bare, "learn": by_learn}
    for work in works.values():
        work(two)  # compiles for every width

    def turn(turn):
        found: dict[str, Any] = {"steps": config.loop_steps - REPORT_EVERY}
        for name in list(works)[:: -1 if turn.round % 2 else 1]:
            cpu, wall = works[name](two)
            found |= {f"{name}_cpu": cpu, f"{name}_wall": wall}
        return found

    return turn


def both_loops(config: Config, place: Path) -> Two:
    """Load the job of the command, and its batches."""
    job = finetune.load(settings(config, place, config.loop_length))
    setup, options = job.setup, job.options._replace(report_every=REPORT_EVERY)
    task = job.tasks[0]._replace(num_steps=config.loop_steps, num_epochs=None)
    given = setup.build, setup.trainable, [task], options, setup.frozen
    parts = program_of(run_key(), *given, (), {}, None).parts
    size = options.batch_size
    order = training_order(
        fit_keys(task_keys(run_key(), 0).fit).order,
        task.train,
        num_steps=config.loop_steps,
        batch_size=size,
        most=task.train.count,
        shuffle=task.shuffle,
    )
    ready = [jax.device_put(take_rows(task.train, row, size=size)) for row in order]
    return Two(job, task, options, ready, parts.step, parts.start)


def run_key():
    """Of both loops; no array before main has chosen threads."""
    return jax.random.key(1)


def bare(two: Two) -> Seconds:
    """Seconds of a step after the first ones, in a loop and nothing else."""
    setup, count = two.job.setup, np.int32(len(two.batches))
    key = fit_keys(task_keys(run_key(), 0).fit).steps
    example = two.task.train.example
    state = two.start(setup.trainable, setup.frozen, example)
    began = now()
    for number, batch in enumerate(two.batches):
        if number == REPORT_EVERY:
            jax.block_until_ready(state)
            began = now()
        state, _ = two.step(state, setup.frozen, key, np.int32(number), count, batch)
    jax.block_until_ready(state)
    return each(began, now(), len(two.batches) - REPORT_EVERY)


def by_learn(two: Two) -> Seconds:
    """Seconds of a step between the first report of ``learn`` and the last."""
    setup, clocks = two.job.setup, []

    def note(line):
        if "loss" in line:
            clocks.append(now())

    learn(
        run_key(),
        setup.build,
        setup.trainable,
        [two.task],
        two.options,
        folder=None,
        frozen=setup.frozen,
        quiet=True,
        on_report=note,
    )
    return each(clocks[0], clocks[-1], len(two.batches) - REPORT_EVERY)


def now() -> Seconds:
    """Both clocks."""
    return Seconds(time.process_time(), time.perf_counter())


def each(began: Seconds, ended: Seconds, count: int) -> Seconds:
    """Of one of so many steps."""
    pairs = zip(began, ended, strict=True)
    return Seconds(*(round((end - begin) / count, 6) for begin, end in pairs))


def start(config: Config, place: Path) -> Work:
    """Seconds from the start of a process to the end of its first step."""
    given = settings(config, place, config.loop_length)
    words = ["--model", str(given.model), "--tasks", *given.tasks]
    words += ["--out", str(given.out), "--rank", str(config.rank)]
    words += ["--batch-size", str(config.loop_batch_size)]
    words += ["--max-length", str(config.loop_length)]
    words += ["--memory", str(config.capacity)]

    def work(_):
        command = [sys.executable, "-m", FIRST_STEP, str(time.time()), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = done.stderr.strip().splitlines()[-1:]
        require(done.returncode == 0, "start", f"{FIRST_STEP} ended with {last}")
        return json.loads(done.stdout.splitlines()[-1])

    return work
