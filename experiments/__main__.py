"""``python -m experiments``: the experiments, a line each."""

import importlib
import sys
from pathlib import Path

from jaxcl.runs.experiment import Experiment, expect_no_words

HERE = Path(__file__).parent


def experiments() -> list[Experiment]:
    """All experiments, by the names of their modules."""
    modules = [
        ".".join(("experiments", *path.relative_to(HERE).parent.parts))
        for path in sorted(HERE.rglob("config.py"))
    ]
    return [importlib.import_module(f"{name}.config").EXPERIMENT for name in modules]


def lines() -> list[str]:
    """What is printed."""
    listed = experiments()
    width = max(len(one.module) for one in listed)
    return [
        *(
            f"{one.module.ljust(width)}  {one.about.strip().splitlines()[0]}"
            for one in listed
        ),
        "",
        "python -m MODULE runs the default preset, python -m MODULE --help says more.",
    ]


if __name__ == "__main__":
    expect_no_words(__doc__, sys.argv[1:])
    print("\n".join(lines()))
