"""A checksum of weights: what changes it, and what must not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.sharding import ShardingPlan, fsdp, make_mesh, shardings
from jaxcl.training.run_state import _sums, fingerprint

TREE = {
    "kernel": np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32),
    "bias": jnp.arange(16, dtype=jnp.bfloat16),
    "token": np.arange(6, dtype=np.int8).reshape(2, 3),
    "key": jax.random.key(3),
    "flag": np.array(True),
    "turn": np.array([1 + 2j, 3 - 1j], np.complex64),
    "none": np.zeros((0, 4), np.float32),
}


def test_it_is_the_same_wherever_weights_lie():
    """Oracle: the same tree on the host, on a device, and split over eight."""
    sharding = ShardingPlan(make_mesh(data=2, fsdp=4), fsdp(at_least=1))
    split = jax.device_put(TREE, shardings(sharding, TREE))
    assert len(split["kernel"].sharding.device_set) == 8
    on_device = jax.tree.map(jnp.asarray, TREE)
    assert fingerprint(TREE) == fingerprint(on_device) == fingerprint(split)
    assert len(fingerprint(TREE)) == 16


def test_the_sums_are_those_of_a_loop():
    """Oracle: the definition, entry by entry in Python's integers."""

    def mix(word):
        word = (word ^ (word >> 16)) * 0x85EBCA6B % 2**32
        word = (word ^ (word >> 13)) * 0xC2B2AE35 % 2**32
        return word ^ (word >> 16)

    array = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    for which, odd in enumerate((0x9E3779B1, 0x85EBCA77)):
        words = enumerate(array.ravel().view(np.uint32).tolist())
        total = sum(mix(word ^ mix((i * odd + odd) % 2**32)) for i, word in words)
        assert int(_sums(array)[which]) == total % 2**32


def changed(name, value):
    return {**TREE, name: value}


@pytest.mark.parametrize(
    "other",
    [
        changed("kernel", np.nextafter(TREE["kernel"], np.float32(9))),
        changed("kernel", TREE["kernel"][::-1]),
        changed("kernel", TREE["kernel"].reshape(16, 8)),
        changed("kernel", TREE["kernel"] - np.eye(8, 16, dtype=np.float32)),
        changed("bias", TREE["bias"].at[3].add(0.5)),
        changed("bias", TREE["bias"].astype(jnp.float32)),
        changed("token", -TREE["token"]),
        changed("key", jax.random.key(4)),
        changed("flag", np.array(False)),
        changed("turn", TREE["turn"].conj()),
        changed("none", np.zeros((0, 5), np.float32)),
        {("gate" if k == "kernel" else k): v for k, v in TREE.items()},
    ],
    ids=itertools.count(),
)
def test_any_change_shows(other):
    """Oracle: the trees differ."""
    assert fingerprint(other) != fingerprint(TREE)


def test_words_of_64_bits_count_whole():
    """Oracle: two numbers that agree in 32 of their bits, either half."""
    with jax.enable_x64(True):
        marks = {fingerprint(np.array([n], np.int64)) for n in (1, 1 + 2**32, 2**32)}
        assert len(marks) == 3
