"""A folder per run: everything needed to read it later, to trust it and to go on.

============================  ======================================================
``config.json``               experiment, preset and the resolved settings
``environment.json``          versions, machine, devices, commit, command
``status.json``               running | done | diverged | interrupted | failed; times
``results.jsonl``             one line per run with its commit, only ever appended to
``checkpoints/``              unfinished runs; removed when all are done
``tables/ figures/``          made from the results
``report.html``               likewise
============================  ======================================================

Files appear complete or not at all. A folder belongs to one configuration, and to one
process at a time: the lock is held by the operating system, so a killed process, here or
on another machine, leaves none behind. A kill may tear the last line of the results; it
is dropped, and that run is run again.

What makes a configuration are its fields, without the *cosmetic* ones, which cannot change
a result (how many processes, how often a checkpoint). Of a *path* field, the folder of the
data, the last component counts, and with :func:`check_data_hash` the data that were found
there. So anybody can take up a committed folder, on another machine, as long as their data
lie in a folder of the same name.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcl.errors import InputError, require
from jaxcl.files import differences, plain, read_lines, write_json
from jaxcl.runs.environment import commit, describe_environment

#: The folder, inside a run's, of what unfinished runs need to go on.
CHECKPOINTS = "checkpoints"


class RunFolder(NamedTuple):
    """Where a run lives. ``experiment``, ``preset`` and ``config`` stand in it too."""

    path: Path
    experiment: str
    preset: str
    config: Any  # a frozen dataclass
    cosmetic_fields: tuple[str, ...] = ()  # fields that cannot change a result
    path_fields: tuple[str, ...] = ()  # fields of which the last component counts


def default_path(folder: RunFolder, root: Path) -> Path:
    """``root/<experiment>-<preset>-<hash of what makes the configuration>``."""
    text = json.dumps(_identity(folder, plain(folder.config)), sort_keys=True)
    digest = hashlib.sha256(f"{folder.experiment} {text}".encode()).hexdigest()[:8]
    return root / f"{folder.experiment}-{folder.preset}-{digest}"


def examine(folder: RunFolder) -> str:
    """What is there: ``new``, ``finished`` or ``unfinished``; writes nothing.

    Something else, and a run of another configuration, are refused.
    """
    path = folder.path
    if not path.exists():
        return "new"
    _require(path.is_dir(), path, "is a file")
    if not (path / "config.json").exists():
        empty = all(entry.name == ".lock" for entry in path.iterdir())
        _require(empty, path, "is not the folder of a run")
        return "new"
    held = read_json(path / "config.json", config=dict)
    other = held.get("experiment")
    _require(other == folder.experiment, path, f"holds a run of {other}")
    configs = held.get("config", {}), plain(folder.config)
    different = differences(*(_identity(folder, config) for config in configs))
    _require(not different, path, f"holds another configuration ({different})")
    marked = read_json(path / "status.json", default={}, runs=int)
    ended = marked.get("status") in ("done", "diverged")
    complete = ended and len(read_records(path)) >= marked.get("runs", 0)
    return "finished" if complete else "unfinished"


def begin(folder: RunFolder, command: str) -> None:
    """Write what the run is and where it runs, drop a torn line, mark it running."""
    path = folder.path
    environment = describe_environment(command)
    before = read_json(path / "environment.json", default={}, versions=dict)
    _tell_changes(path, before, environment)
    if "data" in before:
        environment["data"] = before["data"]
    names = "experiment", "preset", "config"
    write_json(path / "config.json", {name: getattr(folder, name) for name in names})
    write_json(path / "environment.json", environment)
    results = path / "results.jsonl"
    if results.exists():
        os.truncate(results, results.read_bytes().rfind(b"\n") + 1)
    mark(folder, "running")


def _tell_changes(path: Path, before: dict, now: dict) -> None:
    """Say that lines of this folder will come from different programs or machines."""
    single = ("commit", "cpu", "devices", "backend", "x64", "matmul_precision")
    old, new = (
        here.get("versions", {}) | {name: here.get(name) for name in single}
        for here in (before, now)
    )
    changed = "; ".join(
        f"{name} {old[name]} -> {new[name]}"
        for name in new
        if old.get(name) not in (None, new[name])
    )
    if changed:
        print(f"note: earlier lines in {path} were made otherwise: {changed}")


def check_data_hash(folder: RunFolder, arrays: Iterable[Any]) -> None:
    """Write the checksum of the data into ``environment.json``; refuse other data later.

    The order of the arrays must always be the same.
    """
    path, found = folder.path / "environment.json", _checksum(arrays)
    environment = read_json(path, default={})
    held = environment.setdefault("data", found)
    _require(held == found, folder.path, f"holds runs on other data ({held})")
    write_json(path, environment)


def _checksum(arrays: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array)
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(values.data)
    return f"sha256:{digest.hexdigest()}"


def discard(folder: RunFolder, *, made: bool) -> bool:
    """Undo :func:`begin` in a folder where nothing else is; whether it was so.

    The folder itself is removed only if this process has made it.
    """
    own = ("config.json", "environment.json", "status.json", ".lock")
    if any(entry.name not in own for entry in folder.path.iterdir()):
        return False  # results, or a checkpoint of the first run
    for name in own:
        (folder.path / name).unlink(missing_ok=True)
    if made:
        with suppress(OSError):  # something came meanwhile
            folder.path.rmdir()
    return True


def mark(folder: RunFolder, status: str, **details: Any) -> dict[str, Any]:
    """Write ``status.json``: the state, when it began and ended, and ``details``."""
    path = folder.path / "status.json"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    numbers = {"seconds": int | float, "clock": int | float}
    before = read_json(path, default={}, **numbers)
    spent, clock = before.get("seconds", 0.0), time.time()
    if status == "running":
        times = {"resumed": now, "seconds": spent, "pid": os.getpid(), "clock": clock}
    else:  # a clock may have been put back
        spent += max(clock - before.get("clock", clock), 0.0)
        times = {"ended": now, "seconds": round(spent, 1)}
    started = before.get("started", now)
    marked = {"status": status, "started": started, **times, **details}
    write_json(path, marked)
    return marked


def append(folder: RunFolder, records: Iterable[dict[str, Any]]) -> None:
    """Add finished runs to ``results.jsonl``: once this returns, they are on the disk.

    Every line gets the ``commit`` of the code that made it. Arrays become lists, float32
    values keep their shortest exact digits, and values that are not finite become null.
    The file is read once; again only if somebody else has changed it.

    Raises:
      ValueError: if a record has no ``run``, or one that is there already.
    """
    path = folder.path / "results.jsonl"
    lines = [{**plain(record), "commit": commit()} for record in records]
    names = [line.get("run", "") for line in lines]
    known = _names(path)
    for place, name in enumerate(names):
        fresh = name and name not in known and name not in names[:place]
        wrong = f"{name!r} is not a name for a run, or it has finished before"
        require(fresh, "append", wrong)
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    with open(path, "a", encoding="utf-8") as results:
        results.write(text)
        results.flush()
        os.fsync(results.fileno())
        known.update(names)
        _known[path] = _sign(os.fstat(results.fileno())), known


_known: dict[Path, tuple[tuple, set[str]]] = {}  # signature and names of a file


def _names(path: Path) -> set[str]:
    """Names in the file, read again only if it is not as :func:`append` left it."""
    sign, names = _known.get(path, ((), set()))
    as_left = path.exists() and sign == _sign(path.stat())
    return names if as_left else finished(path.parent)


def _sign(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def read_records(folder: RunFolder | Path) -> list[dict[str, Any]]:
    """All finished runs; a torn last line is passed over, another damaged one refused."""
    path = (folder.path if isinstance(folder, RunFolder) else folder) / "results.jsonl"
    if not path.exists():
        return []
    return read_lines(path, remedy="delete that line to run it again")


def finished(folder: RunFolder | Path) -> set[str]:
    """Names of the runs that are in ``results.jsonl``; a line without one is refused."""
    path = folder.path if isinstance(folder, RunFolder) else folder
    names: list[Any] = [record.get("run") for record in read_records(path)]
    for number, name in enumerate(names, 1):
        if not isinstance(name, str):
            lacking = f"{path / 'results.jsonl'}, line {number}, has no name of a run"
            msg = f"{lacking}; delete that line to run it again."
            raise InputError(msg)
    return {*names}


def read_json(
    path: Path, *, default: dict[str, Any] | None = None, **kinds: Any
) -> dict[str, Any]:
    """A JSON object, or the default for no file; InputError if it is damaged.

    ``kinds`` are those of fields that may be absent, such as ``runs=int``.
    """
    if default is not None and not path.exists():
        return default
    held: Any = None
    with suppress(ValueError, RecursionError, IsADirectoryError):
        held = json.loads(path.read_text(encoding="utf-8"))
    fits = isinstance(held, dict) and all(
        isinstance(held[name], kind) for name, kind in kinds.items() if name in held
    )
    _require(fits, path, "is damaged")
    return held


def _require(holds: Any, path: Path, why: str) -> None:
    if not holds:
        msg = f"{path} {why}; choose another --out."
        raise InputError(msg)


def _identity(folder: RunFolder, config: dict[str, Any]) -> dict[str, Any]:
    """What two configurations must have in common to share a folder."""
    cosmetic = folder.cosmetic_fields
    kept = {name: value for name, value in config.items() if name not in cosmetic}
    for name in folder.path_fields:
        if kept.get(name):
            kept[name] = os.path.basename(os.path.abspath(str(kept[name])))
    return kept
