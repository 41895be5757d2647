"""Sharding over many devices: a mesh, and a rule from a leaf to its sharding.

The step is that of a single device, and XLA partitions it. A mesh has three axes. Along
``data`` devices hold different rows of a batch; along ``fsdp`` they also hold different
parts of large parameters, which XLA gathers where they are used. Rows are split over both.
The third, ``tensor``, splits large parameters a second time.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxcl.errors import check_size, require, shown
from jaxcl.typing import Batch

AXES = ("data", "fsdp", "tensor")

#: ``(path, shape, mesh) -> PartitionSpec``; ``path`` is such as ``params/dense_0/kernel``.
PartitionRule = Callable[[str, tuple[int, ...], Mesh], PartitionSpec]


class ShardingPlan(NamedTuple):
    """A mesh and the rule by which leaves are sharded over it."""

    mesh: Mesh
    rule: PartitionRule


def make_mesh(
    *, data: int | None = None, fsdp: int = 1, tensor: int = 1, devices=None
) -> Mesh:
    """A mesh over ``devices`` (all of all processes, if absent), by the sizes of its axes.

    ``data`` takes all remaining devices if absent.
    """
    check_size("make_mesh", fsdp=fsdp, tensor=tensor, data=1 if data is None else data)
    devices = np.asarray(jax.devices() if devices is None else devices)
    data = max(1, devices.size // (fsdp * tensor)) if data is None else data
    axes = f"{devices.size} devices in all, got {data} x {fsdp} x {tensor}"
    fits = data * fsdp * tensor == devices.size
    require(fits, "make_mesh", f"axes must have {axes}")
    kinds = (AxisType.Auto,) * len(AXES)
    return Mesh(devices.reshape(data, fsdp, tensor), AXES, axis_types=kinds)


def fsdp(*, at_least: int = 2**16, replicated: tuple[str, ...] = ()) -> PartitionRule:
    """Split every large leaf along its longest axes that can be split evenly.

    The rule depends on shapes, so that optimizer statistics, anchors, Fisher diagonals and
    averages are split like their parameters. The state's field ``memory`` is replicated.

    Let the ``fsdp`` axis divide the attention heads, and use ``data`` for the other
    devices: where XLA cannot split the heads like the kernels beside them it replicates
    activations (and warns of an involuntary full rematerialization).

    Args:
      at_least: entries from which a leaf is split; below it a copy on every device is
        cheaper than the communication.
      replicated: parts of a path whose leaves are never split, such as ``("lora",)``.
    """
    text = isinstance(replicated, str)  # of which each letter would be a part
    message = f"replicated must be a tuple, got {replicated!r}; add a comma"
    require(not text, "fsdp", message)

    def rule(path, shape, mesh):
        names = path.split("/")
        named = any(part in name for part in replicated for name in names)
        kept = named or names[0] == "memory"
        if kept or np.prod(shape, dtype=np.int64) < at_least:
            return PartitionSpec()
        spec: list[str | None] = [None] * len(shape)
        longest = sorted(range(len(shape)), key=lambda axis: -shape[axis])
        for name in ("fsdp", "tensor"):
            size = mesh.shape[name]
            even = (k for k in longest if spec[k] is None and shape[k] % size == 0)
            if size > 1 and (axis := next(even, None)) is not None:
                spec[axis] = name
        return PartitionSpec(*spec)

    return rule


def replicate(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The rule that replicates everything on every device: pure data parallelism."""
    del path, shape, mesh
    return PartitionSpec()


def shardings(
    plan: ShardingPlan, tree: PyTree, *, prefix: str = "", who: str = "learn"
) -> PyTree:
    """The sharding of every leaf of a tree of arrays or of their shapes."""

    def shard(path, leaf):
        name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
        mesh, shape = plan.mesh, tuple(leaf.shape)
        spec = plan.rule(name, shape, mesh)
        with suppress(ValueError):  # no such axis, or parts of unequal size
            if isinstance(spec, PartitionSpec) and len(spec) <= len(shape):
                sharding = NamedSharding(mesh, spec)
                sharding.shard_shape(shape)
                return sharding
        wanted = f"a PartitionSpec that splits {name} {list(shape)} evenly over {mesh}"
        came = f"{wanted}, got {shown(spec)}; see fsdp"
        return require(False, who, f"rule must return {came}")

    return jax.tree_util.tree_map_with_path(shard, tree)


def batch_sharding(plan: ShardingPlan) -> NamedSharding:
    """Rows split over all devices that may hold different ones."""
    return NamedSharding(plan.mesh, PartitionSpec(("data", "fsdp")))


def split_rows(tree: PyTree) -> PyTree:
    """Rows split over the devices of the mesh that is set, like those of a batch.

    Rows that come from a memory are on every device. XLA would leave them there, compute
    each row everywhere, and sum activations over devices in place of gathering weights.
    The same where no mesh of :func:`make_mesh` is set, and for a number of rows that
    cannot be split evenly.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not {"data", "fsdp"} <= {*mesh.axis_names}:
        return tree
    if {*mesh.axis_types} != {AxisType.Auto}:  # mapped, as by shard_map
        return tree
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    spec = PartitionSpec(("data", "fsdp"))
    put = partial(jax.lax.with_sharding_constraint, shardings=spec)
    return jax.tree.map(lambda x: x if x.shape[0] % parts else put(x), tree)


def replicated(plan: ShardingPlan) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(plan.mesh, PartitionSpec())


def num_parts(plan: ShardingPlan) -> int:
    """How many parts a batch is split into."""
    return plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]


def check_sharding_plan(who: str, plan: ShardingPlan, **sizes: int) -> None:
    """Refuse a mesh with other axes, and batches that cannot be split evenly."""
    names, kinds = plan.mesh.axis_names, plan.mesh.axis_types
    axes = f"{', '.join(AXES)}, all Auto, got {plan.mesh}; make it by make_mesh()"
    ours = {*AXES} <= {*names} and {*kinds} == {AxisType.Auto}
    require(ours, who, f"mesh must have the axes {axes}")
    wanted = f"a multiple of the {num_parts(plan)} devices that share a batch"
    for name, size in sizes.items():
        require(not size % num_parts(plan), who, f"{name} must be {wanted}, got {size}")


def place_rows(plan: ShardingPlan, batch: Batch) -> Batch:
    """Put a batch on the devices; ``batch`` holds the rows of this process only."""
    put = partial(jax.make_array_from_process_local_data, batch_sharding(plan))
    return jax.tree.map(lambda leaf: put(np.asarray(leaf)), batch)


def own_rows(plan: ShardingPlan, numbers: np.ndarray) -> np.ndarray:
    """Those of a batch's row numbers that this process has to read."""
    if jax.process_count() == 1:
        return numbers
    index = batch_sharding(plan).addressable_devices_indices_map((len(numbers),))
    parts = [part for part in index.values() if part is not None]
    starts = sorted({part[0].indices(len(numbers))[:2] for part in parts})
    return np.concatenate([numbers[start:stop] for start, stop in starts])
