"""The table of what was measured on a GPU, in the README; made from the committed lines.

python -m experiments.benchmarks.accelerator.report
"""

import json
from collections.abc import Sequence
from typing import Any

from experiments.benchmarks.report import README
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.readme import fill

LINES = README.parent / "results" / "accelerator"

#: What a ratio is of, by item; some name the network.
RATIOS = {
    "language": "a step of an adapter with SAM, {network} | the plain step",
    "finetune": "a step of an adapter, {network} | the step with replay",
    "sam": "a step of SAM, decoder | the plain step",
    "loop": "a step of the host loop, decoder | the bare step",
    "fisher": "the Fisher of {network} | the gradient",
}


def read_lines() -> list[dict[str, Any]]:
    """All lines that were committed."""
    files = sorted(LINES.glob("*.jsonl"), key=lambda file: len(file.name))
    return [
        json.loads(line) for file in files for line in file.read_text().splitlines()
    ]


def readme_text(lines: Sequence[dict[str, Any]]) -> str:
    """Packed runs, steps, Fishers and the kill, as the lines have them."""
    packs = [x for x in lines if x["item"] == "packs" and x.get("tasks_timed") == 5]
    rows = [
        f"| {x['runs']} | {x['commit'][:7]} | {x['runs_per_hour']:,.0f} "
        f"| {x['steps_per_second']:,.0f} | {x['compile_seconds']:.0f} s "
        f"| {x['program_bytes'] / 1e9:.1f} GB |"
        for x in packs
    ]
    ratios: dict[str, list[str]] = {}
    for x in lines:
        if "ratio" in x:
            compared = RATIOS[x["item"]].format(network=x["what"].split(":")[0])
            ratios.setdefault(compared, []).append(f"{x['ratio']:.2f}")
    grid = [x for x in lines if "programs_timed" in x][-1]
    kill = next(x for x in lines if "equal_arrays" in x)
    return "\n".join(
        [
            f"On one {packs[0]['device']}, jax {packs[0]['jax']}:",
            "",
            "| runs in one program | commit | runs an hour | steps a second "
            "| compiling | memory |",
            "|---:|---|---:|---:|---:|---:|",
            *rows,
            "",
            "| what costs | of the time of | each round or call |",
            "|---|---|---|",
            *(f"| {name} | {', '.join(ratios[name])} |" for name in sorted(ratios)),
            "",
            f"The whole grid of {grid['runs']} runs, extrapolated from "
            f"{grid['programs_timed']} of its {grid['programs']} programs: "
            f"{grid['run_seconds'] / 60:.0f} minutes, and "
            f"{grid['compile_seconds'] / 60:.0f} of compiling. A run that was killed "
            f"ended with {kill['equal_arrays']} of {kill['arrays']} arrays equal bit for "
            "bit.",
            *language_text([x for x in lines if "tokens_per_second" in x]),
        ]
    )


def language_text(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Steps and generation of language models, if they were measured."""
    if not lines:
        return []
    return [
        "",
        "| language model | first call | a step or call | tokens a second | TFLOP/s |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {x['what']} | {x['first_seconds']:.0f} s | {x['run_seconds']:.3f} s "
            f"| {x['tokens_per_second']:,.0f} | {x['teraflops_per_second']:.0f} |"
            for x in lines
        ),
    ]


if __name__ == "__main__":
    expect_no_words(__doc__)
    fill(README, readme_text(read_lines()), "accelerator")
