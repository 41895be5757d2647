"""Logs of a run: a line per report in a file, and TensorBoard."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jaxcl.errors import WriteError, require, warn
from jaxcl.files import plain, read_lines, write_text
from jaxcl.progress import progress


def lines_so_far(path: Path, done: int, expected: int) -> list[dict[str, Any]]:
    """The lines of a file of metrics, which may be absent, up to the position ``done``.

    A run repeats the steps after it. Fewer than ``expected`` by its checkpoint are warned
    of; what is not a file of metrics is refused.
    """
    remedy = "take the file away, or give another folder"
    unusual = path.is_symlink() or (path.exists() and not path.is_file())
    require(not unusual, "learn", f"{path} must be a regular file; {remedy}")
    lines = read_lines(path, remedy=remedy) if path.exists() else []
    known = all(isinstance(line.get("at"), int | float) for line in lines)
    require(known, "learn", f"{path} has lines of another program; {remedy}")
    kept = [line for line in lines if line["at"] <= done]
    if len(kept) < expected:
        warn(
            f"learn: {path} has {len(kept)} of {expected} lines up to the last checkpoint; "
            "the others are lost. The result does not depend on them."
        )
    return kept


@contextmanager
def metrics_file(
    path: Path, kept: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a ``write(line)`` that appends to a file of JSON lines.

    It begins with the lines ``kept``, in place of those it has: a run that resumes from a
    checkpoint writes the lines after it again.
    """
    text_of = lambda line: json.dumps(plain(line), allow_nan=False) + "\n"

    @contextmanager
    def explained():
        try:
            yield
        except OSError as error:
            msg = (
                f"learn: {path} could not be written ({error}); make room and start "
                "again: it goes on from the last checkpoint."
            )
            raise WriteError(msg) from error

    with explained():
        write_text(path, "".join(map(text_of, kept)))
        file = path.open("a")
    with file:

        def write(line: Mapping[str, Any]) -> None:
            with explained():
                file.write(text_of(line))
                file.flush()

        yield write


@contextmanager
def tensorboard(
    folder: str | Path | None,
) -> Iterator[Callable[[str, float, int], None]]:
    """Yield a ``scalar(name, value, step)``; it does nothing without a folder."""
    if folder is None:
        yield lambda name, value, step: None
        return
    try:
        writers = importlib.import_module("tensorboardX")
    except ImportError as error:
        msg = "tensorboard: needs the extra tensorboard; pip install '.[tensorboard]'."
        raise ImportError(msg) from error
    with writers.SummaryWriter(str(folder)) as writer:
        yield lambda name, value, step: writer.add_scalar(name, value, step)


def bar(total: int, *, quiet: bool):
    """The progress of a run in steps, or nothing."""
    return (
        nullcontext(lambda steps=1, note="": None)
        if quiet
        else progress(total, "steps")
    )
