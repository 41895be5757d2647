"""The READMEs of the experiments that forget: filled from committed lines."""

import json
import shutil
from pathlib import Path

import pytest

from experiments.finetune.report import section as of_finetuning
from jaxcl.runs.forgetting import pictures, section, write_readme

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@pytest.mark.parametrize(
    ("name", "own"),
    [("byte_domains", section), ("class_stream", section), ("finetune", of_finetuning)],
)
def test_a_readme_shows_what_the_results_say(name, own, tmp_path):
    """Oracle: the committed file, made anew from the committed lines, byte for byte."""
    here = ROOT / "experiments" / name
    assert list(here.glob("results/*/results.jsonl"))
    shutil.copytree(here / "results", tmp_path / "results")
    held = (here / "README.md").read_text()
    before, after = held.split(BEGIN)[0], held.split(END)[1]
    (tmp_path / "README.md").write_text(before + BEGIN + END + after)
    write_readme(tmp_path / "README.md", own)
    assert (tmp_path / "README.md").read_text() == held


def test_every_folder_of_results_has_a_section_with_its_command(tmp_path):
    """Oracle: by hand, two folders with a run each; one that never ran has none."""
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}{END}")
    environment = {
        "command": "python -m experiments.toy full",
        "cpu": "a CPU",
        "devices": "1 x cpu",
        "versions": {"jax": "1.2.3"},
        "commit": "0123456789abcdef",
    }
    line = {"run": "er/seed=0", "setting": "s", "arm": "er", "hyper": {}, "seed": 0}
    line |= {"status": "done", "matrix": [[0.8, 0.1], [0.4, 0.6]], "seconds": 60.0}
    for name in ("b", "a", "empty"):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        (folder / "environment.json").write_text(json.dumps(environment))
        if name != "empty":
            (folder / "results.jsonl").write_text(json.dumps(line) + "\n")
    write_readme(readme)
    text = readme.read_text()
    assert [x for x in text.splitlines() if x.startswith("###")] == ["### a", "### b"]
    made = (
        "`python -m experiments.toy full`: a CPU, 1 x cpu; jax 1.2.3; commit 012345678."
    )
    assert text.count(made) == 2
    assert "| er " in text
    assert "50.00" in text
    assert "(results/a/figures/matrices.png)" in text


def test_losses_are_drawn_as_they_are_and_accuracies_in_per_cent():
    """Oracle: the numbers of the records, read back from the axes."""
    line = {"run": "er/seed=0", "setting": "s", "arm": "er", "hyper": {}, "seed": 0}
    line |= {"status": "done", "accuracy": [0.8, 0.6], "final": [0.4, 0.6]}
    line |= {"matrix": [[0.8, 0.1], [0.4, 0.6]], "loss": [0.49, 5.46], "seconds": 1.0}
    made = {picture.name: picture.figure for picture in pictures([line], "Toy")}
    drawn = lambda name: list(made[name].axes[0].get_lines()[0].get_ydata())
    assert drawn("loss") == [0.49, 5.46]
    assert drawn("so-far") == pytest.approx([80.0, 50.0])
