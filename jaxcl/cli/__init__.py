"""The ``jaxcl`` command.

jaxcl finetune ...      a language model on one file after another
jaxcl evaluate SOURCE   a model, or one of a run, on files
jaxcl generate SOURCE   its answers to prompts
jaxcl export RUN        its adapter for PEFT, or merged into the model
jaxcl interpolate RUN   models between before and after
jaxcl report RUN        tables, figures and a page of a folder of runs
jaxcl batch MODULE ...  a grid of settings as one job, here or on a cluster
jaxcl convert FILE ...  a model in a GGUF file as a Hugging Face folder
jaxcl COMMAND --help    what a command takes
jaxcl --version
"""

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from jaxcl.cli import convert, finetune, models
from jaxcl.errors import MissingFileError
from jaxcl.runs import batch
from jaxcl.runs.command import refusing
from jaxcl.runs.experiment import nearest

__all__ = ["main", "report"]

_REPORT = """Tables, figures and a page of a folder of runs: jaxcl report RUN

RUN is the folder of an experiment (it holds results.jsonl) or of one call of learn (it
holds metrics.jsonl). Written are RUN/tables, RUN/figures and RUN/report.html."""


@refusing
def report(argv: Sequence[str]) -> int:
    """``jaxcl report RUN``; the exit code."""
    if len(argv) != 1 or argv[0].startswith("-") or "\0" in argv[0]:
        print(_REPORT, file=sys.stdout if "--help" in argv else sys.stderr)
        return 0 if "--help" in argv else 2
    run = Path(argv[0])
    if not run.is_dir():
        msg = f"report: expected the folder of a run, got nothing of the kind at {run}."
        raise MissingFileError(msg)
    from jaxcl.finetune.config import SETTINGS
    from jaxcl.finetune.report import write_page  # with all that draws figures
    from jaxcl.runs.reports import page_of_run

    (write_page if (run / SETTINGS).exists() else page_of_run)(run)
    return 0


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "finetune": finetune.main,
    "evaluate": models.evaluate,
    "generate": models.generate,
    "export": models.export,
    "interpolate": models.interpolate,
    "report": report,
    "batch": batch.main,
    "convert": convert.main,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if words[0] == "--version":
        print(version("jaxcl"))
        return 0
    if words[0] not in _COMMANDS:
        others = nearest(words[0], _COMMANDS)
        print(f"error: unknown command {words[0]!r}{others}", file=sys.stderr)
        return 2
    return _COMMANDS[words[0]](words[1:])
