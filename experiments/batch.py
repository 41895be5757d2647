"""A grid of settings, or a list of them, as one job: a run of an experiment for each.

    python -m experiments.batch EXPERIMENT PRESET [--field value ...]
        --grid FIELD VALUE VALUE ...    once or more: every combination of the values
        --each FILE                     a JSON object of fields on each line
        --parallel N                    runs at a time; else 1, and on slurm all
        --on slurm                      as an array of jobs, by submitit; local to try that
        --slurm NAME=VALUE ...          of submitit: timeout_min=60 slurm_partition=gpu ...
        --out FOLDER                    of the batch; else outputs/EXPERIMENT-PRESET-batch

Every run is the experiment's ordinary command, in a folder of its own under the batch's.
The same command again skips the runs that finished and goes on with the others. At the end
``runs.csv`` holds every line of all results in one table; a run that failed is named, with
the file that holds its words, and the exit code is 1. Seeds need no batch: an experiment
packs its own, side by side in one program where its networks allow that.

    python -m experiments.batch class_stream cifar --data FOLDER --grid rho 0.02 0.05 0.1
"""

import importlib
import itertools
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcl.errors import InputError
from jaxcl.report.tables import Column, Table, to_csv
from jaxcl.runs.command import OUTPUTS, flags, option, parse
from jaxcl.runs.ending import ignore_more, tell_end, terminable
from jaxcl.runs.errors import is_bad_input, one_line
from jaxcl.runs.fields import nearest
from jaxcl.runs.launch import Ended, Job, run_here, run_on_cluster
from jaxcl.runs.run_folder import (
    RunFolder,
    examine,
    read_json,
    read_records,
    write_text,
)
from jaxcl.training.logging import progress

HERE = Path(__file__).parent
OWN = ("grid", "each", "on", "parallel", "slurm", "out")
PLACES_TO_RUN = ("here", "slurm", "local")

#: Fields and their values, as words of a command line.
Settings = Mapping[str, Sequence[str]]


