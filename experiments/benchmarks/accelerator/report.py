"""The table of what was measured on a GPU, in the README; made from the committed lines.

python -m experiments.benchmarks.accelerator.report
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.readme import fill

HERE = Path(__file__).parent.parent
LINES = HERE / "results" / "accelerator"
NEWLINE = "\n"  # no backslash in the braces of Python 3.11

#: What a ratio is of, by item; those of Fishers name the network.
RATIOS = {
    "sam": "a step of SAM, decoder | the plain step",
    "loop": "a step of the host loop, decoder | the bare step",
}


def read_lines(path: Path = LINES) -> list[dict[str, Any]]:
    """All lines that were committed."""
    files = sorted(path.glob("*.jsonl"), key=lambda file: len(file.name))
    return [
        json.loads(line) for file in files for line in file.read_text().splitlines()
    ]


def readme_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Packed runs, steps, Fishers and the kill, as the lines have them."""
    packs = [line for line in lines if line["item"] == "packs"]
    packs = [line for line in packs if line.get("tasks_timed") == 5]
    rows = [
        f"| {line['runs']} | {line['commit'][:7]} | {line['runs_per_hour']:,.0f} "
        f"| {line['steps_per_second']:,.0f} "
        f"| {line['compile_seconds']:.0f} s | {line['program_bytes'] / 1e9:.1f} GB |"
        for line in packs
    ]
    ratios: dict[str, list[str]] = {}
    for line in lines:
        if "ratio" in line:
            ratios.setdefault(_ratio_of(line), []).append(f"{line['ratio']:.2f}")
    costs = [f"| {name} | {', '.join(ratios[name])} |" for name in sorted(ratios)]
    grid = [line for line in lines if "programs_timed" in line][-1]
    kill = next(line for line in lines if "equal_arrays" in line)
    return f"""\
On one {packs[0]["device"]}, jax {packs[0]["jax"]}:

| runs in one program | commit | runs an hour | steps a second | compiling | memory |
|---:|---|---:|---:|---:|---:|
{NEWLINE.join(rows)}

| what costs | of the time of | each round or call |
|---|---|---|
{NEWLINE.join(costs)}

The whole grid of {grid["runs"]} runs, extrapolated from {grid["programs_timed"]} of its \
{grid["programs"]} programs: {grid["run_seconds"] / 60:.0f} minutes, and \
{grid["compile_seconds"] / 60:.0f} of compiling. A run that was killed ended with \
{kill["equal_arrays"]} of {kill["arrays"]} arrays equal bit for bit."""


def _ratio_of(line: Mapping[str, Any]) -> str:
    """The two cells of the table that say what was measured against what."""
    network = line["what"].split(":")[0]
    return RATIOS.get(line["item"], f"the Fisher of {network} | the gradient")


if __name__ == "__main__":
    expect_no_words(__doc__)
    fill(HERE / "README.md", readme_text(read_lines()), "accelerator")
