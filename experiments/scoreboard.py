"""The table of all papers in ``README.md``: their numbers, and ours from committed lines.

    python -m experiments.scoreboard

writes it again from ``*/results/``; a test demands that it is up to date.
"""

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxcl.report.records import split
from jaxcl.report.statistics import mean_interval
from jaxcl.report.tables import Column, Table, table_of, to_markdown
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.folder import read_json, read_records
from jaxcl.runs.readme import fill

HERE = Path(__file__).parent


class Entry(NamedTuple):
    """One number that a paper is about."""

    what: str
    chosen: dict[str, Any]  # what its runs have in common, by the names of fields
    theirs: float | None = None  # as printed in the paper, between 0 and 1


class Paper(NamedTuple):
    """A paper, and where our answer lies: the first folder that is there."""

    title: str
    claim: str
    folders: tuple[str, ...]  # under this one
    score: str  # the field whose mean is the score of a run, between 0 and 1
    entries: list[Entry]


def plastic(settings: tuple[str, ...], rates: tuple[float, ...]) -> list[Entry]:
    """The paper's own runs of each arm, by setting and rate."""
    listed = itertools.product(settings, rates, ("sgd", "sam", "gnp"))
    fields = ("group", "setting", "hyper.learning_rate", "arm")
    return [
        Entry(
            f"{setting}, {arm}, rate {rate:g}",
            dict(zip(fields, ("paper", setting, rate, arm), strict=True)),
        )
        for setting, rate, arm in listed
    ]


def remembered(theirs: dict[str, float]) -> list[Entry]:
    """All reported runs of each arm, beside the number in the paper."""
    reported = lambda arm: {"setting": "test", "arm": arm}
    return [Entry(arm, reported(arm), value) for arm, value in theirs.items()]


def kept(*arms: str) -> list[Entry]:
    """All runs of each arm, in a question of our own."""
    return [Entry(arm, {"arm": arm}) for arm in arms]


TABLE_4 = {"none": 0.7851, "ewc": 0.9431, "online-ewc": 0.9442, "joint": 0.9759}
PAPERS = (
    Paper(
        "Plasticity and sharpness, arXiv:2409.17300",
        "SAM and GNP keep a network no better able to learn than SGD "
        "(accuracy on the task just learned; no numbers given)",
        ("plasticity/results/paper",),
        "accuracy",
        plastic(("permuted", "pairs-new-head", "pairs-one-head"), (0.01, 0.001)),
    ),
    Paper(
        "The same paper's next check: CIFAR-100, small ResNet",
        "the same",
        ("plasticity/results/cifar",),
        "accuracy",
        plastic(("class-splits", "permuted-labels"), (0.1, 0.01)),
    ),
    Paper(
        "van de Ven and Tolias 2018, arXiv:1809.10635, Table 4",
        "EWC keeps ten permutations of MNIST (accuracy on all, at the end)",
        ("ewc_permuted/results/paper", "ewc_permuted/results/reduced"),
        "final",
        remembered(TABLE_4),
    ),
    Paper(
        "The same, online EWC at 1000 instead of 100",
        "the same",
        ("ewc_permuted/results/online-1000",),
        "final",
        remembered({"online-ewc": TABLE_4["online-ewc"]}),
    ),
    Paper(
        "A question of ours: CIFAR-100 in twenty tasks, small ResNet",
        "replay keeps what was learned, and SAM and EWC on top of it keep more "
        "(accuracy on all tasks, at the end)",
        ("class_stream/results/cifar",),
        "final",
        kept("none", "er", "sam-ewc-er"),
    ),
    Paper(
        "Another: four kinds of text, a byte-level decoder",
        "the same of a language model (next bytes predicted in all kinds, at the end)",
        ("byte_domains/results/python",),
        "final",
        kept("none", "er", "sam", "sam-ewc-er"),
    ),
)

NOTE = (
    "Mean over runs and 95 % t-interval, none from a single run; diverged runs are "
    "left out here and named in the folders. Minutes are those of all runs of the "
    "row together, on a machine that did other work too. FOLDER holds MNIST, or "
    "CIFAR-100."
)


def table(here: Path = HERE) -> Table:
    """A row for each number of which there are runs."""
    return table_of((row for paper in PAPERS for row in rows_of(paper, here)), NOTE)


def rows_of(paper: Paper, here: Path) -> Iterator[dict[Column, Any]]:
    """The rows of a paper, the first with its claim."""
    there = [name for name in paper.folders if (here / name).is_dir()]
    if not there:
        return
    full, folder = there[0] == paper.folders[0], here / there[0]
    short = "" if full else f"; so far only the shorter preset {folder.name}"
    title = f"[{paper.title}]({there[0].split('/')[0]}/README.md#results)"
    head = [title, paper.claim + short, f"`{command(folder)}`"]
    runs = pd.json_normalize(split(read_records(folder))[0])
    for what, chosen, theirs in paper.entries:
        mine = runs[(runs[[*chosen]] == pd.Series(chosen)).all(axis=1)]
        if len(mine):
            yield {
                Column("paper"): head[0],
                Column("claim"): head[1],
                Column("number"): what,
                Column("runs", 0): len(mine),
                Column("ours, %", 2, 100.0): mean_interval(
                    np.array([np.mean(values) for values in mine[paper.score]])
                ),
                Column("theirs, %", 2, 100.0): theirs,
                Column("minutes", 0): mine["seconds"].sum() / 60,
                Column("command"): head[2],
            }
            head = ["", "", ""]


def command(folder: Path) -> str:
    """What made a folder, without the places of that machine."""
    given = shlex.split(read_json(folder / "environment.json")["command"])
    # --data=x stands for two words
    split_flag = lambda word: word.split("=", 1) if word.startswith("--") else [word]
    words = [part for word in given for part in split_flag(word)]
    for flag, value in (("--data", ["--data", "FOLDER"]), ("--out", [])):
        if flag in words:
            place = words.index(flag)
            words[place : place + 2] = value
    return shlex.join(words)


def speed(here: Path = HERE) -> str:
    """How many of the promised ratios the committed measurements kept."""

    def kept(name: str) -> str:
        table = here / "benchmarks/results" / name / "tables/targets.md"
        lines = table.read_text("utf-8").splitlines()
        verdicts = [line.rstrip(" |").rsplit("| ", 1)[-1] for line in lines]
        met, missed = verdicts.count("met"), verdicts.count("missed")
        return f"{met} of {met + missed} targets met"

    small, language, tuned = map(kept, ("speed", "language", "finetune"))
    found = f"{small} on small networks, {language} on language models"
    return f"Speed: {found}, {tuned} on fine-tuning, [benchmarks](benchmarks/)."


def write(readme: Path = HERE / "README.md", here: Path = HERE) -> None:
    """Fill the table into the README."""
    fill(readme, f"{to_markdown(table(here))}\n{speed(here)}")


if __name__ == "__main__":
    expect_no_words(__doc__)
    write()
