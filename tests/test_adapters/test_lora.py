"""Low-rank adapters: their leaves, their laws, and merging."""

import functools
import math
import re
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxcl.adapters import (
    add_lora,
    combine,
    lora_rule,
    merge_lora,
    partition,
    unmerge_lora,
    with_frozen,
)
from jaxcl.losses import (
    check_rows_independent,
    single_head,
    token_cross_entropy,
)
from jaxcl.models import EncoderConfig, encoder, generate
from jaxcl.models.layers import _narrowed, dense
from tests.test_adapters.small import (
    BASE,
    BATCH,
    CONFIG,
    MODEL,
    TOKENS,
    adapted,
    moved,
    trained,
)

KEY = jax.random.key(2)
flatten = functools.partial(flatten_dict, sep="/")
shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)


def adapter(*kernel, rank, noisy=False):
    """The shapes beside a stacked kernel, by hand."""
    layers, i, o = kernel
    found = {
        "kernel": (kernel, "float32"),
        "lora_a": ((layers, i, rank), "float32"),
        "lora_b": ((layers, rank, o), "float32"),
        "lora_scale": ((layers,), "float32"),
    }
    return found | ({"lora_dropout": ((layers,), "float32")} if noisy else {})


def test_the_leaves_of_an_adapter():
    """Oracle: the full tree, written by hand."""
    options = {"rank": 2, "alpha": 4, "dropout": 0.1}
    params = add_lora(KEY, BASE, targets=("q_proj", "layers/down_proj"), **options)
    found = shapes(params["layers"])
    assert found["attention"]["q_proj"] == adapter(2, 16, 16, rank=2, noisy=True)
    assert found["down_proj"] == adapter(2, 24, 16, rank=2, noisy=True)
    for name in ("k_proj", "v_proj", "o_proj"):
        assert {*found["attention"][name]} == {"kernel"}
    assert {*found["gate_proj"]} == {*params["out"]} == {"kernel"}
    q_proj = params["layers"]["attention"]["q_proj"]
    np.testing.assert_array_equal(q_proj["lora_scale"], [2.0, 2.0])
    np.testing.assert_allclose(q_proj["lora_dropout"], [0.1, 0.1])
    trainable, frozen = partition(params, lora_rule)
    factors = {"lora_a", "lora_b"}
    assert {*trainable} == {"layers"}
    assert {*trainable["layers"]["attention"]["q_proj"]} == factors
    assert not factors & {*frozen["layers"]["down_proj"]}


def test_all_linear_layers_but_the_output_get_one():
    """Oracle: the names by hand, of the decoder and of a tree like BERT's."""
    params = add_lora(KEY, BASE, rank=2, targets="all-linear")
    with_factors = lambda layer: "lora_a" in layer
    assert all(map(with_factors, params["layers"]["attention"].values()))
    linear = ("gate_proj", "up_proj", "down_proj")
    assert all(with_factors(params["layers"][name]) for name in linear)
    assert not with_factors(params["out"])
    layer = lambda *shape: {"kernel": jnp.ones(shape), "bias": jnp.ones(shape[-1])}
    bert = {
        "embeddings": {"word": jnp.ones((9, 4)), "norm": {"scale": jnp.ones(4)}},
        "layers": {
            "attention": {"query": layer(2, 4, 4), "output": {"dense": layer(2, 4, 4)}},
            "output": {"dense": layer(2, 8, 4), "norm": {"scale": jnp.ones((2, 4))}},
        },
        "pooler": {"dense": layer(4, 4)},
        "classifier": layer(4, 3),
    }
    found = add_lora(KEY, bert, rank=2, targets="all-linear")
    assert modules(found) == {
        "layers/attention/query",
        "layers/attention/output/dense",
        "layers/output/dense",
        "pooler/dense",
    }
    assert found["pooler"]["dense"]["lora_scale"].shape == ()
    # The last names of a path, of one module among several called dense.
    one = add_lora(KEY, bert, rank=2, targets="attention/output/dense")
    assert modules(one) == {"layers/attention/output/dense"}


def modules(params):
    """The paths of all projections that have an adapter."""
    paths = flatten(params)
    return {path[: -len("/lora_a")] for path in paths if path.endswith("/lora_a")}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_new_adapter_changes_nothing_and_is_float32(dtype):
    """Oracle: the base, to the last bit. Control: a moved adapter."""
    base = jax.tree.map(lambda leaf: leaf.astype(dtype), BASE)
    params = add_lora(KEY, base, rank=2, targets="all-linear", dropout=0.5)
    before = MODEL.apply(base, TOKENS)
    np.testing.assert_array_equal(MODEL.apply(params, TOKENS), before)
    trainable, frozen = partition(params, lora_rule)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trainable)} == {"float32"}
    assert frozen["layers"]["up_proj"]["kernel"] is base["layers"]["up_proj"]["kernel"]
    after = MODEL.apply(combine(moved(trainable), frozen), TOKENS)
    assert (after.dtype, bool(jnp.isfinite(after).all())) == (before.dtype, True)
    assert np.abs(np.asarray(after - before)).max() > 0.1


