"""Trees split by rules on paths and joined again, inside every transformation."""

import functools
import re
from typing import NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.adapters import combine, partition, with_frozen


class Pair(NamedTuple):
    left: object
    right: object


ARRAYS = iter(np.arange(80.0, dtype=np.float32).reshape(40, 2))
array = lambda: jnp.asarray(next(ARRAYS))
layer = lambda: {"kernel": array(), "bias": array()}
TREES = {
    "dicts": {"dense_0": layer(), "dense_1": layer(), "empty": {}, "out": layer()},
    "lists": {"layers": [layer(), layer()], "none": None, "tuple": (array(), {})},
    "record": Pair(layer(), Pair(array(), {"kernel": array()})),
    "frozen dict": flax.core.freeze({"dense": layer(), "scale": array()}),
    "numbers": {"layers": {0: layer(), 2: layer()}, "scale": array()},
}


def names(tree):
    """The paths of all leaves, spelled by JAX."""
    spell = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {spell(path) for path, _ in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("name", TREES)
def test_the_parts_of_a_tree_make_it_again(name):
    """A law, of trees of many kinds; every leaf is in one part, and the same object."""
    tree = TREES[name]
    trainable, frozen = partition(tree, "kernel")
    assert names(trainable) == {path for path in names(tree) if "kernel" in path}
    assert names(frozen) == names(tree) - names(trainable)
    assert len(jax.tree.leaves((trainable, frozen))) == len(jax.tree.leaves(tree))
    again = combine(trainable, frozen)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    same = jax.tree.map(lambda a, b: a is b, again, tree)
    assert all(jax.tree.leaves(same))


def test_the_trainable_part_is_a_plain_nested_dict():
    """Oracle: written by hand; so is the frozen part of dicts."""
    tree = TREES["dicts"]
    trainable, frozen = partition(tree, "dense_.*/kernel")
    kernel = lambda name: {"kernel": tree[name]["kernel"]}
    assert trainable == {"dense_0": kernel("dense_0"), "dense_1": kernel("dense_1")}
    assert {*frozen} == {"dense_0", "dense_1", "empty", "out"}
    assert {*frozen["dense_0"]} == {"bias"}
    everything, nothing = partition(tree, ".*")
    assert (everything["out"], nothing) == (tree["out"], {"empty": {}})
    assert partition(TREES["lists"], "layers/1")[0] == {
        "layers": {1: TREES["lists"]["layers"][1]}
    }


PATHS = ["out/kernel", "out_proj/kernel", "layers/out/bias", "layers/norm_0/scale"]


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ("out", [0, 2]),  # one name of the path, not a part of a name
        ("kernel", [0, 1]),
        ("out/kernel", [0]),
        ("layers", [2, 3]),
        ("layers/.*/(bias|scale)", [2, 3]),
        ("norm_\\d", [3]),
        (["out/kernel", "norm_0"], [0, 3]),
        (lambda path: path.endswith("kernel"), [0, 1]),
        ([lambda path: "norm" in path, "out_proj"], [1, 3]),
        (re.compile("out"), [0, 1, 2]),  # found anywhere
    ],
)
def test_a_rule_selects_paths(rule, chosen):
    """Oracle: the leaves that each of ten rules selects, by hand."""
    tree = {}
    for number, path in enumerate(PATHS):
        *above, last = path.split("/")
        node = functools.reduce(
            lambda node, name: node.setdefault(name, {}), above, tree
        )
        node[last] = number
    trainable, _ = partition(tree, rule)
    assert sorted(jax.tree.leaves(trainable)) == chosen


def test_an_adapter_goes_over_any_base_and_replaces_what_is_there():
    """Oracle: dicts united by hand."""
    base = {"layer": {"kernel": 1.0}, "out": {"kernel": 2.0}}
    adapter = {"layer": {"lora_a": 3.0}, "out": {"kernel": 4.0}}
    wanted = {"layer": {"kernel": 1.0, "lora_a": 3.0}, "out": {"kernel": 4.0}}
    assert combine(adapter, base) == wanted
    assert base == {"layer": {"kernel": 1.0}, "out": {"kernel": 2.0}}
    assert combine({}, base) == combine(base, {}) == combine(base, ()) == base


def quadratic(params, x):
    """A function of all leaves of the first tree."""
    layers = params["dense_0"], params["dense_1"], params["out"]
    return sum(jnp.sum((x * each["kernel"] + each["bias"]) ** 2) for each in layers)


def test_parts_compose_with_every_transformation():
    """Oracles: the function of the full tree, a Python loop, the gradient of its leaves."""
    tree, x = TREES["dicts"], jnp.array([1.0, 2.0])
    trainable, frozen = partition(tree, "kernel")
    loss = with_frozen(quadratic, frozen)
    np.testing.assert_allclose(jax.jit(loss)(trainable, x), quadratic(tree, x))
    grads = jax.grad(loss)(trainable, x)
    full, _ = partition(jax.grad(quadratic)(tree, x), "kernel")
    chex.assert_trees_all_close(grads, full)

    # Seeds side by side have one frozen part.
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), trainable)
    both = jax.vmap(loss, (0, None))(many, x)
    twice = jax.tree.map(lambda leaf: 2 * leaf, trainable)
    np.testing.assert_allclose(both, [loss(trainable, x), loss(twice, x)])

    def step(trainable, _):
        grads = jax.grad(loss)(trainable, x)
        return jax.tree.map(lambda a, b: a - 0.001 * b, trainable, grads), None

    def train(trainable, frozen):
        del frozen
        return jax.lax.scan(step, trainable, length=3)[0]

    looped = trainable
    for _ in range(3):
        looped, _ = step(looped, None)
    given = jax.tree.map(jnp.copy, trainable)
    done = jax.jit(train, donate_argnums=0)(given, frozen)
    chex.assert_trees_all_close(done, looped, rtol=1e-6)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen) if leaf.size)


def test_frozen_weights_are_arguments_of_the_program():
    """Oracle: the text of the compiled program, without and with the weights inside."""
    tree = {"w": jnp.arange(2000.0).reshape(50, 40), "b": jnp.zeros(40)}
    trainable, frozen = partition(tree, "b")
    apply = lambda params, x: x @ params["w"] + params["b"]
    x = jnp.ones((3, 50))
    inside = lambda trainable, frozen: with_frozen(apply, frozen)(trainable, x)
    text = lambda function, *given: jax.jit(function).lower(*given).as_text()
    short = text(inside, trainable, frozen)
    assert len(text(lambda part: inside(part, frozen), trainable)) > 3 * len(short)
