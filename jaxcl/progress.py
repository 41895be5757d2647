"""Progress on stderr: a bar on a terminal, lines in a log."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_SECONDS = 30.0  # between lines in a log, besides the first and every tenth of all

#: How a note ends that comes with steps of an earlier process.
RESUMED = "resumed"


@contextmanager
def progress(total: int, label: str, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show progress on stderr; yields ``advance(steps, note)``.

    Steps may be fractions; the integer part is shown. ``done`` of them were done by earlier
    processes, as are those that come with a note that ends in ``resumed``. Rate and
    remaining time are computed from the steps after the first call: that one takes as long
    as compiling does. With 0 steps only the note is shown. ``advance`` may be called from
    another thread.
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
            elif began is None and steps:
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
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
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
