"""A grid of settings, or a list of them, as one job: a run of a module for each.

    jaxcl batch MODULE PRESET [--field value ...]
        --grid FIELD VALUE VALUE ...    once or more: every combination of the values
        --each FILE                     a JSON object of fields on each line
        --parallel N                    runs at a time; else 1, and on slurm all
        --on slurm                      as an array of jobs, by submitit; local to try that
        --slurm NAME=VALUE ...          of submitit: timeout_min=60 slurm_partition=gpu ...
        --out FOLDER                    of the batch; else outputs/MODULE-PRESET-batch

Every run is ``python -m MODULE PRESET --field value ... --out FOLDER/SETTINGS``. Where the
module is an experiment (jaxcl.runs.experiment), settings are checked before the first run.
The same command again skips the runs that finished and goes on with the others. At the end
``runs.csv`` holds every line of all results in one table; a run that failed is named, with
the file of its output, and the exit code is 1. Seeds need no batch: an experiment packs its
own, side by side in one program where its networks allow that.

    jaxcl batch experiments.class_stream cifar --data FOLDER --grid rho 0.02 0.05 0.1
"""

import importlib
import importlib.util
import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

from jaxcl.errors import InputError, require
from jaxcl.files import write_text
from jaxcl.progress import progress
from jaxcl.runs import launch
from jaxcl.runs.command import folder_of, refusing, tell_end
from jaxcl.runs.experiment import (
    MOST_RUNS,
    OUTPUTS,
    Experiment,
    check_names,
    check_paths,
    parse,
)
from jaxcl.runs.folder import examine, read_json, read_records
from jaxcl.signals import ignore_more, terminable

#: The options of a batch, each with its words where it is not given.
DEFAULTS = {"each": [""], "on": ["here"], "parallel": [""], "out": [""], "slurm": []}
OWN = ("grid", *DEFAULTS)
PLACES_TO_RUN = ("here", "slurm", "local")
ENDED = ("done", "diverged")  # states of a run

#: Fields and their values, as words of a command line.
Settings = Mapping[str, Sequence[str]]


class Batch(NamedTuple):
    """What a command line asks for."""

    module: str
    preset: str
    shared: Settings  # of all runs
    each: Sequence[Settings]  # of every run
    on: str
    parallel: int | None
    slurm: dict[str, str | int]
    out: Path


