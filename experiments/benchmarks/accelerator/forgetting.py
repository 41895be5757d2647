"""Longer runs of the experiment on fine-tuning: two orders with five seeds, then TRACE.

The experiment goes on where it was stopped, so that a later call may do the rest: each
run is a line of its results, which are facts here as soon as they are written.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.accelerator.schedule import Fact
from jaxcl.runs.folder import read_records

DATA, MODELS, RUNS = "JAXCL_REALDATA", "JAXCL_MODELS", "JAXCL_FORGETTING"

#: Presets with more words of their command lines; the small ones only show the way.
LARGE = {"long": "", "trace": ""}
FEW = "--arms er --seeds 1 --num-tasks 2 --words 8 --num-steps 2 --batch-size 2 "
FEW += "--capacity 8 --replay-size 2 --test-rows 1 --general-rows 1"
SMALL = {"smoke": FEW, "trace": FEW}


def forgetting(small: bool, folder: Path) -> Iterator[Fact]:
    """A fact for each run: its score of tasks just learned, and of all at the end."""
    data, models = (Path(os.environ.get(name) or "nowhere") for name in (DATA, MODELS))
    parts = [data / part for part in ("text-cls", "trace", "instruct")]
    for name, path in (*((DATA, part) for part in parts), (MODELS, models / "smollm2")):
        if not path.is_dir():
            remedy = "see experiments/finetune/README.md"
            what = f"skipped: {name} must be a folder with {path.name}/; {remedy}"
            yield {"what": what, "status": "skipped"}
            return
    home = Path(os.environ.get(RUNS) or folder)
    for preset, words in (SMALL if small else LARGE).items():
        command = [sys.executable, "-m", "experiments.finetune", preset, *words.split()]
        command += ["--data", str(data), "--model", str(models / "smollm2")]
        yield from watched(command, home / preset)


def watched(command: Sequence[str], place: Path) -> Iterator[Fact]:
    """Run an experiment, and tell of each new line of its results."""
    shown = len(read_records(place))
    # Every seed and task would compile the same programs again.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(place.parent / "compiled")}
    given = [*command, "--out", str(place)]
    with subprocess.Popen(given, env={**cache, **os.environ}) as process:
        ended = False
        while not ended:
            time.sleep(0.5)
            ended = process.poll() is not None  # first: lines may come before the end
            lines = read_records(place)[shown:]
            shown += len(lines)
            yield from (fact_of(place.name, line) for line in lines)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, given[:4])


def fact_of(preset: str, line: dict[str, Any]) -> Fact:
    """What is said of a run; means over its tasks."""
    mean = lambda values: np.mean(np.array(values, float))  # NaN for what is not known
    return {
        "what": f"{preset}: {line['setting']}, {line['arm']}, seed {line['seed']}",
        "status": line["status"],
        "run_seconds": line["seconds"],
        "score_when_learned": mean(line["accuracy"]),
        "score_at_the_end": mean(line["final"]),
        "choice_at_the_end": mean(line["choice"][-1]),
        "general_change": mean(
            [end - start for start, end in line["general"].values()]
        ),
    }
