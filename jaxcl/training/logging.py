"""Logs of a run: a line per report in a file, TensorBoard, and a progress bar."""

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.errors import InputError, WriteError
from jaxcl.training.progress import progress


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
    """The progress of :mod:`jaxcl.training.progress` in steps, or nothing."""
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


__all__ = ["bar", "metrics_file", "tensorboard"]
