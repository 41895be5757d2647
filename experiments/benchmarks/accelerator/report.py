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
    packed = [line for line in lines if line.get("tasks_timed") == 5]
    packs = [line for line in packed if line["item"] == "packs"]
    rows = [
        f"| {line['runs']} | {line['commit'][:7]} | {line['runs_per_hour']:,.0f} "
        f"| {line['steps_per_second']:,.0f} "
        f"| {line['compile_seconds']:.0f} s | {line['program_bytes'] / 1e9:.1f} GB |"
        for line in packs
    ]
    ratios: dict[str, list[float]] = {}
    for line in lines:
        if "ratio" in line:
            ratios.setdefault(_ratio_of(line), []).append(line["ratio"])
    fishers = [
        f"| {name} | {', '.join(f'{ratio:.2f}' for ratio in found)} |"
        for name, found in sorted(ratios.items())
    ]
    grids = [line for line in lines if "programs_timed" in line]
    grid, kill = grids[-1], next(line for line in lines if "equal_arrays" in line)
    return "\n".join(
        [
            f"On one {packs[0]['device']}, jax {packs[0]['jax']}:",
            "",
            "| runs in one program | commit | runs an hour | steps a second | compiling "
            "| memory |",
            "|---:|---|---:|---:|---:|---:|",
            *rows,
            "",
            "| what costs | of the time of | each round or call |",
            "|---|---|---|",
            *fishers,
            "",
            f"The whole grid of {grid['runs']} runs, extrapolated from "
            f"{grid['programs_timed']} of its {grid['programs']} programs: "
            f"{grid['run_seconds'] / 60:.0f} minutes, and "
            f"{grid['compile_seconds'] / 60:.0f} of compiling. A run that was killed ended "
            f"with {kill['equal_arrays']} of {kill['arrays']} arrays equal bit for bit.",
        ]
    )


def _ratio_of(line: Mapping[str, Any]) -> str:
    """The two cells of the table that say what was measured against what."""
    network = line["what"].split(":")[0]
    return RATIOS.get(line["item"], f"the Fisher of {network} | the gradient")


if __name__ == "__main__":
    expect_no_words(__doc__)
    fill(HERE / "README.md", readme_text(read_lines()), "accelerator")
