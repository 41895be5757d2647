"""Adapters on Flax modules, in both modes of nnx, through ``from_flax``."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcl.adapters import (
    LoRALinear,
    add_lora,
    apply_lora,
    combine,
    lora_rule,
    merge_lora,
    partition,
    with_frozen,
)
from jaxcl.losses import check_rows_independent, cross_entropy, single_head
from jaxcl.models import from_flax
from jaxcl.tree import as_batch
from tests.test_adapters.small import moved

X = jax.random.normal(jax.random.key(1), (5, 3))
BATCH = as_batch(X, jnp.arange(5) % 2)
FACTORS = {"lora_a", "lora_b", "lora_scale"}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(6, 8, rngs=rngs)
        self.down = nnx.Linear(8, 6, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


class Net(nnx.Module):
    """Layers by themselves, in a list, and stacked by vmap; written as a user would."""

    def __init__(self, rngs):
        self.embed = nnx.Linear(3, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        keys = jax.random.split(rngs.params(), 4)
        self.blocks = jax.vmap(lambda key: Block(nnx.Rngs(key)))(keys)
        mixed = nnx.Linear(6, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 6, rngs=rngs)
        self.mix = nnx.Sequential(*mixed)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.embed(x))
        x, _ = jax.lax.scan(lambda x, block: (block(x), None), x, self.blocks)
        return self.head(self.mix(x))


@pytest.fixture(params=["graph", "tree"], autouse=True)
def mode(request):
    """Modules as graphs of references, as by default, and as plain trees."""
    graph = request.param == "graph"
    with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
        yield


def test_a_module_keeps_its_weights_and_its_outputs():
    """Oracle: the module before; it stays as it was."""
    net = Net(nnx.Rngs(0))
    before = net(X)
    found = apply_lora(net, rngs=nnx.Rngs(1), rank=2, dropout=0.5)
    found.eval()
    np.testing.assert_array_equal(found(X), before)
    np.testing.assert_array_equal(net(X), before)
    kinds = lambda module: {
        "/".join(map(str, path)): type(part)
        for path, part in nnx.iter_modules(module)
        if isinstance(part, nnx.Linear)
    }
    names = ["embed", "blocks/up", "blocks/down", "mix/layers/0", "mix/layers/2"]
    assert kinds(net) == dict.fromkeys([*names, "head"], nnx.Linear)
    assert kinds(found) == {**dict.fromkeys(names, LoRALinear), "head": nnx.Linear}
    assert found.blocks.up.kernel[...] is net.blocks.up.kernel[...]
    found.train()
    assert np.abs(np.asarray(moved_outputs(found) - before)).max() > 0


def moved_outputs(module):
    """What the module computes with another adapter."""
    module.embed.lora_b[...] = jnp.ones_like(module.embed.lora_b[...])
    return module(X)


def test_trees_are_those_of_the_library():
    """Oracle: add_lora on the parameters of the plain module; merging gives them back."""
    net = Net(nnx.Rngs(0))
    plain, model = from_flax(net), from_flax(apply_lora(net, rngs=nnx.Rngs(1), rank=2))
    params, base = model.init(jax.random.key(0)), plain.init(jax.random.key(0))
    options = {"rank": 2, "alpha": 16, "targets": "all-linear"}
    ours = add_lora(jax.random.key(0), base, **options)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, ours)
    trainable, frozen = partition(params, lora_rule)
    wanted = partition(ours, lora_rule)
    assert jax.tree.structure(trainable) == jax.tree.structure(wanted[0])
    chex.assert_trees_all_equal(frozen, wanted[1])
    bounds = {3: trainable["embed"], 8: trainable["blocks"]["down"]}
    for i, part in bounds.items():
        assert 0.5 / i**0.5 < np.abs(part["lora_a"]).max() <= 1 / i**0.5
    both = combine(moved(trainable), frozen)
    outputs = model.apply(both, X)
    assert np.abs(np.asarray(outputs - plain.apply(base, X))).max() > 0.1
    merged = merge_lora(both)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(plain.apply(merged, X), outputs, atol=1e-5)


def test_the_scale_is_a_constant():
    """Oracle: zero gradients of scales. Control: those of factors."""
    model = from_flax(apply_lora(Net(nnx.Rngs(0)), rngs=nnx.Rngs(1), rank=2))
    params = moved(model.init(jax.random.key(0)))
    grads = jax.grad(lambda params: jnp.sum(model.apply(params, X) ** 2))(params)
    for part in (grads["embed"], grads["blocks"]["up"]):
        assert not part["lora_scale"].any()
        assert part["lora_a"].any()


def test_dropout_has_a_mask_for_each_row():
    """Oracles: copies of each row, each row by itself; stacked layers have own masks."""
    net = apply_lora(Net(nnx.Rngs(0)), rngs=nnx.Rngs(1), rank=2, dropout=0.5)
    model = from_flax(net)
    trainable, frozen = partition(model.init(jax.random.key(0)), lora_rule)
    trainable = moved(trainable)
    apply = with_frozen(model.apply, frozen)
    loss = cross_entropy(single_head(apply))
    check_rows_independent(loss, trainable, BATCH, jax.random.key(4))
    keys = jax.random.split(jax.random.key(5), 5)
    noisy = apply(trainable, X, keys)
    np.testing.assert_allclose(apply(trainable, X[3:], keys[3:]), noisy[3:], atol=1e-5)
    assert np.abs(np.asarray(noisy - apply(trainable, X))).max() > 0.1
    streams = nnx.state(net.blocks.up, nnx.RngKey)["dropout"]["rngs"]["key"]
    assert len(np.unique(jax.random.key_data(streams[...]), axis=0)) == 4


def test_a_layer_by_itself():
    """Oracle: the formula by numpy, with the scales of both kinds; dtypes by hand."""
    layer = LoRALinear(3, 4, rank=2, alpha=8, rslora=True, rngs=nnx.Rngs(0))
    assert {*nnx.to_pure_dict(nnx.state(layer))} == {"kernel", "bias", *FACTORS}
    np.testing.assert_array_equal(layer(X), nnx.Linear(3, 4, rngs=nnx.Rngs(0))(X))
    layer.lora_b[...] = jnp.arange(8.0).reshape(2, 4)
    kernel, bias, a, b = (
        np.asarray(part[...])
        for part in (layer.kernel, layer.bias, layer.lora_a, layer.lora_b)
    )
    wanted = X @ kernel + bias + 8 / np.sqrt(2) * (X @ a) @ b
    np.testing.assert_allclose(layer(X), wanted, rtol=1e-5)
    half = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16}
    narrow = LoRALinear(3, 4, rank=2, rngs=nnx.Rngs(0), **half)
    assert narrow(X).dtype == jnp.bfloat16
    assert narrow.kernel.dtype == jnp.bfloat16
    assert narrow.lora_a.dtype == narrow.lora_b.dtype == jnp.float32


def test_some_layers_of_other_ranks_inside_a_traced_constructor():
    """Oracle: names and ranks by hand; init draws another network for each key."""
    options = {"targets": ["mix/layers/.*", "up"], "rank_pattern": {"0": 1, "up": 3}}
    build = lambda rngs: apply_lora(Net(rngs), rngs=rngs, rank=2, **options)
    model = from_flax(build)
    params = model.init(jax.random.key(0))
    found = params["mix"]["layers"]
    ranks = [part["lora_a"].shape[-1] for part in (found[0], found[2])]
    assert (ranks, params["blocks"]["up"]["lora_a"].shape) == ([1, 2], (4, 6, 3))
    assert "lora_a" not in params["blocks"]["down"]
    other = model.init(jax.random.key(1))
    assert not np.array_equal(other["embed"]["kernel"], params["embed"]["kernel"])
