"""The table of all papers in ``README.md``: their numbers, and ours from committed lines.

    python -m experiments.scoreboard

writes it again from ``*/results/``; a test demands that it is up to date.
"""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcl.report.records import Record, split
from jaxcl.report.statistics import mean_interval
from jaxcl.report.tables import Column, Table, to_markdown
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.folder import read_json, read_records
from jaxcl.runs.readme import fill

HERE = Path(__file__).parent


class Entry(NamedTuple):
    """One number that a paper is about."""

    what: str
    chosen: Callable[[Record], bool]  # its runs, among those of a folder
    theirs: float | None = None  # as printed in the paper, between 0 and 1


class Paper(NamedTuple):
    """A paper, and where our answer lies: the first folder that is there."""

    title: str
    claim: str
    folders: tuple[str, ...]  # under this one
    score: Callable[[Record], float]  # of one run, between 0 and 1
    entries: tuple[Entry, ...]


def plastic(setting: str, arm: str, rate: float) -> Entry:
    """The paper's own runs of an arm."""
    return Entry(
        f"{setting}, {arm}, rate {rate:g}",
        lambda record: (
            (record["group"], record["setting"], record["arm"])
            == ("paper", setting, arm)
            and record["hyper"]["learning_rate"] == rate
        ),
    )


def remembered(arm: str, theirs: float) -> Entry:
    """All reported runs of an arm."""
    chosen = lambda record: (record["setting"], record["arm"]) == ("test", arm)
    return Entry(arm, chosen, theirs)


def kept(arm: str) -> Entry:
    """All runs of an arm, in a question of our own."""
    return Entry(arm, lambda record: record["arm"] == arm)


PAPERS = (
    Paper(
        "Plasticity and sharpness, arXiv:2409.17300",
        "SAM and GNP keep a network no better able to learn than SGD "
        "(accuracy on the task just learned; no numbers given)",
        ("plasticity/results/paper",),
        lambda record: float(np.mean(record["accuracy"])),
        tuple(
            plastic(setting, arm, rate)
            for setting in ("permuted", "pairs-new-head", "pairs-one-head")
            for rate in (0.01, 0.001)
            for arm in ("sgd", "sam", "gnp")
        ),
    ),
    Paper(
        "The same paper's next check: CIFAR-100, small ResNet",
        "the same",
        ("plasticity/results/cifar",),
        lambda record: float(np.mean(record["accuracy"])),
        tuple(
            plastic(setting, arm, rate)
            for setting in ("class-splits", "permuted-labels")
            for rate in (0.1, 0.01)
            for arm in ("sgd", "sam", "gnp")
        ),
    ),
    Paper(
        "van de Ven and Tolias 2018, arXiv:1809.10635, Table 4",
        "EWC keeps ten permutations of MNIST (accuracy on all, at the end)",
        ("ewc_permuted/results/paper", "ewc_permuted/results/reduced"),
        lambda record: float(np.mean(record["final"])),
        (
            remembered("none", 0.7851),
            remembered("ewc", 0.9431),
            remembered("online-ewc", 0.9442),
            remembered("joint", 0.9759),
        ),
    ),
    Paper(
        "The same, online EWC at 1000 instead of 100",
        "the same",
        ("ewc_permuted/results/online-1000",),
        lambda record: float(np.mean(record["final"])),
        (remembered("online-ewc", 0.9442),),
    ),
    Paper(
        "A question of ours: CIFAR-100 in twenty tasks, small ResNet",
        "replay keeps what was learned, and SAM and EWC on top of it keep more "
        "(accuracy on all tasks, at the end)",
        ("class_stream/results/cifar",),
        lambda record: float(np.mean(record["final"])),
        tuple(map(kept, ("none", "er", "sam-ewc-er"))),
    ),
    Paper(
        "Another: four kinds of text, a byte-level decoder",
        "the same of a language model (next bytes predicted in all kinds, at the end)",
        ("byte_domains/results/python",),
        lambda record: float(np.mean(record["final"])),
        tuple(map(kept, ("none", "er", "sam", "sam-ewc-er"))),
    ),
)


def table(here: Path = HERE) -> Table:
    """A row for each number of which there are runs."""
    columns = (
        Column("paper"),
        Column("claim"),
        Column("number"),
        Column("runs", 0),
        Column("ours, %", 2, 100.0),
        Column("theirs, %", 2, 100.0),
        Column("minutes", 0),
        Column("command"),
    )
    note = (
        "Mean over runs and 95 % t-interval, none from a single run; diverged runs are "
        "left out here and named in the folders. Minutes are those of all runs of the "
        "row together, on a machine that did other work too. FOLDER holds MNIST, or "
        "CIFAR-100."
    )
    rows = [row for paper in PAPERS for row in rows_of(paper, here)]
    return Table(columns, tuple(rows), (note,))


def rows_of(paper: Paper, here: Path) -> Iterator[tuple]:
    """The rows of a paper, the first with its claim."""
    there = [here / name for name in paper.folders if (here / name).is_dir()]
    if not there:
        return
    done, _ = split(read_records(there[0]))
    folder = there[0].relative_to(here).parts[0]
    name = there[0].name
    full = there[0] == here / paper.folders[0]
    short = "" if full else f"; so far only the shorter preset {name}"
    head = [
        f"[{paper.title}]({folder}/README.md#results)",
        paper.claim + short,
        f"`{command(there[0])}`",
    ]
    for what, chosen, theirs in paper.entries:
        runs = [record for record in done if chosen(record)]
        if runs:
            ours = mean_interval(np.array([paper.score(record) for record in runs]))
            minutes = sum(record["seconds"] for record in runs) / 60
            title, claim, words = head
            yield title, claim, what, len(runs), ours, theirs, minutes, words
            head = ["", "", ""]


def command(folder: Path) -> str:
    """What made a folder, without the places of that machine."""
    given = shlex.split(read_json(folder / "environment.json")["command"])
    words = [part for word in given for part in _parts(word)]
    for flag, value in (("--data", "FOLDER"), ("--out", None)):
        if flag in words:
            place = words.index(flag)
            words[place : place + 2] = [flag, value] if value else []
    return shlex.join(words)


def _parts(word: str) -> list[str]:
    """``--data=x`` as the two words that it stands for."""
    return word.split("=", 1) if word.startswith("--") else [word]


def speed(here: Path = HERE) -> str:
    """How many of the promised ratios the committed measurement kept."""
    held = (here / "benchmarks/results/speed/tables/targets.md").read_text("utf-8")
    verdicts = [line.rstrip(" |").rsplit("| ", 1)[-1] for line in held.splitlines()]
    met, missed = verdicts.count("met"), verdicts.count("missed")
    return f"Speed: {met} of {met + missed} targets met, [benchmarks](benchmarks/)."


def write(readme: Path = HERE / "README.md", here: Path = HERE) -> None:
    """Fill the table into the README."""
    fill(readme, f"{to_markdown(table(here))}\n{speed(here)}")


if __name__ == "__main__":
    expect_no_words(__doc__)
    write()
