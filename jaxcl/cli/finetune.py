"""``jaxcl finetune``: from its command line to a run and its page."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tyro

from jaxcl.errors import InputError
from jaxcl.finetune.config import Config, check
from jaxcl.runs.command import refusing, tell_end
from jaxcl.signals import ignore_more, terminable


@refusing
def main(argv: Sequence[str]) -> int:
    """``jaxcl finetune``; the exit code."""
    config = parse(argv)
    check(config)
    with plain_warnings():
        return start(config)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as lines, without the place in the code, which users did not write."""
    with warnings.catch_warnings():
        finished = "had finished; its result is returned"  # said in other words
        warnings.filterwarnings("ignore", f".*{finished}")
        show = lambda message, *given: print(f"warning: {message}", file=sys.stderr)
        warnings.showwarning = show
        yield


def parse(argv: Sequence[str]) -> Config:
    """The settings of a command line; tyro ends the process for words it does not know."""
    return tyro.cli(
        _command(), prog="jaxcl finetune", args=list(argv), description=Config.__doc__
    )


def _command() -> Any:
    """The settings with all fields at one level, so that flags have no prefixes."""
    flat = tyro.conf.OmitArgPrefixes
    switch = tyro.conf.FlagCreatePairsOff
    return flat[switch[Config]]


def start(config: Config) -> int:
    """Plan, run and report; the exit code."""
    from jaxcl.finetune import run  # imports JAX: only for settings that are good
    from jaxcl.finetune.plan import Clock, plan, remedies, say

    with terminable():
        try:
            job = run.load(config)
            if not (done := run.is_finished(job)):
                say(plan(job, timed=config.dry_run))
            if config.dry_run:
                return 0
            result = run.run(job, on_report=Clock(job).note)
        except KeyboardInterrupt as error:
            ignore_more()
            return tell_end(error, config.out)
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            msg = f"--batch-size: out of memory; try {remedies(config)}."
            raise InputError(msg) from error
        if result.status == "interrupted":
            return tell_end(KeyboardInterrupt(), config.out)
        if done:
            print(f"{config.out} is finished; making its page again.")
        from jaxcl.finetune.report import write_page  # with all that draws figures

        write_page(config.out)
    if result.status == "diverged":
        step = f"step {int(result.run_state.step)} of task {int(result.run_state.task)}"
        lower = "lower --learning-rate, and give another --out"
        print(f"error: the loss was not finite by {step}; {lower}.", file=sys.stderr)
        return 1
    return 0
