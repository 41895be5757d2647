"""A few minutes of an accelerator: what is most wanted is asked first.

    python -m experiments.benchmarks accelerator --minutes 8
    JAX_PLATFORMS=cpu python -m experiments.benchmarks accelerator --minutes 3  # rehearsal

It runs on whatever device JAX finds, with sizes for a large GPU, or small ones on a CPU.
Every item has a process and a share of the time, and is ended when that is over; what it
does not use goes to the later ones. Every fact is one line of JSON, printed as soon as it
is known and kept in FOLDER/results.jsonl: seconds of compiling and of running, the
program's bytes and the most that the device held. A line ``end`` says how an item ended:
done, time, out of memory or failed (its words are in FOLDER/ITEM/stderr.txt).

Programs are compiled with --xla_gpu_autotune_level=0, since a few minutes are too few to
try kernels for every product; the last items show what that costs. Flags in XLA_FLAGS come
later and win. The minutes begin when Python has started.

The last item, forgetting, is for tens of minutes, and needs folders of data and models in
JAXCL_REALDATA and JAXCL_MODELS; it goes on with the runs in JAXCL_FORGETTING, if that is
set to a folder.
"""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments.benchmarks.accelerator.finetune import finetune
from experiments.benchmarks.accelerator.forgetting import forgetting
from experiments.benchmarks.accelerator.language import language
from experiments.benchmarks.accelerator.packed import grid, one_pack, packs
from experiments.benchmarks.accelerator.ratios import fishers, host_loop, sam_step
from experiments.benchmarks.accelerator.resume import kill_and_resume
from experiments.benchmarks.accelerator.schedule import NO_AUTOTUNING, Item, run_items
from jaxcl.errors import require
from jaxcl.runs.command import refusing
from jaxcl.runs.experiment import OUTPUTS, check_names
from jaxcl.signals import terminable

#: Autotuning may choose other kernels in another process, and so make other bits.
SAME_BITS = f"{NO_AUTOTUNING} --xla_gpu_deterministic_ops=true"
NO_TRITON = f"{NO_AUTOTUNING} --xla_gpu_enable_triton_gemm=false"

#: In the order in which they are wanted. Shares are seconds of eight minutes, if every
#: item uses all of its time.
ITEMS = (
    Item("language", language, 120, ""),  # steps and generation of language models
    Item("finetune", finetune, 60, ""),  # I-LoRA's step against that with replay
    Item("packs", packs, 110),  # runs per hour against runs in one program
    Item("grid", grid, 105),  # the paper's runs all together, extrapolated
    Item("sam", sam_step, 45),  # a SAM step against a plain one
    Item("fisher", fishers, 55),  # the one-pass Fisher on three networks
    Item("loop", host_loop, 40),  # the host loop against its bare step
    Item("resume", kill_and_resume, 75, SAME_BITS),  # kill -9, and equal bits
    Item("no-triton", one_pack, 15, NO_TRITON),  # a pack under other flags
    Item("autotuned", one_pack, 15, ""),
    # Methods on streams of text: what time is left, or all of it where nothing else is
    # asked for. It needs tens of minutes, and data that are not part of the repository.
    Item("forgetting", forgetting, 1, ""),
)
NAMES = tuple(item.name for item in ITEMS)
_ITEMS = tyro.conf.arg(metavar="[ITEM ...]", help=f"Only these of {', '.join(NAMES)}.")


@refusing
def main(argv: Sequence[str]) -> int:
    """The command; 0 also where items ended badly, since their lines say so."""
    program = "python -m experiments.benchmarks accelerator"
    return tyro.cli(measure, prog=program, description=__doc__, args=argv)


def measure(
    minutes: float = 8.0,
    items: Annotated[tuple[str, ...], _ITEMS] = NAMES,
    out: Path | None = None,
) -> int:
    """Do the items that are asked for.

    Args:
      minutes: of all items together.
      items: which.
      out: a new folder; outputs/ and the time of day if absent.
    """
    check_names("items", items, NAMES)
    wanted = f"expected a number above 0, got {minutes:g}"
    require(0 < minutes < math.inf, "--minutes", wanted)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = out or OUTPUTS / f"benchmarks-accelerator-{stamp}"
    there = f"{folder} is there already; choose another --out"
    require(not folder.exists(), "accelerator", there)
    folder.mkdir(parents=True)
    print(f"lines are kept in {folder / 'results.jsonl'}", file=sys.stderr)
    chosen = [item for item in ITEMS if item.name in (items or NAMES)]
    try:
        with terminable():
            run_items(chosen, 60 * minutes, folder)
    except KeyboardInterrupt:
        print(f"interrupted; the lines so far are in {folder}", file=sys.stderr)
        return 130
    return 0