def test_factors_are_drawn_as_peft_draws_them():
    """Oracle: U(-1/sqrt(i), 1/sqrt(i)) has variance 1 / (3 i); other keys, other ones."""
    wide = {"q_proj": {"kernel": jnp.zeros((3, 400, 100))}}
    draw = lambda key: add_lora(key, wide, rank=90, targets="q_proj")["q_proj"]
    a = np.asarray(draw(KEY)["lora_a"])
    assert np.abs(a).max() <= 1 / math.sqrt(400)
    np.testing.assert_allclose(a.var(axis=(1, 2)), 1 / 1200, rtol=0.02)
    np.testing.assert_allclose(a.mean(), 0, atol=2e-4)
    assert not draw(KEY)["lora_b"].any()
    np.testing.assert_array_equal(draw(KEY)["lora_a"], a)
    assert np.abs(np.corrcoef(a[0].ravel(), a[1].ravel())[0, 1]) < 0.02
    assert not np.array_equal(draw(jax.random.key(0))["lora_a"], a)


def test_patterns_set_ranks_and_scales():
    """Oracle: by hand; the first pattern that matches counts."""
    params = add_lora(
        KEY,
        BASE,
        rank=2,
        alpha=8,
        targets="all-linear",
        rslora=True,
        rank_pattern={"attention/q_proj": 4, "attention/.*": 1},
        alpha_pattern={"(up|down)_proj": 6},
    )
    wanted = {
        "q_proj": (4, 8 / math.sqrt(4)),
        "v_proj": (1, 8),
        "gate_proj": (2, 8 / math.sqrt(2)),
        "up_proj": (2, 6 / math.sqrt(2)),
    }
    layers = params["layers"]
    for name, (rank, scale) in wanted.items():
        part = (layers | layers["attention"])[name]
        assert part["lora_a"].shape[-1] == part["lora_b"].shape[-2] == rank
        np.testing.assert_allclose(part["lora_scale"], scale, rtol=1e-6)


def test_a_module_that_is_trained_fully_is_copied_to_float32():
    """Oracle: names and dtypes by hand; donated, it leaves the base its buffers."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), BASE)
    for base in (half, BASE):
        params = add_lora(KEY, base, rank=2, extra=("out", "norm"))
        trainable, _ = partition(params, [lora_rule, "out", "norm"])
        assert {*trainable} == {"layers", "out", "norm"}
        assert trainable["out"]["kernel"].dtype == jnp.float32
        np.testing.assert_array_equal(trainable["norm"]["scale"], base["norm"]["scale"])
        jax.jit(lambda tree: tree, donate_argnums=0)(trainable)
        assert not base["out"]["kernel"].is_deleted()


@pytest.mark.parametrize("extra", ["norm_0", "gate_proj", "q_proj"])
def test_modules_in_float32_go_with_a_base_in_bfloat16(extra):
    """Oracle: all weights in float32, to the rounding of bfloat16; and the dtypes."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), BASE)
    params = trained(base=half, extra=extra, targets=("v_proj", "up_proj"))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    found, wanted = MODEL.apply(params, TOKENS), MODEL.apply(wide, TOKENS)
    assert found.dtype == jnp.float32
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    gradient = jax.grad(lambda p: MODEL.apply(p, TOKENS).sum())(params)
    same = lambda found, leaf: found.dtype == leaf.dtype
    assert all(jax.tree.leaves(jax.tree.map(same, gradient, params)))
    new = generate(KEY, CONFIG, params, [[1, 2, 3]], max_new_tokens=2, quiet=True)
    assert new[0].shape == (2,)


def test_norms_of_an_encoder_may_be_in_float32_over_bfloat16():
    """Oracle: all weights in float32, to the rounding of bfloat16."""
    config = EncoderConfig(11, 16, 24, 2, 4, initializer_range=0.3)
    model = encoder(config)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.init(KEY))
    params = add_lora(KEY, half, targets="query", extra="layers/.*/norm")
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    found, wanted = model.apply(params, TOKENS), model.apply(wide, TOKENS)
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


# ------------------------------------------------------------------------------ merging


def by_hand(params):
    """Kernels plus scaled products in float64, layer by layer; adapters left out."""
    if not isinstance(params, dict):
        return np.asarray(params, np.float64)
    own = {n: by_hand(p) for n, p in params.items() if not n.startswith("lora_")}
    if "lora_a" in params:
        a, b, scale = (
            np.asarray(params[f"lora_{n}"], float) for n in ("a", "b", "scale")
        )
        for layer in range(len(scale)):
            own["kernel"][layer] += scale[layer] * (a[layer] @ b[layer])
    return own


