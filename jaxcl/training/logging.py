"""Logs of a run: a line per report in a file, TensorBoard, and progress."""

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxcl.errors import InputError, WriteError

LINE_SECONDS = 30.0  # between lines in a log, besides the first and every tenth of all


@contextmanager
def progress(total: int, label: str, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show progress on stderr; yields ``advance(steps, note)``.

    Steps may be fractions; the integer part is shown. Rate and remaining time are computed
    without the steps of earlier runs, ``done``. ``advance`` may be called from another
    thread.
    """
    console = Console(stderr=True)
    show = _bar if console.is_terminal else _lines
    with show(console, total, label, done) as update:
        started, reached = time.monotonic(), done

        def advance(steps: int | Fraction = 1, note: str = "") -> None:
            nonlocal reached
            reached += steps
            seconds = time.monotonic() - started
            update(reached, pace(reached - done, total - reached, seconds), note)

        yield advance


def pace(done: int | Fraction, left: int | Fraction, seconds: float) -> str:
    """Rate and remaining time, such as ``2.5/s, 1:20 left``."""
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    number = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
    speed = f"{number}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
    minutes, rest = divmod(round(max(left, 0) / rate), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"{speed}, {clock} left" if left > 0 else speed


@contextmanager
def _bar(console: Console, total: int, label: str, done: int):
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


@contextmanager
def metrics_file(
    path: str | Path, *, keep: Callable[[dict[str, Any]], bool]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a ``write(line)`` that appends to a file of JSON lines.

    A run that resumes from a checkpoint repeats the steps after it; lines that it will
    write again are removed first, so that each is in the file once.

    Args:
      path: of the file; created if absent.
      keep: which of the existing lines to keep. An incomplete last line is removed.

    Raises:
      ValueError: for a line that ``keep`` cannot read.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def stays(number: int, line: bytes) -> bool:
        try:
            return keep(json.loads(line))
        except (ValueError, KeyError, TypeError):
            msg = (
                f"metrics_file: {path}, line {number}, is damaged or of another program; "
                "give another folder, or take the file away."
            )
            raise InputError(msg) from None

    if path.exists():
        whole = path.read_bytes().split(b"\n")[:-1]
        kept = [line for number, line in enumerate(whole, 1) if stays(number, line)]
        partial = path.with_name(f".{path.name}.tmp")
        partial.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(partial, path)
    with path.open("a") as file:

        def write(line: Mapping[str, Any]) -> None:
            text = json.dumps(_plain(line), allow_nan=False) + "\n"
            try:
                file.write(text)
                file.flush()
            except OSError as error:
                msg = (
                    f"learn: {path} could not be written ({error}); make room and start "
                    "again: it goes on from the last checkpoint."
                )
                raise WriteError(msg) from error

        yield write


@contextmanager
def tensorboard(
    folder: str | Path | None,
) -> Iterator[Callable[[str, float, int], None]]:
    """Yield a ``scalar(name, value, step)``; it does nothing without a folder.

    Raises:
      ImportError: if a folder is given and ``tensorboardX`` is not installed.
    """
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


def bar(total: int, *, done: int, quiet: bool):
    """The progress of :mod:`jaxcl.training.logging` in steps, or nothing."""
    if quiet:
        return nullcontext(lambda steps=1, note="": None)
    return progress(total, "steps", done=done)


def _plain(value: Any) -> Any:
    """The value for JSON: null if it is not a finite number."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


__all__ = ["LINE_SECONDS", "bar", "metrics_file", "pace", "progress", "tensorboard"]
