"""Damaged files of rows: JSON lines and CSV."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcl.data import Dataset, csv_dataset, csv_tasks, jsonl_dataset
from tests.fuzz import mutate
from tests.fuzz.battery import main, run_battery

RECORDS = [{"x": f"[{i}, {i}.5]", "y": f"{i % 3}"} for i in range(5)]
FIELDS = [["a", "b", "kind", "place"]] + [
    [str(i), f"{i}.5", "uvw"[i % 3], "here" if i < 4 else "there"] for i in range(8)
]


def assert_usable(dataset: Dataset) -> int:
    """All rows are finite in what a batch holds, labels int32."""
    batch = dataset.read(np.arange(dataset.count))
    for leaf in jax.tree.leaves(batch):
        assert len(leaf) == dataset.count > 0
        with np.errstate(over="ignore"):
            assert np.isfinite(np.asarray(leaf, np.float32)).all()
        assert leaf.dtype.kind != "i" or leaf.dtype == np.int32
    return dataset.count


def _as_arrays(record: dict[str, Any]):
    return np.asarray(record["x"], np.float32), np.int32(record["y"])


def _as_they_are(record: dict[str, Any]):
    return record["x"], record["y"]


def _as_mixed(record: dict[str, Any]):
    return {"x": np.array(record["x"])}, np.array([record["y"], 1])


PARSES = [_as_arrays, _as_they_are, _as_mixed]


def jsonl(rng: np.random.Generator, folder: Path):
    """Hostile values, missing and doubled names, lines moved, then damaged bytes."""
    records = [dict(record) for record in RECORDS]
    for _ in range(rng.integers(3)):
        record = records[rng.integers(len(records))]
        name = ["x", "y", "x", "y", "z"][rng.integers(5)]
        inside = f"[1, {mutate.hostile(rng)}]" if name == "x" else mutate.hostile(rng)
        record[name] = inside if rng.integers(4) else mutate.hostile(rng)
        if rng.integers(8) == 0:
            del record[name]
    lines = [
        "{" + ", ".join(f'"{k}": {v}' for k, v in record.items()) + "}"
        for record in records
    ]
    if rng.integers(6) == 0:
        lines[rng.integers(5)] = mutate.hostile(rng)
    raw = mutate.encode(["\n", "\r\n", "\n\n"][rng.integers(3)].join(lines))
    if rng.integers(2):
        raw = mutate.damage(rng, raw)
    path = folder / "rows.jsonl"
    path.write_bytes(raw)
    parse, skip = PARSES[rng.integers(3)], bool(rng.integers(2))
    return lambda: assert_usable(
        jsonl_dataset(path, parse, task=0, skip_bad_lines=skip)
    )


def table(rng: np.random.Generator, folder: Path):
    """Hostile fields, rows of other lengths, other headers, then damaged bytes."""
    fields = [list(row) for row in FIELDS]
    for _ in range(rng.integers(3)):
        row = fields[rng.integers(1, len(fields)) if rng.integers(4) else 0]
        row[rng.integers(len(row))] = mutate.hostile(rng)
        if rng.integers(8) == 0:
            row.append(mutate.hostile(rng))
        if rng.integers(8) == 0:
            row.pop()
    comma = ";" if rng.integers(12) == 0 else ","
    raw = mutate.encode("\n".join(map(comma.join, fields)))
    if rng.integers(2):
        raw = mutate.damage(rng, raw)
    path = folder / "rows.csv"
    path.write_bytes(raw)
    classes = None if rng.integers(4) == 0 else ["u", "v", "w"]
    if rng.integers(8) == 0:
        return lambda: _by_tasks(path, classes)
    given = {"label": "kind", "columns": ["a", "b"], "classes": classes}
    given = given if rng.integers(2) else {"label": "a", "columns": ["b"]}
    return lambda: assert_usable(csv_dataset(path, **given))


def _by_tasks(path: Path, classes: list[str] | None):
    given = {"label": "kind", "task": "place", "classes": classes}
    for task in csv_tasks(jax.random.key(0), path, test_fraction=0.5, **given):
        assert_usable(task.train)
        assert_usable(task.test)


MAKES = {"jsonl": jsonl, "csv": table}


def battery(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Try so many inputs; see :func:`tests.fuzz.battery.run_battery`."""
    return run_battery("rows", MAKES, count, seed, folder)


if __name__ == "__main__":
    main("rows", MAKES)
