"""Runs as plain records: one dict per run, from one line of ``results.jsonl``.

==================  ================================================================
``run``             a unique name: ``permuted/sam/lr=0.01/seed=3``
``setting``         the stream: runs are compared only within one
``arm``             the method
``hyper``           its numbers: ``{"learning_rate": 0.01, "rho": 0.05}``
``seed``            an integer; equal seeds of a setting saw the same stream
``status``          ``done`` or ``diverged``
``first_bad_task``  number of the task where it diverged, from 0; else absent or null
``accuracy``        [T], test accuracy of the task just learned, between 0 and 1
``loss``            [T], optional
``measures``        ``{name: [T]}``, optional; a name or all of it may be null
``matrix``          [T, T], optional: accuracy on task j after learning task i
``tasks``           [T], optional: names of the tasks, which figures show of a few
``seconds``         optional
``device``          optional
==================  ================================================================

A run that diverged has the accuracy of chance and is never averaged in: ``split``
separates such runs, and ``curves`` refuses them by name.
"""

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcl.errors import check_kind, require

Record = dict[str, Any]

_REQUIRED = {
    "run": str,
    "setting": str,
    "arm": str,
    "hyper": dict,
    "seed": numbers.Integral,
    "status": str,
    "accuracy": (list, tuple),
}
_SHORT = {"learning_rate": "lr"}  # in labels


class Group(NamedTuple):
    """The fields that runs differing only in the seed have in common."""

    setting: str
    arm: str
    hyper: tuple[tuple[str, Any], ...]  # sorted by name


def check(records: Sequence[Record]) -> None:
    """Refuse malformed records, by the name of the record and the field.

    Raises:
      InputError: for a field that is missing or of the wrong type, a duplicate run, two
        finished runs of one group and seed (of which only one could be paired with
        another group's), curves of unequal length within a setting, a finished run whose
        accuracy is not between 0 and 1.
    """
    absent = "expected records of runs, got none; a finished run writes them"
    require(records, "report", absent)
    known: dict[str, int] = {}
    seeds: dict[tuple[Group, int], str] = {}
    lengths: dict[str, tuple[int, str]] = {}
    for number, record in enumerate(records, 1):
        check_kind("report", dict, "give a list of them", record=record)
        name = f"record {number} ({record.get('run', 'without a name')})"
        who = f"report: {name}"
        for field, kind in _REQUIRED.items():
            require(field in record, who, f"it lacks the field {field!r}")
            came = type(record[field]).__name__
            require(
                isinstance(record[field], kind), who, f"{field!r} is of type {came}"
            )
        first, status = known.setdefault(record["run"], number), record["status"]
        require(first == number, who, f"it is there twice, first as {first}")
        wanted = f"status must be 'done' or 'diverged', got {status!r}"
        require(status in ("done", "diverged"), who, wanted)
        if status == "diverged":
            continue

        _check_curves(name, record, lengths)
        other = seeds.setdefault((group_of(record), record["seed"]), name)
        agree = (
            f"{other} and {name} agree in setting, arm, hyper and seed "
            f"{record['seed']}; leave one out, or name what differs in hyper"
        )
        require(other == name, "report", agree)


def _check_curves(name: str, record: Record, lengths: dict) -> None:
    """Accuracies are fractions, and curves as long as the first of the setting."""
    accuracy = np.array(record["accuracy"], np.float64)
    wanted = "a finished run has one accuracy between 0 and 1 per task"
    inside = accuracy.ndim == 1 and np.all((accuracy >= 0) & (accuracy <= 1))
    remedy = "otherwise mark it 'diverged'"
    require(inside, f"report: {name}", f"{wanted}; {remedy}")
    length, other = lengths.setdefault(record["setting"], (len(accuracy), name))
    further = {field: record.get(field) for field in ("loss", "tasks")}
    for field, values in {"accuracy": accuracy, **_measures(record), **further}.items():
        came = length if values is None else len(values)
        fault = f"{field!r} has {came} values, expected {length} as in {other}"
        require(came == length, f"report: {name}", fault)


