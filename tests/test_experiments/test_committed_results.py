"""What is committed under ``experiments/*/results`` can be read, and gone on with."""

import importlib
import json
import shlex
from pathlib import Path

import pytest

from jaxcl.runs.command import folder_of
from jaxcl.runs.experiment import parse
from jaxcl.runs.folder import examine, read_records

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    path.parent for path in ROOT.glob("experiments/*/results/*/config.json")
)


@pytest.mark.parametrize("path", FOLDERS, ids=lambda p: f"{p.parts[-3]}-{p.name}")
def test_a_stranger_can_take_up_committed_results(path):
    """Oracle: the command that made them, given with data that lie elsewhere and with
    another number of processes; another seed is the negative control."""
    held = json.loads((path / "config.json").read_text())
    name, data = held["experiment"], Path(held["config"].get("data", "")).name
    made_by = json.loads((path / "environment.json").read_text())["command"]
    experiment = importlib.import_module(f"experiments.{name}.config").EXPERIMENT
    words = shlex.split(made_by)[3:]
    words += ["--workers", "3"] if "workers" in experiment.cosmetic_fields else []
    words += ["--data", f"/somewhere/else/{data}"] if experiment.path_fields else []

    def look(*more):
        request = parse(experiment, [*words, *more])
        return examine(folder_of(experiment, request._replace(out=path)))

    assert look() in ("unfinished", "finished")
    with pytest.raises(ValueError, match="another configuration"):
        look("--seed", "7")


@pytest.mark.parametrize("path", FOLDERS, ids=lambda p: f"{p.parts[-3]}-{p.name}")
def test_committed_lines_are_whole_and_have_names_of_their_own(path):
    """Oracle: as many names as lines; status.json counts them when all are done."""
    records = read_records(path)
    assert len({record["run"] for record in records}) == len(records) > 0
    status = json.loads((path / "status.json").read_text())
    if status["status"] == "done":
        assert status["runs"] == len(records)
