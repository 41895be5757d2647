"""A folder per run: everything needed to read it later, to trust it and to go on.

============================  ======================================================
``config.json``               experiment, preset and the resolved settings
``environment.json``          versions, machine, devices, commit, command
``status.json``               running | done | diverged | failed, times, what happened
``results.jsonl``             one line per run, only ever appended to
``tables/ figures/``          made from the results
``report.html``               likewise
============================  ======================================================

Files appear whole or not at all. A folder belongs to one configuration, and to one
process at a time: the lock is held by the operating system, so a killed process, here or
on another machine, leaves none behind. A kill may tear the last line of the results; it
is dropped, and that run is run again.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.environment import describe_environment

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None


class InputError(ValueError):
    """What the caller asked for cannot be done; the message is one line."""


class RunFolder(NamedTuple):
    """Where a run lives. ``experiment``, ``preset`` and ``config`` stand in it too."""

    path: Path
    experiment: str
    preset: str
    config: Any  # a frozen dataclass


def default_path(experiment: str, preset: str, config: Any, root: Path) -> Path:
    """``root/<experiment>-<preset>-<hash of the resolved settings>``."""
    text = json.dumps(plain(config), sort_keys=True)
    digest = hashlib.sha256(f"{experiment} {text}".encode()).hexdigest()[:8]
    return root / f"{experiment}-{preset}-{digest}"


def examine(folder: RunFolder) -> str:
    """What is there: ``new``, ``finished`` or ``unfinished``; writes nothing.

    Raises:
      InputError: if the place holds something else, or another configuration.
    """
    path = folder.path
    if not path.exists():
        return "new"
    if not path.is_dir():
        msg = f"{path} is a file; choose another --out."
        raise InputError(msg)
    if not (path / "config.json").exists():
        if any(entry.name != ".lock" for entry in path.iterdir()):
            msg = f"{path} is not the folder of a run; choose another --out."
            raise InputError(msg)
        return "new"
    held, wanted = read_json(path / "config.json"), _identity(folder)
    if held.get("experiment") != wanted["experiment"]:
        msg = f"{path} holds a run of {held.get('experiment')}; choose another --out."
        raise InputError(msg)
    here, asked = held.get("config", {}), wanted["config"]
    different = [
        f"{name} {_short(here.get(name))}, not {_short(asked.get(name))}"
        for name in {**asked, **here}
        if here.get(name) != asked.get(name)
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        msg = (
            f"{path} holds another configuration ({'; '.join(different[:3])}{more}); "
            "choose another --out."
        )
        raise InputError(msg)
    status = path / "status.json"
    ended = status.exists() and read_json(status)["status"] in ("done", "diverged")
    return "finished" if ended else "unfinished"


@contextmanager
def claim(folder: RunFolder) -> Iterator[None]:
    """Hold the folder, created if absent, against all other processes.

    Raises:
      InputError: if another process holds it; the message names that process.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with open(folder.path / ".lock", "a+") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                msg = f"{folder.path} is in use by {owner}; wait, or choose another --out."
                raise InputError(msg) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        yield


def begin(folder: RunFolder, command: str) -> None:
    """Write what the run is and where it runs, drop a torn line, mark it running."""
    path = folder.path
    environment = describe_environment(command)
    earlier = path / "environment.json"
    if earlier.exists() and (versions := read_json(earlier)["versions"]):
        changed = [
            f"{name} {versions[name]} -> {now}"
            for name, now in environment["versions"].items()
            if versions.get(name, now) != now
        ]
        if changed:
            print(f"note: earlier runs in {path} had other versions: {changed}")
    write_json(path / "config.json", _identity(folder))
    write_json(path / "environment.json", environment)
    results = path / "results.jsonl"
    if results.exists():
        whole = results.read_bytes()
        torn = len(whole) - (whole.rfind(b"\n") + 1)
        if torn:
            os.truncate(results, len(whole) - torn)
    mark(folder, "running")


def discard(folder: RunFolder) -> None:
    """Undo :func:`begin` in a new folder that has no results: leave no trace."""
    for name in ("config.json", "environment.json", "status.json", ".lock"):
        (folder.path / name).unlink(missing_ok=True)
    if not any(folder.path.iterdir()):
        folder.path.rmdir()


def mark(folder: RunFolder, status: str, **details: Any) -> None:
    """Write ``status.json``: the state, when it began and ended, and ``details``."""
    path = folder.path / "status.json"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = read_json(path) if path.exists() else {}
    if status == "running":
        spent = before.get("seconds", 0.0)
        first = before.get("started", now)
        times = {"started": first, "resumed": now, "seconds": spent, "pid": os.getpid()}
        times["clock"] = time.time()
    else:
        spent = before.get("seconds", 0.0) + time.time() - before.get("clock", math.inf)
        times = {
            "started": before.get("started", now),
            "ended": now,
            "seconds": round(max(spent, 0.0), 1),
        }
    write_json(path, {"status": status, **times, **details})


def append(folder: RunFolder, records: Iterable[dict[str, Any]]) -> None:
    """Add finished runs to ``results.jsonl``: once this returns, they are on the disk.

    Arrays become lists, float32 values keep their shortest exact digits, and values that
    are no numbers become null.

    Raises:
      ValueError: if a record has no ``run``, or one that is there already.
    """
    records = [plain(record) for record in records]
    known = finished(folder)
    for record in records:
        name = record.get("run")
        if not name or name in known:
            msg = f"append: {name!r} is no name for a run, or it has finished before."
            raise ValueError(msg)
        known.add(name)
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    with open(folder.path / "results.jsonl", "a") as results:
        results.write(lines)
        results.flush()
        os.fsync(results.fileno())


def read_records(folder: RunFolder | Path) -> list[dict[str, Any]]:
    """All finished runs; a torn last line is passed over.

    Raises:
      InputError: if another line is damaged.
    """
    path = (folder.path if isinstance(folder, RunFolder) else folder) / "results.jsonl"
    if not path.exists():
        return []
    *whole, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(whole, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            msg = (
                f"{path}, line {number}, is damaged; delete that line to run it again."
            )
            raise InputError(msg) from None
    return records


def finished(folder: RunFolder | Path) -> set[str]:
    """Names of the runs that are in ``results.jsonl``."""
    return {record["run"] for record in read_records(folder)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file; :class:`InputError` if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        msg = f"{path} is damaged; choose another --out."
        raise InputError(msg) from None


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(plain(values), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text)
    os.replace(partial, path)


def plain(value: Any) -> Any:
    """What JSON can hold: lists for arrays, null for what is no number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    array = np.asarray(value)
    if array.dtype.kind in "fV":  # V: bfloat16 and its like
        wide = array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)
        return _numbers(wide)
    return array.tolist()


def _numbers(array: np.ndarray) -> Any:
    if array.ndim:
        return [_numbers(row) for row in array]
    return float(str(array)) if np.isfinite(array) else None


def _identity(folder: RunFolder) -> dict[str, Any]:
    return {
        "experiment": folder.experiment,
        "preset": folder.preset,
        "config": plain(folder.config),
    }


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


__all__ = [
    "InputError",
    "RunFolder",
    "append",
    "begin",
    "claim",
    "default_path",
    "discard",
    "examine",
    "finished",
    "mark",
    "plain",
    "read_json",
    "read_records",
    "write_json",
    "write_text",
]