def test_an_adapter_is_its_merged_network():
    """Oracle: kernels + scale A B by numpy. Control: the base's outputs are others."""
    params = trained()
    merged = merge_lora(params)
    assert jax.tree.structure(merged) == jax.tree.structure(BASE)
    chex.assert_trees_all_close(merged, by_hand(params), atol=1e-6)
    outputs = MODEL.apply(params, TOKENS)
    np.testing.assert_allclose(MODEL.apply(merged, TOKENS), outputs, atol=2e-5)
    inside = jax.jit(lambda params: MODEL.apply(merge_lora(params), TOKENS))
    np.testing.assert_allclose(inside(params), outputs, atol=2e-5)
    assert np.abs(np.asarray(MODEL.apply(BASE, TOKENS) - outputs)).max() > 1
    kernel = merged["layers"]["up_proj"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    assert merged["out"]["kernel"] is params["out"]["kernel"]


def test_unmerging_is_the_inverse():
    """Oracle: the parameters before; in bfloat16 within one unit in the last place."""
    params = trained()
    again = unmerge_lora(merge_lora(params), params)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    chex.assert_trees_all_close(again, params, atol=1e-6)
    half = trained(base=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), BASE))
    merged = merge_lora(half)
    kernel = merged["layers"]["up_proj"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    wanted = by_hand(half)["layers"]["up_proj"]["kernel"]
    np.testing.assert_allclose(kernel.astype(np.float64), wanted, rtol=2**-8)
    again = unmerge_lora(merged, half)["layers"]["up_proj"]["kernel"]
    before = np.asarray(half["layers"]["up_proj"]["kernel"], np.float32)
    ulp = 2.0**-7 * np.maximum(np.abs(before), np.abs(kernel.astype(np.float32)))
    assert (np.abs(again.astype(np.float32) - before) <= ulp).all()


def peak(function, *given, **options):
    """A call's result, and the most bytes that numpy held besides those before."""
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        result = function(*given, **options)
        return result, tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()


def test_merging_in_place_needs_one_tensor_more():
    """Oracle: what numpy allocates. Control: without donation a copy of all kernels."""
    one = 200 * 300 * 4
    tree = {
        f"dense_{n}": {"kernel": np.ones((200, 300), np.float32)} for n in range(12)
    }
    device = moved(jax.tree.map(jnp.asarray, add_lora(KEY, tree, targets="all-linear")))
    host = jax.tree.map(np.array, device)
    wanted, spent = peak(merge_lora, host)
    assert spent > 12 * one
    merged, spent = peak(merge_lora, host, donate=True)
    assert spent < 3.5 * one  # the product, its multiple, and the sum
    assert merged["dense_3"]["kernel"] is host["dense_3"]["kernel"]
    chex.assert_trees_all_equal(merged, wanted)
    merged = merge_lora(device, donate=True)
    chex.assert_trees_all_equal(merged, wanted)
    assert device["dense_3"]["kernel"].is_deleted()
    assert not device["dense_3"]["lora_a"].is_deleted()


# ---------------------------------------------------------------------------- gradients


def test_gradients_are_those_of_the_dense_kernel(x64):
    """Oracle: the chain rule: G = dL/dW of the merged one, dA = s G B^T, dB = s A^T G."""
    del x64
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)
    trainable, frozen = map(wide, adapted())
    loss = token_cross_entropy(single_head(MODEL.apply))
    total = lambda params: jnp.sum(loss(params, BATCH, None))
    grads = jax.grad(lambda part: total(combine(part, frozen)))(trainable)
    full = jax.grad(total)(wide(merge_lora(combine(trainable, frozen))))
    grads, full, own = map(flatten, (grads, full, trainable))
    scales = flatten(frozen)
    swap = lambda matrix: jnp.swapaxes(matrix, -1, -2)
    assert {leaf.dtype.name for leaf in grads.values()} == {"float64"}
    assert len(grads) == 14
    for path, grad in grads.items():
        module, name = path.rsplit("/", 1)
        dense_grad = full[f"{module}/kernel"]
        scale = scales[f"{module}/lora_scale"][:, None, None]
        wanted = (
            scale * dense_grad @ swap(own[f"{module}/lora_b"])
            if name == "lora_a"
            else scale * swap(own[f"{module}/lora_a"]) @ dense_grad
        )
        np.testing.assert_allclose(grad, wanted, rtol=1e-8, atol=1e-12)


