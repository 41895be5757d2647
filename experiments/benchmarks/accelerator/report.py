"""The table of what was measured on a GPU, in the README; made from the committed lines.

python -m experiments.benchmarks.accelerator.report
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcl.runs import expect_no_words, fill

HERE = Path(__file__).parent.parent
LINES = HERE / "results" / "accelerator" / "h100.jsonl"


def read_lines(path: Path = LINES) -> list[dict[str, Any]]:
    """All lines that were committed."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def readme_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Packed runs, Fishers and the kill, as the lines have them."""
    packed = [line for line in lines if line.get("tasks_timed") == 5]
    packs = [line for line in packed if line["item"] == "packs"]
    rows = [
        f"| {line['runs']} | {line['runs_per_hour']:,.0f} "
        f"| {line['steps_per_second']:,.0f} "
        f"| {line['compile_seconds']:.0f} s | {line['program_bytes'] / 1e9:.1f} GB |"
        for line in packs
    ]
    ratios: dict[str, list[float]] = {}
    for line in lines:
        if "ratio" in line:
            ratios.setdefault(line["what"].split(":")[0], []).append(line["ratio"])
    fishers = [
        f"| {name} | {', '.join(f'{ratio:.2f}' for ratio in found)} |"
        for name, found in ratios.items()
    ]
    grids = [line for line in lines if "programs_timed" in line]
    grid, kill = grids[-1], next(line for line in lines if "equal_arrays" in line)
    return "\n".join(
        [
            f"On one {packs[0]['device']}, jax {packs[0]['jax']}:",
            "",
            "| runs in one program | runs an hour | steps a second | compiling | memory |",
            "|---:|---:|---:|---:|---:|",
            *rows,
            "",
            "| Fisher of | seconds against those of the gradient, each call |",
            "|---|---|",
            *fishers,
            "",
            f"The whole grid of {grid['runs']} runs, extrapolated from "
            f"{grid['programs_timed']} of its {grid['programs']} programs: "
            f"{grid['run_seconds'] / 60:.0f} minutes, and "
            f"{grid['compile_seconds'] / 60:.0f} of compiling. A run that was killed ended "
            f"with {kill['equal_arrays']} of {kill['arrays']} arrays equal bit for bit.",
        ]
    )


if __name__ == "__main__":
    expect_no_words(__doc__)
    fill(HERE / "README.md", readme_text(read_lines()), "accelerator")


__all__ = ["LINES", "read_lines", "readme_text"]
