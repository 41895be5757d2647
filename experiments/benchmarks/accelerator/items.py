"""All items, in the order in which they are wanted. Add one here."""

from experiments.benchmarks.accelerator.decoder import host_loop, sam_step
from experiments.benchmarks.accelerator.fishers import fishers
from experiments.benchmarks.accelerator.packed import grid, one_pack, packs, parts
from experiments.benchmarks.accelerator.resume import kill_and_resume
from experiments.benchmarks.accelerator.schedule import NO_AUTOTUNING, Item

#: Autotuning may choose other kernels in another process, and so make other bits.
SAME_BITS = f"{NO_AUTOTUNING} --xla_gpu_deterministic_ops=true"
NO_TRITON = f"{NO_AUTOTUNING} --xla_gpu_enable_triton_gemm=false"

#: Shares that are seconds of eight minutes, if every item uses all of its time.
ITEMS = (
    Item("packs", packs, 110),  # runs per hour against runs in one program
    Item("grid", grid, 105),  # the whole experiment, extrapolated
    Item("sam", sam_step, 45),  # a SAM step against a plain one
    Item("fisher", fishers, 55),  # the one-pass Fisher on three networks
    Item("loop", host_loop, 40),  # the host loop against its bare step
    Item("resume", kill_and_resume, 75, SAME_BITS),  # kill -9, and equal bits
    Item("parts", parts, 20),  # what a packed task consists of
    Item("no-triton", one_pack, 15, NO_TRITON),  # a pack under other flags
    Item("autotuned", one_pack, 15, ""),
)