def test_kernels_need_not_be_stacked():
    """Oracle: numpy, layer by layer, of layers in a list."""
    keys = jax.random.split(KEY, 4)
    kernels = [jax.random.normal(key, (5, 5)) for key in keys[:3]]
    base = {"layers": [{"mix": {"kernel": kernel}} for kernel in kernels]}
    x = jax.random.normal(keys[3], (4, 5))
    params = add_lora(KEY, base, rank=2, alpha=3, targets="mix")
    trainable, frozen = partition(params, lora_rule)
    assert {*trainable["layers"]} == {0, 1, 2}
    params = combine(moved(trainable, 1.0), frozen)
    assert isinstance(params["layers"], list)

    def apply(params, x):
        for layer in params["layers"]:
            x = dense(layer["mix"], x)
        return x

    wanted = np.asarray(x)
    for layer in params["layers"]:
        part = jax.tree.map(np.asarray, layer["mix"])
        wanted = wanted @ (part["kernel"] + 1.5 * part["lora_a"] @ part["lora_b"])
    np.testing.assert_allclose(apply(params, x), wanted, rtol=1e-5)
    merged = jax.tree.map(jnp.asarray, merge_lora(params))
    np.testing.assert_allclose(apply(merged, x), wanted, rtol=1e-5)


# ------------------------------------------------------------------- dropout, many seeds


@pytest.mark.parametrize("targets", ["all-linear", "out"])
def test_dropout_obeys_the_row_law_and_is_for_training(targets):
    """Oracles: copies of each row; the same keys; the adapter without dropout."""
    trainable, frozen = adapted(dropout=0.5, targets=targets)
    apply = with_frozen(MODEL.apply, frozen)
    loss = token_cross_entropy(single_head(apply))
    check_rows_independent(loss, trainable, BATCH, KEY)
    keys = jax.random.split(KEY, 4)
    noisy = apply(trainable, TOKENS, keys)
    np.testing.assert_array_equal(apply(trainable, TOKENS, keys), noisy)
    quiet, none = apply(trainable, TOKENS), adapted(targets=targets)
    np.testing.assert_array_equal(
        quiet, with_frozen(MODEL.apply, none[1])(none[0], TOKENS)
    )
    assert np.abs(np.asarray(noisy - quiet)).max() > 0.1
    others = apply(trainable, TOKENS, keys[::-1])
    assert np.abs(np.asarray(noisy - others)).max() > 0.1


def test_inputs_of_a_are_dropped_at_the_rate():
    """A law: of many rows the mean product is that without dropout."""
    params = trained(dropout=0.5)
    layer = jax.tree.map(lambda leaf: leaf[0], params["layers"])
    x = jnp.broadcast_to(jnp.arange(16.0), (4000, 16))
    many = dense(layer["up_proj"], x, jax.random.split(KEY, 4000))
    once = dense(layer["up_proj"], x[:1])[0]
    spread = np.std(many, axis=0)
    assert spread.min() > 0
    assert (np.abs(np.mean(many, axis=0) - once) < 4 * spread / math.sqrt(4000)).all()


def test_seeds_side_by_side_are_one_by_one():
    """Oracle: each seed by itself; they share one frozen base."""
    keys = jax.random.split(KEY, 3)

    def start(key):
        params = add_lora(key, BASE, rank=2, targets="all-linear")
        return partition(params, lora_rule)

    (many, frozen), one = jax.vmap(start, out_axes=(0, None))(keys), start(keys[1])
    second = jax.tree.map(lambda leaf: leaf[1], many)
    chex.assert_trees_all_equal(second, one[0])
    chex.assert_trees_all_equal(frozen, one[1])
    apply = jax.vmap(with_frozen(MODEL.apply, frozen), (0, None))
    found = apply(moved(many), TOKENS)
    alone = MODEL.apply(
        combine(jax.tree.map(lambda leaf: leaf[1], moved(many)), frozen), TOKENS
    )
    np.testing.assert_allclose(found[1], alone, atol=2e-5)
    assert np.abs(np.asarray(found[0] - found[1])).max() > 1e-2


def test_the_gradient_of_the_first_factor_has_few_rows_and_not_few_columns():
    """Oracle: the products of the compiled program; as control, those of ``x @ a``."""
    x, a = jnp.ones((64, 40)), jnp.ones((40, 3))

    def shapes(product):
        grad = jax.grad(lambda a: jnp.sum(product(x, a) ** 2))
        text = jax.jit(grad).lower(a).compile().as_text()
        found = re.findall(r"= f32\[(\d+),(\d+)\]\S* (?:dot|custom-call)\(", text)
        return {tuple(map(int, shape)) for shape in found}

    few, usual = shapes(_narrowed), shapes(jnp.matmul)
    assert (3, 40) in few
    assert (40, 3) not in few
    assert (40, 3) in usual