@refusing
def main(argv: Sequence[str] | None = None) -> int:
    """Do the batch; 0 if every run ended, 1 if some failed, 2 for bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words) or not words:
        print((__doc__ or "").strip())
        return 0
    batch = read_words(words)
    experiment = experiment_of(batch.module)
    todo = [one for one in batch.each if not is_finished(batch, one, experiment)]
    return run_batch(batch, todo)


# ------------------------------------------------------------------ the command line

_require = lambda holds, message: require(holds, "batch", message)


def read_words(words: Sequence[str]) -> Batch:
    """What the words ask for; :class:`jaxcl.errors.InputError` if it is not understood."""
    _check_text(words)
    preset_given = len(words) > 1 and words[1][:1] not in ("", "-")
    _require(preset_given, "expected MODULE PRESET --grid FIELD VALUE ...; see --help")
    module, preset, *rest = words
    groups = flags(rest)
    grids = [values for flag, values in groups if flag == "grid"]
    shared = {flag: values for flag, values in groups if flag != "grid"}
    own = {flag: shared.pop(flag, default) for flag, default in DEFAULTS.items()}
    pairs = own.pop("slurm")
    for flag, given in own.items():
        came = shlex.join(given)
        _require(len(given) == 1, f"--{flag}: expected one word, got {came!r}")
    single = "each", "on", "parallel", "out"
    listed, on, parallel, place = (own[flag][0] for flag in single)
    each = every_setting(grids, listed, shared)
    check_names("batch: --on", [on], PLACES_TO_RUN)
    counts = parallel.isdecimal() and 0 < int(parallel) < MOST_RUNS
    wanted = f"--parallel: expected a number above 0, got {parallel!r}"
    _require(counts or not parallel, wanted)
    slurm = dict(map(_pair, pairs))
    here = "--slurm: needs --on slurm; without it the runs take place here"
    _require(on != "here" or not slurm, here)
    default = OUTPUTS / f"{module.removeprefix('experiments.')}-{preset}-batch"
    out = Path(place) if place else default
    _require(out.is_dir() or not out.exists(), f"--out: {out} is not a folder")
    at_once = int(parallel) if parallel else None
    return Batch(module, preset, shared, each, on, at_once, slurm, out)


def flags(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """``--field value ...`` by field, hyphens read as underscores."""
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            groups.append((flag.replace("-", "_"), [value] if equals else []))
        else:
            given = "settings are given as --field value"
            _require(groups, f"unexpected {word!r}; {given}")
            groups[-1][1].append(word)
    return groups


def every_setting(
    grids: Sequence[Sequence[str]], path: str, shared: Settings
) -> list[Settings]:
    """Every line of the file with every combination of the grids."""
    for grid in grids:
        wanted = f"expected a field and its values, got {shlex.join(grid)!r}"
        _require(len(grid) > 1, f"--grid: {wanted}")
    # A run is the union of one dictionary from each axis: of a line, and of each grid.
    axes = [read_each(path) if path else [{}]]
    for field, *values in grids:
        axes.append([{_plain_name(field): [value]} for value in values])
    varied = [field for axis in axes for field in dict.fromkeys(chain(*axis))]
    for field, count in Counter([*shared, *varied]).items():
        known = field not in OWN
        _require(known, f"{field} is not a field of the experiment; see --help")
        _require(count == 1, f"{field} is given in two ways; leave one out")
    few = math.prod(map(len, axes)) <= MOST_RUNS
    _require(few, f"expected at most {MOST_RUNS} runs, got more; leave values out")
    each: list[Settings] = [
        {field: words for part in parts for field, words in part.items()}
        for parts in product(*axes)
    ]
    varies = each and all(each)
    _require(varies, "nothing varies; give --grid FIELD VALUE ... or --each FILE")
    names = Counter(map(name_of, each))
    _check_text(names)
    for name, count in names.items():
        _require(count == 1, f"{name} is there twice; leave one out")
        fits = (
            len(name.encode()) <= 200
        )  # systems allow 255 bytes, some of them for .txt
        _require(fits, f"too much varies for the name of a folder: {name[:60]}")
    return each


def read_each(path: str) -> list[dict[str, list[str]]]:
    """The settings on each line of a file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        msg = f"batch: --each: cannot read {path}: {why}."
        raise InputError(msg) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            found.append({_plain_name(f): _as_words(v) for f, v in fields.items()})
        except (ValueError, AttributeError, RecursionError, TypeError):
            msg = (
                f"batch: --each: {path}, line {number} is not a JSON object of fields."
            )
            raise InputError(msg) from None
    return found


def _pair(word: str) -> tuple[str, str | int]:
    """``name=value``, integers as such."""
    name, equals, value = word.partition("=")
    _require(equals and name, f"--slurm: expected NAME=VALUE, got {word!r}")
    return name, int(value) if value.isdecimal() and len(value) < 10 else value


def _plain_name(field: str) -> str:
    """``num_steps``, however it was written."""
    return field.lstrip("-").replace("-", "_")


def _as_words(value: Any) -> list[str]:
    """A JSON value as words of a command line."""
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, list | dict) for part in parts):
        raise TypeError
    return [str(part) for part in parts]


def name_of(settings: Settings) -> str:
    """``rho=0.05,strength=10``, the name of a run's folder."""
    parts = [f"{field}={'+'.join(values)}" for field, values in settings.items()]
    return ",".join(parts).replace("/", "-")


def _check_text(words: Iterable[str]) -> None:
    for word in words:  # a NUL, for one, cannot be passed to a process
        wanted = f"expected text that can be printed, got {word!r}"
        _require(word.isprintable(), wanted)


# ------------------------------------------------------------------ the runs


def experiment_of(module: str) -> Experiment | None:
    """``EXPERIMENT`` of the module ``config`` of a package; None for other modules.

    These are not imported: a script might begin to run. The current folder is searched, as
    by the ``python -m`` of a run; a console script has its own folder in that place.
    """
    here = os.getcwd()
    if here not in sys.path and not sys.flags.safe_path:
        sys.path.insert(0, here)
    found = None
    with suppress(ImportError, ValueError, AttributeError):
        found = importlib.util.find_spec(module)
    _require(found, f"expected a module that python -m finds, got {module!r}")
    config = f"{module}.config"
    package = found and found.submodule_search_locations
    if not package or not importlib.util.find_spec(config):
        return None
    return getattr(importlib.import_module(config), "EXPERIMENT", None)


