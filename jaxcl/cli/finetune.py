"""``jaxcl finetune``: from its command line to a run and its page."""

from collections.abc import Sequence
from typing import Any

import tyro

from jaxcl.finetune.config import Config, check
from jaxcl.runs.command import refusing, tell_end
from jaxcl.signals import ignore_more, terminable


@refusing
def main(argv: Sequence[str]) -> int:
    """``jaxcl finetune``; the exit code."""
    config = parse(argv)
    check(config)
    return start(config)


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
    from jaxcl.finetune.plan import Clock, plan, say
    from jaxcl.finetune.report import write_page

    with terminable():
        try:
            job = run.load(config)
            say(plan(job, timed=config.dry_run))
            if config.dry_run:
                return 0
            result = run.run(job, on_report=Clock(job).note)
        except KeyboardInterrupt as error:
            ignore_more()
            return tell_end(error, config.out)
        if result.status == "interrupted":
            return tell_end(KeyboardInterrupt(), config.out)
        write_page(config.out)
        return 0 if result.status == "done" else 1
