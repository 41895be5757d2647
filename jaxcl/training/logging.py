"""Logs of a run: a line per report in a file, TensorBoard, and progress."""

import importlib
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxcl.errors import WriteError, require
from jaxcl.training.files import plain, read_lines, write_text

LINE_SECONDS = 30.0  # between lines in a log, besides the first and every tenth of all

#: How a note ends that comes with steps of an earlier process.
RESUMED = "resumed"


@contextmanager
def progress(total: int, label: str, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show progress on stderr; yields ``advance(steps, note)``.

    Steps may be fractions; the integer part is shown. ``done`` of them were done by earlier
    processes, as are those that come with a note that ends in ``resumed``. Rate and
    remaining time are computed from the steps after the first call: that one takes as long
    as compiling does. ``advance`` may be called from another thread.
    """
    console = Console(stderr=True)
    show = _bar if console.is_terminal else _lines
    with show(console, total, label, done) as update:
        reached, before, began = done, done, None

        def advance(steps: int | Fraction = 1, note: str = "") -> None:
            nonlocal reached, before, began
            reached += steps
            now, earlier = time.monotonic(), note.endswith(RESUMED)
            if earlier:
                before += steps
            elif began is None:
                before, began = before + steps, now
            seconds = 0.0 if began is None else now - began
            update(reached, pace(reached - before, total - reached, seconds), note)

        yield advance


def pace(done: int | Fraction, left: int | Fraction, seconds: float) -> str:
    """Rate and remaining time, such as ``2.5/s, 1:20 left``."""
    if done <= 0 or seconds <= 0 or done < min(1, (done + left) / 100):
        return ""  # so far most of the time went into compiling
    rate = done / seconds
    number = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
    speed = f"{number}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
    minutes, rest = divmod(round(max(left, 0) / rate), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"{speed}, {clock} left" if left > 0 else speed


@contextmanager
def _bar(console: Console, total: int, label: str, done: int):
    """A bar on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, completed=done, pace="", note="")
        yield lambda reached, pace, note: bar.update(
            task, completed=reached, pace=pace, note=note
        )


@contextmanager
def _lines(_console: Console, total: int, label: str, done: int):
    """Lines in a log."""
    said, tenth = -math.inf, 10 * done // max(total, 1)

    def update(reached: int | Fraction, pace: str, note: str) -> None:
        nonlocal said, tenth
        now, reached_tenth = time.monotonic(), 10 * reached // max(total, 1)
        if reached_tenth > tenth or now - said > LINE_SECONDS:
            said, tenth = now, reached_tenth
            words = ", ".join(filter(None, (pace, note)))
            text = f"{label}: {int(reached)}/{total}" + (f" ({words})" if words else "")
            print(text, file=sys.stderr, flush=True)

    yield update


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
        warnings.warn(
            f"learn: {path} has {len(kept)} of {expected} lines up to the last checkpoint; "
            "the others are lost. The result does not depend on them.",
            stacklevel=3,
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
