"""Damaged command lines: of experiments, of batches, and of ``jaxcl``."""

import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.__main__ import experiments
from jaxcl.cli import main as jaxcl
from jaxcl.errors import InputError
from jaxcl.runs import batch, launch, reports  # noqa: F401  (reports: loaded in time)
from jaxcl.runs.command import main as run_experiment
from tests.fuzz import mutate
from tests.fuzz.battery import main, run_battery

EXPERIMENTS = experiments()
#: Words that a command line may hold; ``a NUL`` cannot be passed to a process.
HOSTILE = [
    *(word.encode(errors="replace").decode() for word in mutate.HOSTILE),
    *("--", "-", "---", "--=", "=", "-1", "--seed", "--seeds", "--help", "-h", "--out"),
    *("4294967296", "9223372036854775808", "999999999999", "-0.0", "1e-400", "a" * 300),
    *(
        "..",
        "/",
        "/dev/null",
        "[a]",
        "back\\slash",
        "\udcff",
        "two words",
        "\n",
        "--x y",
    ),
]


def outcome(command: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """The exit code of a command that is given these words; bad input is raised.

    Raises:
      InputError: where it refuses them, with exit code 2 and words on stderr.
      AssertionError: where it does something else.
    """
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        try:
            code = command(words)
        except SystemExit as left:  # tyro's
            code = left.code
    text = said.getvalue()
    assert "Traceback" not in text
    assert code in (0, 1, 2), code
    if code == 2:
        ours = text.startswith("error: ")
        assert text.strip()
        assert not ours or text.count("\n") == 1, text
        raise InputError(text.splitlines()[0])
    return code


def some_words(rng: np.random.Generator, fields: Sequence[str]) -> list[str]:
    """Fields of the settings with good and hostile values, or hostile words alone."""
    words = []
    for _ in range(rng.integers(4)):
        field = fields[rng.integers(len(fields))].replace("_", "-")
        if rng.integers(4) == 0:
            field = mutate.damage(rng, field.encode()).decode(errors="surrogateescape")
        good = rng.integers(2)
        values = [["1", "2", "0.5", "digits"][rng.integers(4)]] if good else []
        values += [
            HOSTILE[rng.integers(len(HOSTILE))]
            for _ in range(rng.integers(3 if not good else 2))
        ]
        joined = rng.integers(4) == 0 and values
        words += [f"--{field}={values[0]}"] if joined else [f"--{field}", *values]
    if rng.integers(4) == 0:
        words.insert(rng.integers(len(words) + 1), HOSTILE[rng.integers(len(HOSTILE))])
    return words


def experiment(rng: np.random.Generator, folder: Path):
    """The command of one of the experiments; what it would run does nothing."""
    chosen = EXPERIMENTS[rng.integers(len(EXPERIMENTS))]
    presets = [*chosen.presets, "smok", "--help", ""]
    preset = presets[rng.integers(len(presets))]
    fields = list(type(chosen.presets[chosen.default]).__dataclass_fields__)
    words = [preset, *some_words(rng, fields)][rng.integers(2) :]
    words = [*words, "--out", str(folder / "run")]
    nothing = lambda config, run_folder: None
    command = lambda argv: run_experiment(chosen, argv, run=nothing, report=nothing)
    return lambda: outcome(command, words)


def grid(rng: np.random.Generator, folder: Path):
    """A batch of which no run is started."""
    fields = [*3 * ["rho", "num_steps", "seeds"], "data", "arms", "grid", "out", "none"]
    modules = [
        "experiments.class_stream",
        "experiments.plasticity",
        "json",
        "..",
        "a b",
    ]
    module = modules[max(0, rng.integers(20) - 15)]
    words = [module, ["smoke", "smok", "--x"][max(0, rng.integers(20) - 17)]]
    for _ in range(1 + int(rng.integers(4) == 0)):
        values = ["1", "2"] if rng.integers(4) else []
        values += [some_word(rng) for _ in range(int(rng.integers(5) == 0))]
        words += ["--grid", fields[rng.integers(len(fields))], *values]
    if rng.integers(3) == 0:
        words += ["--each", str(each(rng, folder))]
    own = ["--on", "here", "--on", "slurm", "--parallel", "2", "--slurm", "a=1"]
    if rng.integers(6) == 0:
        at = 2 * rng.integers(4)
        words += own[at : at + 2] if rng.integers(2) else [own[at], some_word(rng)]
    if rng.integers(8) == 0:
        words += some_words(rng, fields)
    words += ["--out", str(folder / "batch")] if rng.integers(8) else []
    return lambda: outcome(without_runs, words)


def some_word(rng: np.random.Generator) -> str:
    """A hostile word."""
    return HOSTILE[rng.integers(len(HOSTILE))]


def each(rng: np.random.Generator, folder: Path) -> Path:
    """A list of settings, damaged."""
    lines = [json.dumps({"rho": i / 10, "width": [4, 8][i % 2]}) for i in range(1, 4)]
    if rng.integers(2):
        lines[rng.integers(3)] = '{"rho": ' + mutate.hostile(rng) + "}"
    raw = mutate.encode("\n".join(lines))
    path = folder / "each.jsonl"
    path.write_bytes(mutate.damage(rng, raw) if rng.integers(2) else raw)
    return path


def without_runs(words: Sequence[str]) -> int:
    """``jaxcl batch`` with a launcher that starts nothing."""

    def start_nothing(jobs, **options):
        del options
        for job in jobs:  # what the operating system would take
            assert all("\0" not in os.fsdecode(os.fsencode(w)) for w in job.command)
            yield job, 0

    before = launch.run_here, launch.run_on_cluster
    launch.run_here = launch.run_on_cluster = start_nothing
    try:
        return batch.main(words)
    finally:
        launch.run_here, launch.run_on_cluster = before


def top(rng: np.random.Generator, folder: Path):
    """``jaxcl`` itself: commands that it has and has not, and folders without runs."""
    commands = ["report", "batch", "convert", "reprot", "--version", "--help", "", "--"]
    words = [commands[rng.integers(len(commands))]][: rng.integers(5)]
    paths = [str(folder), str(folder / "nowhere"), *HOSTILE]
    words += [paths[rng.integers(len(paths))] for _ in range(rng.integers(3))]
    if rng.integers(4) == 0:
        (folder / "results.jsonl").write_bytes(
            mutate.damage(rng, b'{"run": "a"}\n' * 3)
        )
    return lambda: outcome(jaxcl, words)


MAKES = {"experiment": experiment, "batch": grid, "jaxcl": top}


def battery(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Try so many inputs; see :func:`tests.fuzz.battery.run_battery`."""
    here = os.getcwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # where a command without --out writes
    try:
        return run_battery("commands", MAKES, count, seed, folder / "inputs")
    finally:
        os.chdir(here)


if __name__ == "__main__":
    main("commands", MAKES)
