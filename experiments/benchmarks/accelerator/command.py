"""A few minutes of an accelerator: what is most wanted is asked first.

    python -m experiments.benchmarks accelerator --minutes 8
    python -m experiments.benchmarks accelerator --minutes 3     # on a CPU: a rehearsal

It runs on whatever device JAX finds, with sizes for a large GPU, or small ones on a CPU.
Every item has a process and a share of the time, and is ended when that is over; what it
does not use goes to the later ones. Every fact is one line of JSON, printed as soon as it
is known and kept in FOLDER/results.jsonl: seconds of compiling and of running, the
program's bytes and the most that the device held. A line ``end`` says how an item ended:
done, time, out of memory or failed (its words are in FOLDER/ITEM/stderr.txt).

Programs are compiled with --xla_gpu_autotune_level=0, since a few minutes are too few to
try kernels for every product; the last items show what that costs. Flags in XLA_FLAGS come
later and win. The minutes begin when Python has started.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.accelerator.items import ITEMS
from experiments.benchmarks.accelerator.schedule import run_items
from jaxcl.runs.experiment import nearest
from jaxcl.training.processes import terminable


def main(argv: Sequence[str]) -> int:
    """The command; 0 also where items ended badly, since their lines say so."""
    names = [item.name for item in ITEMS]
    asked = parser(names).parse_args(argv)
    unknown = [name for name in asked.items if name not in names]
    if unknown:
        return refuse(f"items: unknown {unknown[0]!r}{nearest(unknown[0], names)}")
    if not 0 < asked.minutes < float("inf"):
        return refuse(f"--minutes: expected a number above 0, got {asked.minutes:g}.")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = asked.out or Path("outputs") / f"benchmarks-accelerator-{stamp}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return refuse(f"{folder} is there already; choose another --out.")
    print(f"lines are kept in {folder / 'results.jsonl'}", file=sys.stderr)
    try:
        with terminable():
            items = [item for item in ITEMS if item.name in (asked.items or names)]
            run_items(items, 60 * asked.minutes, folder)
    except KeyboardInterrupt:
        print(f"interrupted; the lines so far are in {folder}", file=sys.stderr)
        return 130
    return 0


def parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """What may be said."""
    made = argparse.ArgumentParser(
        "python -m experiments.benchmarks accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--minutes", type=float, default=8.0, help="of all items together (8)"
    )
    made.add_argument(
        "--items",
        nargs="*",
        default=[],
        metavar="ITEM",
        help=f"only these of {', '.join(names)} (all)",
    )
    made.add_argument(
        "--out", type=Path, help="a new folder (outputs/ and the time of day)"
    )
    return made


def refuse(words: str) -> int:
    """Bad input, in one line."""
    print(f"error: {words}", file=sys.stderr)
    return 2
