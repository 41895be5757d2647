"""From a command line to a run, and errors of one line.

Exit codes: 0 also for a run in which something diverged (its status names it) and after
SIGTERM while it ran, 2 for bad input, 1 with a traceback for a bug, 130 after Ctrl-C.
"""

import contextlib
import errno
import functools
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ParamSpec

from jaxcl.errors import InputError
from jaxcl.files import lock_folder
from jaxcl.runs.experiment import OUTPUTS, Experiment, Request, check_paths, parse
from jaxcl.runs.folder import (
    CHECKPOINTS,
    RunFolder,
    begin,
    default_path,
    discard,
    examine,
    finished,
    mark,
    read_records,
)
from jaxcl.signals import Terminated, ignore_more, terminable

#: ``(config, folder) -> None``
Act = Callable[[Any, Any], None]
Words = ParamSpec("Words")


#: What the system says of a disk that is full or may not be written, and of a bad path.
_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
_REFUSALS = *_FULL, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG


def is_bad_input(error: BaseException) -> bool:
    """Whether it is bad input, or a disk that refuses, and so no bug."""
    refused = isinstance(error, OSError) and error.errno in _REFUSALS
    return refused or isinstance(error, InputError)


def one_line(error: BaseException) -> str:
    """The message without line breaks; the kind of error if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def refusing(command: Callable[Words, int]) -> Callable[Words, int]:
    """The same command, which shows bad input in one line and returns exit code 2."""

    @functools.wraps(command)
    def refusing_command(*args: Words.args, **options: Words.kwargs) -> int:
        try:
            return command(*args, **options)
        except Exception as error:
            if not is_bad_input(error):
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2

    return refusing_command


@refusing
def main(
    experiment: Experiment,
    argv: Sequence[str] | None = None,
    *,
    run: Act | None = None,
    report: Act | None = None,
) -> int:
    """Run an experiment from its command line; the exit code.

    Args:
      experiment: its settings.
      argv: the command line without the program; ``sys.argv[1:]`` if absent.
      run: does every run that has no line of results yet; that of ``MODULE.run`` if absent.
        :class:`jaxcl.errors.InputError` is shown as one line, and leaves no new folder.
      report: makes tables, figures and page of the results, also when a finished run is
        asked for again; that of ``MODULE.report`` if absent.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    request = parse(experiment, words)
    acts = (
        run or import_module(f"{experiment.module}.run").run,
        report or import_module(f"{experiment.module}.report").report,
    )
    return start(experiment, request, *acts, words, leave=argv is None)


def start(
    experiment: Experiment,
    request: Request,
    run: Act,
    report: Act,
    argv: Sequence[str],
    *,
    leave: bool = False,
) -> int:
    """Run what is asked for, or go on with it, or make its report again.

    With ``leave`` the process ends here after a signal.
    """
    folder = folder_of(experiment, request)
    if examine(folder) != "finished":  # refuses before anything is created
        check_paths(experiment, request.config)
    with lock_folder(folder.path, remedy="choose another --out") as made:
        if examine(folder) == "finished":
            print(f"{folder.path} is finished; making its report again.")
            report(folder.config, folder)
            return 0
        command = shlex.join(["python", "-m", experiment.module, *argv])
        return _run(folder, run, report, command, made=made, leave=leave)


def folder_of(experiment: Experiment, request: Request) -> RunFolder:
    """The folder that a command line asks for."""
    folder = RunFolder(
        OUTPUTS,
        experiment.name,
        request.preset,
        request.config,
        cosmetic_fields=experiment.cosmetic_fields,
        path_fields=tuple(experiment.path_fields),
    )
    return folder._replace(path=request.out or default_path(folder, OUTPUTS))


def _run(
    folder: RunFolder, run: Act, report: Act, command: str, *, made: bool, leave: bool
) -> int:
    """The run itself, its status and its report."""
    known = len(finished(folder))  # refuses a damaged file before it is touched
    begin(folder, command)
    if known:
        print(f"{folder.path}: {known} runs are there, going on.")
    with terminable():
        try:
            run(folder.config, folder)
            records = read_records(folder)
            lost = [r["run"] for r in records if r.get("status") == "diverged"]
            ended = "diverged" if lost else "done"
            status = mark(folder, ended, runs=len(records), diverged=lost)
            report(folder.config, folder)  # its page says how the run ended
        except KeyboardInterrupt as error:
            ignore_more()
            mark(folder, "interrupted")
            code = tell_end(error, folder.path)
            if leave:  # Python's own exit crashes where XLA was compiling meanwhile
                sys.stdout.flush()
                os._exit(code)
            return code
        except (Exception, SystemExit) as error:
            bad = is_bad_input(error)
            if not (bad and discard(folder, made=made)):
                said = one_line(error) if bad else traceback.format_exc()
                with contextlib.suppress(OSError):  # the disk may be what refuses
                    mark(folder, "failed", error=said)
            raise
    shutil.rmtree(folder.path / CHECKPOINTS, ignore_errors=True)
    if lost:
        names = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        print(f"{len(lost)} of {len(records)} runs diverged: {names}")
    print(f"{len(records)} runs in {status['seconds']:.0f} s: {folder.path}")
    return 0


def tell_end(error: KeyboardInterrupt, folder: Any = None) -> int:
    """Say how a run goes on, if it is one; the exit code: 0 after SIGTERM, else 130."""
    asked = isinstance(error, Terminated)
    word = "terminated" if asked else "interrupted"
    said = f"the same command goes on from here: {folder}"
    said = "nothing was kept" if folder is None else said
    print(f"{word}; {said}", file=sys.stderr, flush=True)
    return 0 if asked else 130