def is_finished(
    batch: Batch, settings: Settings, experiment: Experiment | None
) -> bool:
    """Whether a run has finished; if not, its settings and paths are checked."""
    path = batch.out / name_of(settings)
    if experiment is None:
        return state(path) in ENDED
    request = parse(experiment, words_for_run(batch, settings))
    folder = folder_of(experiment, request._replace(out=path))
    if examine(folder) == "finished":
        return True
    check_paths(experiment, request.config)
    return False


def run_batch(batch: Batch, todo: Sequence[Settings]) -> int:
    """Run what is to be done, say what failed, and write the table."""
    with terminable():
        try:
            failed = run_all(batch, [make_job(batch, settings) for settings in todo])
        except KeyboardInterrupt as error:
            ignore_more()
            return tell_end(error, batch.out)
    write_text(batch.out / "runs.csv", runs_table(batch))
    print(f"{len(batch.each)} runs, {len(failed)} failed: {batch.out / 'runs.csv'}")
    for job in failed:
        print(f"failed: {job.name}, see {job.log}", file=sys.stderr)
    return 1 if failed else 0


def run_all(batch: Batch, jobs: Sequence[launch.Job]) -> list[launch.Job]:
    """Run the jobs wherever they run, showing how far they are; those that failed."""
    if batch.on == "here" or not jobs:
        ended = launch.run_here(jobs, parallel=batch.parallel or 1)
    else:
        ended = launch.run_on_cluster(
            jobs,
            cluster=batch.on,
            parallel=batch.parallel,
            parameters=batch.slurm,
            folder=batch.out / "submitit",
        )
    left, failed, total = list(jobs), [], len(batch.each)
    with progress(total, "runs", done=total - len(jobs)) as advance, closing(ended):
        advance(0, _running(batch, left))
        for job, code in ended:
            left.remove(job)
            advance(1, _running(batch, left))
            if code or state(batch.out / job.name) not in ENDED:
                failed.append(job)
    return failed


def _running(batch: Batch, left: Sequence[launch.Job]) -> str:
    """What runs now, of what has not ended: the first ones, for they begin in order."""
    if batch.on != "here":
        return f"{len(left)} on {batch.on}" if left else ""
    names = [job.name for job in left[: batch.parallel or 1]]
    return "; ".join(names[:3]) + ("; ..." if len(names) > 3 else "")


def make_job(batch: Batch, settings: Settings) -> launch.Job:
    """The ordinary command of one run."""
    name = name_of(settings)
    words = [*words_for_run(batch, settings), "--out", str(batch.out / name)]
    command = [sys.executable, "-m", batch.module, *words]
    return launch.Job(name, command, batch.out / "logs" / f"{name}.txt")


def words_for_run(batch: Batch, settings: Settings) -> list[str]:
    """The preset and all fields of one run."""
    fields = [*batch.shared.items(), *settings.items()]
    return [batch.preset, *chain(*((f"--{field}", *words) for field, words in fields))]


def runs_table(batch: Batch) -> str:
    """CSV: a row for every line of all results, beside what was varied."""
    import pandas

    rows = []
    for settings in batch.each:
        path = batch.out / name_of(settings)
        varied = {field: "+".join(values) for field, values in settings.items()}
        for line in read_records(path) or [{"status": state(path)}]:
            status = line.get("status", "")
            rows.append(
                varied
                | {name: line.get(name, "") for name in ("setting", "arm")}
                | {"hyper": json.dumps(line.get("hyper", {}))}
                | {"seed": line.get("seed"), "status": status}
                | {"accuracy at the end": _mean(line.get("final"), status)}
                | {"when just learned": _mean(line.get("accuracy"), status)}
                | {"seconds": line.get("seconds")}
            )
    # The numbers of one run stay integers beside those that have none.
    return pandas.DataFrame(rows, dtype=object).to_csv(index=False)


def _mean(values: Any, status: str) -> float | None:
    """The mean of a finished run's numbers; None where one is not known."""
    values = values if isinstance(values, list) else [values]
    known = status == "done" and values and all(type(v) in (int, float) for v in values)
    return sum(values) / len(values) if known else None


def state(path: Path) -> str:
    """What became of a run, as its ``status.json`` says, or that it never began."""
    return read_json(path / "status.json", default={}).get("status", "not begun")
