"""A run of ``jaxcl finetune`` up to its first step, which prints how long each part took.

    python -m experiments.benchmarks.finetune.first_step SECONDS --model DIR --tasks ...

SECONDS is the time of the clock at which the process was started; the words after it are
those of ``jaxcl finetune``.
"""

import json
import sys
import time
from typing import Any

import jax

from jaxcl.cli.finetune import parse
from jaxcl.finetune import run
from jaxcl.finetune.checks import check
from jaxcl.finetune.config import Config
from jaxcl.finetune.plan import plan
from jaxcl.runs.experiment import expect_no_words
from jaxcl.training import learn

COMPILED = "/jax/core/compile/backend_compile_duration"

#: In their order.
PARTS = ("imports", "tokenising", "weights", "planning", "compiling", "first_run")


def first_step(began: float, words: list[str]) -> dict[str, Any]:
    """Seconds of the parts, and how many programs were compiled in each of them."""
    ends, compiled = {"imports": time.time()}, []
    jax.config.update("jax_enable_compilation_cache", False)

    def count(event, duration_secs, **_words):
        del duration_secs
        if event == COMPILED:
            compiled.append(time.time())

    jax.monitoring.register_event_duration_secs_listener(count)
    config = parse(words)
    check(config)
    job, ends["tokenising"] = load(config)
    ends["weights"] = time.time()
    plan(job)
    ends["planning"] = time.time()
    setup, stepped = job.setup, []

    def note(_line):
        stepped.append(time.time())

    learn(
        jax.random.key(1),
        setup.build,
        setup.trainable,
        [job.tasks[0]._replace(num_steps=1, num_epochs=None)],
        job.options,
        folder=None,
        frozen=setup.frozen,
        quiet=True,
        on_report=note,
    )
    before = [at for at in compiled if at <= stepped[0]]
    ends |= {"compiling": max(before), "first_run": stepped[0]}
    return between(began, ends, before)


def load(config: Config) -> tuple[run.Job, float]:
    """The job, and when its rows were there: they are read before the weights."""
    ends, set_up = [], run.set_up

    def timed_set_up(*given):
        ends.append(time.time())
        return set_up(*given)

    run.set_up = timed_set_up
    try:
        job = run.load(config)
    finally:
        run.set_up = set_up
    return job, ends[0]


def between(
    began: float, ends: dict[str, float], compiled: list[float]
) -> dict[str, Any]:
    """The seconds of each part, and the programs that were compiled in it."""
    found: dict[str, Any] = {}
    at = began
    for part in PARTS:
        found[part] = round(ends[part] - at, 3)
        count = sum(at < one <= ends[part] for one in compiled)
        found[f"{part}_programs"] = count
        at = ends[part]
    return {**found, "total": round(at - began, 3), "programs": len(compiled)}


if __name__ == "__main__":
    if not sys.argv[1:2] or not sys.argv[1].replace(".", "").isdecimal():
        expect_no_words(__doc__)
        raise SystemExit(__doc__)
    print(json.dumps(first_step(float(sys.argv[1]), sys.argv[2:])))
