"""Placement on eight pretend devices: which axis is split, and what is refused."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxcl.sharding import (
    ShardingPlan,
    batch_sharding,
    check_sharding_plan,
    fsdp,
    make_mesh,
    own_rows,
    place_rows,
    replicate,
    replicated,
    shardings,
    split_rows,
)
from jaxcl.tree import as_batch


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ((64, 48), ("fsdp", "tensor")),  # longest first
        ((48, 64), ("tensor", "fsdp")),
        ((63, 64), (None, "fsdp")),  # 63 cannot be split
        ((3, 64, 48), (None, "fsdp", "tensor")),
        ((4096,), ("fsdp",)),
        ((8, 8), ()),  # small
        ((), ()),
    ],
)
def test_large_leaves_are_split_along_their_longest_axes(shape, want):
    """Oracle: by hand, on a mesh of 2 x 2 x 2."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    rule = fsdp(at_least=1000)
    assert rule("params/kernel", shape, mesh) == PartitionSpec(*want)
    assert replicate("params/kernel", shape, mesh) == PartitionSpec()
    replicated = fsdp(at_least=1000, replicated=("lora",))
    assert replicated("params/lora_a", shape, mesh) == PartitionSpec()
    assert rule("memory/rows/x", shape, mesh) == PartitionSpec()
    for layer in ("params/memory_attention/kernel", "params/memory/kernel"):
        assert rule(layer, shape, mesh) == PartitionSpec(*want)


def test_every_leaf_of_a_state_lies_where_its_parameters_lie():
    """Oracle: shapes of the shards. Names come from the path."""
    sharding = ShardingPlan(make_mesh(data=2, fsdp=4), fsdp(at_least=100))
    tree = {
        "params": np.zeros((16, 8)),
        "momentum": np.zeros((16, 8)),
        "bias": np.zeros(8),
    }
    placed = jax.device_put(tree, shardings(sharding, tree))
    shapes = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, placed)
    assert shapes == {"params": (4, 8), "momentum": (4, 8), "bias": (8,)}


def test_rows_are_split_over_all_devices_that_share_a_batch():
    """Oracle: the batch itself; one process reads all of it."""
    sharding = ShardingPlan(make_mesh(data=4, fsdp=2), replicate)
    batch = as_batch(np.arange(32.0).reshape(16, 2), np.arange(16))
    placed = place_rows(sharding, batch)
    np.testing.assert_array_equal(placed.x, batch.x)
    assert placed.x.addressable_shards[0].data.shape == (2, 2)
    np.testing.assert_array_equal(own_rows(sharding, np.arange(16)), np.arange(16))


def test_what_does_not_fit_the_devices_is_refused():
    """Oracle: the contract."""
    with pytest.raises(ValueError, match=r"must have 8 devices in all, got 3 x 2 x 1"):
        make_mesh(data=3, fsdp=2)
    with pytest.raises(ValueError, match="got 1 x 16 x 1"):
        make_mesh(fsdp=16)
    for spec in (PartitionSpec("data"), PartitionSpec("x"), PartitionSpec(None, None)):
        sharding = ShardingPlan(
            make_mesh(data=4, fsdp=2), lambda path, shape, mesh, s=spec: s
        )
        with pytest.raises(
            ValueError, match=r"splits bias \[3\] evenly over Mesh.* got"
        ):
            shardings(sharding, {"bias": np.zeros(3)})
    sharding = ShardingPlan(make_mesh(data=4, fsdp=2), replicate)
    check_sharding_plan("learn", sharding, batch_size=16)
    with pytest.raises(
        ValueError, match=r"learn: eval_batch_size must be a multiple of the 8"
    ):
        check_sharding_plan("learn", sharding, batch_size=16, eval_batch_size=12)


def test_rows_of_a_memory_are_split_where_a_mesh_is_set():
    """Oracle: the sharding of a batch; as they were without a mesh, or if one is mapped."""
    plan = ShardingPlan(make_mesh(data=2, fsdp=4), replicate)
    rows, few = np.ones((16, 3), np.float32), np.ones((6, 3), np.float32)
    everywhere = replicated(plan)
    split = jax.jit(split_rows, in_shardings=everywhere)
    with jax.set_mesh(plan.mesh):
        found = split({"rows": rows, "few": few})
    assert found["rows"].sharding.is_equivalent_to(batch_sharding(plan), 2)
    assert found["few"].sharding.is_fully_replicated
    left = jax.jit(lambda rows: split_rows(rows) + 1, in_shardings=everywhere)(rows)
    assert left.sharding.is_fully_replicated
    spec = PartitionSpec("data")
    mapped = jax.shard_map(split_rows, mesh=plan.mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_array_equal(mapped(rows), rows)
