"""All items, in the order in which they are wanted. Add one here."""

from experiments.benchmarks.accelerator.decoder import host_loop, sam_step
from experiments.benchmarks.accelerator.fishers import fishers
from experiments.benchmarks.accelerator.packed import grid, one_pack, packs, parts
from experiments.benchmarks.accelerator.resume import kill_and_resume
from experiments.benchmarks.accelerator.schedule import Item

#: The shares of eight minutes are about 100, 130, 45, 55, 40, 60, 20, 15 and 15 seconds.
ITEMS = (
    Item("packs", packs, 100),
    Item("grid", grid, 130),
    Item("sam", sam_step, 45),
    Item("fisher", fishers, 55),
    Item("loop", host_loop, 40),
    Item("resume", kill_and_resume, 60, "--xla_gpu_deterministic_ops=true"),
    Item("parts", parts, 20),
    Item("no-triton", one_pack, 15, "--xla_gpu_enable_triton_gemm=false"),
    Item("autotuned", one_pack, 15, ""),
)
