"""The small ResNet against XLA's own convolution, and against itself one by one."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.models import resnet
from jaxcl.models.resnet import _convolve, _convolve_by_product


def test_a_convolution_by_one_product_is_the_convolution():
    """Oracle: lax.conv_general_dilated on odd and even sides, values and gradients."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))

    def both(function, kernel, stride):
        scalar = lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel, stride=stride)))
        return function(x, kernel, stride=stride), jax.grad(scalar, (0, 1))(x, kernel)

    @jax.jit
    def compare():
        cases = [(k, s) for k in (kernel, kernel[:1, :1]) for s in (1, 2)]
        compute = lambda function: [both(function, k, s) for k, s in cases]
        return compute(_convolve_by_product), compute(_convolve)

    found, expected = compare()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def convolution(x, kernel, stride):
    return _convolve(x[None], kernel, stride=stride)[0]


def normalise(x, params, groups):
    """GroupNorm of one image, from its definition."""
    grouped = x.reshape(*x.shape[:2], groups, -1)
    mean = grouped.mean(axis=(0, 1, 3), keepdims=True)
    var = grouped.var(axis=(0, 1, 3), keepdims=True)
    standard = ((grouped - mean) / jnp.sqrt(var + 1e-6)).reshape(x.shape)
    return standard * params["scale"] + params["bias"]


def by_hand(params, x, groups):
    """Two stages of one block each, one image, no batch axis anywhere."""
    norm = lambda h, name, tree: normalise(h, tree[name], groups)
    h = jax.nn.relu(norm(convolution(x, params["stem"]["kernel"], 1), "norm", params))
    inners = []
    for name, stride in [("block_0_0", 1), ("block_1_0", 2)]:
        block = params[name]
        kernel = lambda which, block=block: block[which]["kernel"]
        inner = norm(convolution(h, kernel("conv_0"), stride), "norm_0", block)
        inner = jax.nn.relu(inner)
        inners.append(inner)
        if "conv_skip" in block:
            h = norm(convolution(h, kernel("conv_skip"), stride), "norm_skip", block)
        h = jax.nn.relu(
            h + norm(convolution(inner, kernel("conv_1"), 1), "norm_1", block)
        )
    pooled = h.mean(axis=(0, 1))
    return (*inners, pooled), pooled @ params["out"]["kernel"] + params["out"]["bias"]


def test_a_batch_is_its_images_one_by_one():
    """Oracle: the network written for one image; a batch must not leak into GroupNorm."""
    model = resnet(5, width=4, blocks=(1, 1), groups=2)
    params = model.init(jax.random.key(0))
    scales = jnp.array([1.0, 5.0, 0.2])[:, None, None, None]  # images unlike each other
    images = scales * jax.random.normal(jax.random.key(1), (3, 8, 8, 3)) + scales

    @jax.jit
    def compute(params, images):
        alone = jax.lax.map(lambda image: by_hand(params, image, 2), images)
        return (model.hidden(params, images), model.apply(params, images)), alone

    together, alone = compute(params, images)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    logits = together[1]
    # Control: normalising over the batch too would have given something else.
    assert np.abs(logits[0] - logits[1]).max() > 1e-2


def test_kernels_have_the_variance_that_their_fan_in_asks_for():
    """Oracle: 2 / fan_in before a ReLU or a norm, 1 / fan_in in the output layer.

    The fan-ins are written out: 9 or 1 positions times the channels that come in.
    """
    model = resnet(50, width=32, blocks=(1, 1), groups=4)
    params = jax.jit(model.init)(jax.random.key(0))
    fan_ins = {
        ("stem",): 9 * 3,
        ("block_0_0", "conv_0"): 9 * 32,
        ("block_0_0", "conv_1"): 9 * 32,
        ("block_1_0", "conv_0"): 9 * 32,
        ("block_1_0", "conv_1"): 9 * 64,
        ("block_1_0", "conv_skip"): 32,
        ("out",): 64,
    }
    is_kernel = lambda path: path[-1].key == "kernel"
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = {tuple(k.key for k in p[:-1]): leaf for p, leaf in leaves if is_kernel(p)}
    assert found.keys() == fan_ins.keys()
    for name, kernel in found.items():
        gain = 1 if name == ("out",) else 2
        # A uniform law's variance has the relative standard error sqrt(0.8 / draws).
        error = (0.8 / kernel.size) ** 0.5
        np.testing.assert_allclose(
            jnp.mean(kernel**2), gain / fan_ins[name], rtol=5 * error, err_msg=str(name)
        )


def test_units_are_the_channels_inside_each_block():
    """Oracle: shapes of the leaves that the units name."""
    model = resnet(3, width=4, blocks=(2, 1), groups=2, stem_stride=2)
    params = jax.eval_shape(model.init, jax.random.key(0))
    hidden = jax.eval_shape(model.hidden, params, jnp.zeros((5, 8, 8, 3)))
    wanted = [(5, 4, 4, 4), (5, 4, 4, 4), (5, 2, 2, 8), (5, 8)]
    assert [h.shape for h in hidden] == wanted
    at = lambda path: params[path[0]][path[1]][path[2]]
    for layer, h in zip(model.units, hidden, strict=False):
        assert layer.width == h.shape[-1] == at(layer.incoming).shape[-1]
        assert at(layer.outgoing).shape[-2] == layer.width
        assert all(at(path).shape == (layer.width,) for path in layer.vectors)