def split(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The runs that finished, and those that diverged."""
    done = [record for record in records if record["status"] == "done"]
    return done, [record for record in records if record["status"] != "done"]


def values_of(records: Sequence[dict], field: str) -> list:
    """The different values of a field, in order of appearance."""
    return list(dict.fromkeys(record[field] for record in records))


def within(records: Sequence[Record], settings: Sequence[str]) -> list[Record]:
    """The runs of some settings, setting by setting."""
    return [r for setting in settings for r in records if r["setting"] == setting]


def settings_with(records: Sequence[Record], *arms: str) -> list[str]:
    """Settings in which each of the arms has a finished run; any arm if none is named."""
    done = split(records)[0]
    has = {(r["setting"], r["arm"]) for r in done}
    settings = values_of(done, "setting")
    return [name for name in settings if all((name, arm) in has for arm in arms)]


def group(records: Sequence[Record]) -> dict[Group, list[Record]]:
    """Runs grouped by all fields except the seed, in order of appearance."""
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault(group_of(record), []).append(record)
    return {key: sorted(runs, key=lambda r: r["seed"]) for key, runs in groups.items()}


def group_of(record: Record) -> Group:
    """The group a run belongs to."""
    hyper = tuple((k, _hashable(v)) for k, v in sorted(record["hyper"].items()))
    return Group(record["setting"], record["arm"], hyper)


def labels(groups: Sequence[Group]) -> dict[Group, str]:
    """A short name for each group: the arm, and those numbers that vary within it.

    Numbers that are the same in all groups of an arm are left out: ``sam`` alone, but
    ``sam, learning rate 0.01`` beside ``sam, learning rate 0.1``.
    """
    names = {}
    for key in groups:
        family = [dict(other.hyper) for other in groups if other.arm == key.arm]
        varying = [
            f"{_SHORT.get(name, name.replace('_', ' '))} {show_number(value)}"
            for name, value in key.hyper
            if len({hyper.get(name) for hyper in family}) > 1
        ]
        names[key] = ", ".join([key.arm, *varying])
    return names


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """A row per run, for pandas: what it is, and the numbers of its arm.

    The index is the name of the run. Columns are ``setting``, ``arm``, ``seed``,
    ``status``, ``method`` (the label of its group), ``group`` (a number, equal for runs
    that differ only in the seed), and one for each number: ``hyper.learning_rate``.
    """
    keys = [group_of(record) for record in records]
    named = labels(list(dict.fromkeys(keys)))
    places = {key: place for place, key in enumerate(named)}
    column = lambda field: [record[field] for record in records]
    index = pd.Index(column("run"), name="run")
    fields = {name: column(name) for name in ("setting", "arm", "seed", "status")}
    fields |= {"method": [named[k] for k in keys], "group": [places[k] for k in keys]}
    hyper = pd.DataFrame(column("hyper"), index).add_prefix("hyper.")
    return pd.concat([pd.DataFrame(fields, index), hyper], axis=1)


def rivals(
    records: Sequence[Record],
    baseline: str,
    match: Sequence[str] = ("learning_rate",),
) -> dict[str, Record]:
    """The run of the baseline that each finished run is compared with, by its name.

    The two have setting, seed, and the numbers of ``match`` in common; a number that
    either of them lacks is ignored. A run of the baseline is compared with itself. Runs
    without a finished counterpart are left out.

    Raises:
      InputError: if a run fits several groups of the baseline.
    """
    groups = group(records)
    found: dict[str, Record] = {}
    for key, runs in groups.items():
        mine = dict(key.hyper)
        theirs = [k for k in groups if k[:2] == (key.setting, baseline)]
        agree = lambda k, mine=mine: all(
            mine.get(n, value) == value for n, value in k.hyper if n in match
        )
        fitting = list(filter(agree, theirs))
        if key.arm == baseline:
            fitting = [key]
        fault = f"{key.arm} fits {len(fitting)} groups of {baseline}"
        remedy = "name in `match` the numbers in which they differ"
        require(len(fitting) < 2, "report", f"{fault}; {remedy}")
        rival = {r["seed"]: r for k in fitting for r in split(groups[k])[0]}
        done = split(runs)[0]
        found |= {r["run"]: rival[r["seed"]] for r in done if r["seed"] in rival}
    return found


def curves(
    records: Sequence[Record], name: str = "accuracy"
) -> Float[np.ndarray, "s T"]:
    """One quantity per task, a row per run; unknown values (null) become NaN.

    ``name`` is ``accuracy``, ``loss`` or a measure; the runs are of one setting.

    Raises:
      InputError: if a run diverged, or does not have the quantity; it is named.
    """
    lost = ", ".join(record["run"] for record in split(records)[1])
    require(not lost, "report", f"diverged runs have no {name} to average: {lost}")
    rows = []
    for record in records:
        measures = _measures(record)
        values = measures.get(name, record.get(name))
        known = ", ".join(["accuracy", "loss", *measures])
        fault = f"{record['run']} has no {name!r}; it has {known}"
        require(values is not None, "report", fault)
        rows.append(np.array(values, np.float64))
    return np.stack(rows)


def measure_names(
    records: Sequence[Record], wanted: Sequence[str] | None = None
) -> list[str]:
    """Those of the wanted measures that every finished run has; all of them if absent."""
    done, _ = split(records)
    if not done:
        return []
    names = _measures(done[0]) if wanted is None else wanted
    return [name for name in names if all(name in _measures(r) for r in done)]


def task_names(records: Sequence[Record]) -> list[str] | None:
    """The names of the tasks, from the first run that has them; None if none does."""
    return next((list(r["tasks"]) for r in records if r.get("tasks")), None)


def show_number(value: Any) -> str:
    """A setting as text: ``0.01``, ``1e-05``, ``true``."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hashable(value: Any) -> Any:
    """A JSON value with tuples in place of lists and dicts."""
    if isinstance(value, dict):
        return tuple((k, _hashable(v)) for k, v in sorted(value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _measures(record: Record) -> dict[str, Any]:
    """The measures that a run has; null is empty."""
    found = record.get("measures") or {}
    return {name: values for name, values in found.items() if values is not None}