class Batch(NamedTuple):
    """What a command line asks for."""

    experiment: str
    preset: str
    shared: Settings  # of all runs
    each: Sequence[Settings]  # of every run
    on: str
    parallel: int | None
    slurm: dict[str, str | int]
    out: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Do the batch; 0 if every run ended, 1 if some failed, 2 for bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print((__doc__ or "").strip())
        return 0
    try:
        batch = read_words(words)
        folders = {name_of(one): folder_of(batch, one) for one in batch.each}
        todo = [
            make_job(batch, settings)
            for settings in batch.each
            if examine(folders[name_of(settings)]) != "finished"
        ]
        return do(batch, folders, todo)
    except ValueError as error:
        if not is_bad_input(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def do(batch: Batch, folders: Mapping[str, RunFolder], jobs: Sequence[Job]) -> int:
    """Run what is to be done, tell what failed, and write the table."""
    with terminable():
        try:
            failed = run_all(batch, folders, jobs)
        except KeyboardInterrupt as error:
            ignore_more()
            return tell_end(error, batch.out)
    made = runs_table({name: folder.path for name, folder in folders.items()}, batch)
    write_text(batch.out / "runs.csv", to_csv(made))
    print(f"{len(folders)} runs, {len(failed)} failed: {batch.out / 'runs.csv'}")
    for job in failed:
        print(f"failed: {job.name}, see {job.log}", file=sys.stderr)
    return 1 if failed else 0


def run_all(
    batch: Batch, folders: Mapping[str, RunFolder], jobs: Sequence[Job]
) -> list[Job]:
    """Run the jobs, telling how far they are; those that failed."""
    left, failed = list(jobs), []
    with (
        progress(len(folders), "runs", done=len(folders) - len(jobs)) as advance,
        closing(launch(batch, jobs)) as ended,
    ):
        advance(0, at_hand(batch, left))
        for job, code in ended:
            left.remove(job)
            advance(1, at_hand(batch, left))
            if code or state(folders[job.name].path) not in ("done", "diverged"):
                failed.append(job)
    return failed


def at_hand(batch: Batch, left: Sequence[Job]) -> str:
    """What runs now, of what has not ended: the first ones, for they begin in order."""
    if batch.on != "here":
        return f"{len(left)} on {batch.on}" if left else ""
    names = [job.name for job in left[: batch.parallel or 1]]
    return "; ".join(names[:3]) + ("; ..." if len(names) > 3 else "")


def launch(batch: Batch, jobs: Sequence[Job]) -> Ended:
    """The jobs with their exit codes, wherever they run."""
    if batch.on == "here" or not jobs:
        return run_here(jobs, parallel=batch.parallel or 1)
    return run_on_cluster(
        jobs,
        cluster=batch.on,
        parallel=batch.parallel,
        parameters=batch.slurm,
        folder=batch.out / "submitit",
    )


def make_job(batch: Batch, settings: Settings) -> Job:
    """The ordinary command of one run."""
    name, module = name_of(settings), f"experiments.{batch.experiment}"
    words = [*words_for_run(batch, settings), "--out", str(batch.out / name)]
    command = [sys.executable, "-m", module, *words]
    return Job(name, command, batch.out / "logs" / f"{name}.txt")


def words_for_run(batch: Batch, settings: Settings) -> list[str]:
    """The preset and all fields of one run."""
    return [batch.preset, *words_of(batch.shared), *words_of(settings)]


def folder_of(batch: Batch, settings: Settings) -> RunFolder:
    """The folder of one run, its settings checked.

    Raises:
      ValueError: for settings that the experiment does not take, or values that could
        not work.
    """
    config = config_of(batch.experiment)
    words = words_for_run(batch, settings)
    request = parse(batch.experiment, config.PRESETS, "", words)
    assert request is not None  # no help was asked for
    importlib.import_module(f"experiments.{batch.experiment}.run").check(request.config)
    return RunFolder(
        batch.out / name_of(settings),
        batch.experiment,
        batch.preset,
        request.config,
        cosmetic_fields=getattr(config, "COSMETIC_FIELDS", ()),
        path_fields=getattr(config, "PATH_FIELDS", ()),
    )


def config_of(experiment: str) -> Any:
    """An experiment's module of settings.

    Raises:
      InputError: if there is no such experiment.
    """
    known = sorted(path.parent.name for path in HERE.glob("*/config.py"))
    if experiment not in known:
        msg = f"batch: unknown experiment {experiment!r}{nearest(experiment, known)}"
        raise InputError(msg)
    return importlib.import_module(f"experiments.{experiment}.config")


# ------------------------------------------------------------------ the command line


def read_words(words: Sequence[str]) -> Batch:
    """What the words ask for.

    Raises:
      InputError: for words that are not understood.
    """
    if len(words) < 2 or words[0].startswith("-") or words[1].startswith("-"):
        msg = "batch: say which experiment and which preset (see --help)."
        raise InputError(msg)
    experiment, preset, *rest = words
    config_of(experiment)
    groups = flags(rest)
    grids = [values for flag, values in groups if flag == "grid"]
    own = {flag: values for flag, values in groups if flag in OWN and flag != "grid"}
    shared = {flag: values for flag, values in groups if flag not in OWN}
    listed = read_each(single("each", own)) if "each" in own else [{}]
    pairs = list(itertools.product(listed, combinations(grids)))
    if both := sorted(
        {field for one, other in pairs for field in one if field in other}
    ):
        msg = f"batch: {both[0]}: given by --grid and by --each; leave one out."
        raise InputError(msg)
    each = [{**one, **other} for one, other in pairs]
    if each == [{}]:
        msg = "batch: nothing varies; give --grid FIELD VALUE ... or --each FILE."
        raise InputError(msg)
    check_settings(shared, each)
    on, parallel = single("on", own, "here"), single("parallel", own, "")
    if on not in PLACES_TO_RUN:
        msg = f"batch: --on: unknown {on!r}{nearest(on, PLACES_TO_RUN)}"
        raise InputError(msg)
    if parallel and not (parallel.isdigit() and int(parallel)):
        msg = f"batch: --parallel: expected a number above 0, got {parallel!r}."
        raise InputError(msg)
    given = [word for flag, values in groups if flag == "slurm" for word in values]
    slurm = dict(map(pair, given))
    if slurm and on == "here":
        msg = "batch: --slurm: needs --on slurm; without it the runs take place here."
        raise InputError(msg)
    out = Path(single("out", own, str(OUTPUTS / f"{experiment}-{preset}-batch")))
    if out.exists() and not out.is_dir():
        msg = f"batch: --out: {out} is no folder."
        raise InputError(msg)
    at_once = int(parallel) if parallel else None
    return Batch(experiment, preset, shared, each, on, at_once, slurm, out)


def combinations(grids: Sequence[Sequence[str]]) -> list[Settings]:
    """Every combination of one value for each field."""
    for grid in grids:
        if len(grid) < 2:
            came = shlex.join(grid)
            msg = f"batch: --grid: expected a field and its values, got {came!r}."
            raise InputError(msg)
    fields = [plain_name(grid[0]) for grid in grids]
    if len(set(fields)) < len(fields):
        msg = f"batch: --grid: expected each field once, got {', '.join(fields)}."
        raise InputError(msg)
    return [
        {field: [value] for field, value in zip(fields, chosen, strict=True)}
        for chosen in itertools.product(*(grid[1:] for grid in grids))
    ]


def read_each(path: str) -> list[Settings]:
    """The settings on each line of a file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        msg = f"batch: --each: cannot read {path}: {why}."
        raise InputError(msg) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            settings = {plain_name(name): value for name, value in fields.items()}
            found.append({name: as_words(value) for name, value in settings.items()})
        except (ValueError, AttributeError):
            msg = f"batch: --each: {path}, line {number} is no JSON object of fields."
            raise InputError(msg) from None
    if not found:
        msg = f"batch: --each: {path} holds no settings."
        raise InputError(msg)
    return found


def check_settings(shared: Settings, each: Sequence[Settings]) -> None:
    """Refuse a field that is given in two ways, and settings that are there twice."""
    varied = {field for one in each for field in one}
    if own := sorted(varied & set(OWN)):
        msg = f"batch: {own[0]} is no field of the experiment; see --help."
        raise InputError(msg)
    if both := sorted(varied & set(shared)):
        msg = (
            f"batch: {option(both[0])}: given for all runs, and varied; leave one out."
        )
        raise InputError(msg)
    names = [name_of(one) for one in each]
    if long := [name for name in names if len(name.encode()) > 200]:
        msg = f"batch: too much varies for the name of a folder: {long[0][:60]}..."
        raise InputError(msg)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"batch: {twice[0]} is there twice; leave one out."
        raise InputError(msg)


def single(
    flag: str, own: Mapping[str, Sequence[str]], default: str | None = None
) -> str:
    """The single word of a flag."""
    words = own.get(flag, [] if default is None else [default])
    if len(words) != 1:
        msg = f"batch: --{flag}: expected one word, got {shlex.join(words)!r}."
        raise InputError(msg)
    return words[0]


def pair(word: str) -> tuple[str, str | int]:
    """``name=value``, whole numbers as such."""
    name, equals, value = word.partition("=")
    if not equals or not name:
        msg = f"batch: --slurm: expected NAME=VALUE, got {word!r}."
        raise InputError(msg)
    return name, int(value) if value.isdigit() else value


def plain_name(field: str) -> str:
    """``num_steps``, however it was written."""
    return field.lstrip("-").replace("-", "_")


def as_words(value: Any) -> list[str]:
    """A JSON value as words of a command line."""
    return [str(part) for part in (value if isinstance(value, list) else [value])]


def words_of(settings: Settings) -> list[str]:
    """``--field value ...``."""
    return [w for field, values in settings.items() for w in (f"--{field}", *values)]


def name_of(settings: Settings) -> str:
    """``rho=0.05,strength=10``, the name of a run's folder."""
    parts = [f"{field}={'+'.join(values)}" for field, values in settings.items()]
    return ",".join(parts).replace("/", "-")


# ------------------------------------------------------------------ the table


def runs_table(folders: Mapping[str, Path], batch: Batch) -> Table:
    """A row for every line of all results, beside what was varied."""
    varied = list(dict.fromkeys(field for one in batch.each for field in one))
    rows = []
    for settings in batch.each:
        path = folders[name_of(settings)]
        chosen = ["+".join(settings.get(field, [])) for field in varied]
        lines = read_records(path) if (path / "results.jsonl").exists() else []
        for line in lines or [{"status": state(path)}]:
            rows.append(
                (
                    *chosen,
                    line.get("setting", ""),
                    line.get("arm", ""),
                    json.dumps(line.get("hyper", {})),
                    str(line.get("seed", "")),
                    line["status"],
                    mean_of(line, "final"),
                    mean_of(line, "accuracy"),
                    line.get("seconds"),
                )
            )
    fixed = ("setting", "arm", "hyper", "seed", "status")
    means = Column("accuracy at the end", 4), Column("when just learned", 4)
    numbers = *means, Column("seconds", 1)
    return Table((*map(Column, (*varied, *fixed)), *numbers), tuple(rows))


def mean_of(line: Mapping[str, Any], name: str) -> float | None:
    """The mean of a list in a line, where its run is done and has it."""
    there = line["status"] == "done" and name in line
    return float(np.mean(line[name])) if there else None


def state(path: Path) -> str:
    """What became of a run, as its ``status.json`` says, or that it never began."""
    held = path / "status.json"
    return read_json(held)["status"] if held.exists() else "not begun"


if __name__ == "__main__":
    raise SystemExit(main())
