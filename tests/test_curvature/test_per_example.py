import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxcl.curvature.per_example import read_program, sum_squared_gradients
from jaxcl.losses import cross_entropy, of_one, single_head
from jaxcl.models import from_flax, mlp, resnet
from jaxcl.tree import as_batch

ROWS = 5


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def network(params, x):
    hidden = jax.nn.relu(x @ params["in"] + params["bias"])
    return hidden @ params["out"]


LAYERS = {"in": draw(1, 4, 6), "bias": draw(2, 6), "out": draw(3, 6, 3)}


def transposed(params, x):
    return jnp.tanh(x @ params["in"].T) @ params["out"].reshape(3, 6).T


def from_the_left(params, x):
    return params["out"] @ jnp.tanh(params["in"] @ x)


@jax.jit
def layer(kernel, x):
    return jnp.tanh(x @ kernel)


def one_jitted_layer_twice(params, x):
    return layer(params["b"], layer(params["a"], x))


def a_batch_of_one(params, x):
    return (jnp.tanh(x[None] @ params["a"]) @ params["b"])[0]


def several_axes(params, x):
    heads = jnp.tanh(jnp.einsum("d,hdk->hk", x, params["in"]))
    return jnp.einsum("hk,khc->c", heads, params["out"])


def low_rank(params, x):
    frozen = draw(9, 4, 3)
    return jnp.tanh(x @ frozen + 0.5 * x @ params["a"] @ params["b"])


def half_precision(params, x):
    return (x.astype(jnp.bfloat16) @ params["a"].astype(jnp.bfloat16)).astype(x.dtype)


def product_of_two_leaves(params, x):
    return jnp.tanh(params["a"] @ params["b"]) * x[:3]


def tied(params, x):
    return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["a"])


def positions(params, x):
    return jnp.tanh(x.reshape(2, 2) @ params["a"]).sum(0) @ params["b"]


def decayed(params, x):
    return x @ params["a"] + jnp.sum(params["a"] ** 2)


def convolved(params, x):
    return jnp.tanh(jnp.convolve(x, params["a"])) @ params["b"]


def scanned(params, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["a"])[0]


def looked_up(params, x):
    return params["a"][jnp.int32(x[0] > 0)] @ params["b"]


def idle(params, x):
    return x @ params["a"]


def returned(params, x):
    return params["a"] * x.sum()


# name: (function, parameters, how many leaves take the shortcut)
MODELS = {
    "network": (network, LAYERS, 2),
    "transposed": (transposed, {"in": draw(1, 6, 4), "out": draw(2, 2, 9)}, 2),
    "from the left": (from_the_left, {"in": draw(1, 6, 4), "out": draw(2, 3, 6)}, 2),
    "jitted": (one_jitted_layer_twice, {"a": draw(1, 4, 4), "b": draw(2, 4, 4)}, 2),
    "batch of one": (a_batch_of_one, {"a": draw(1, 4, 5), "b": draw(2, 5, 3)}, 2),
    "several axes": (
        several_axes,
        {"in": draw(1, 2, 4, 5), "out": draw(2, 5, 2, 3)},
        2,
    ),
    "low rank": (low_rank, {"a": draw(1, 4, 2), "b": draw(2, 2, 3)}, 2),
    "half precision": (half_precision, {"a": draw(1, 4, 3)}, 1),
    "two leaves": (product_of_two_leaves, {"a": draw(1, 4), "b": draw(2, 4, 3)}, 1),
    "tied": (tied, {"a": draw(1, 4, 4)}, 0),
    "positions": (positions, {"a": draw(1, 2, 3), "b": draw(2, 3, 2)}, 1),
    "decayed": (decayed, {"a": draw(1, 4, 3)}, 0),
    "convolved": (convolved, {"a": draw(1, 3), "b": draw(2, 6, 2)}, 1),
    "scanned": (scanned, {"a": draw(1, 2, 4, 4)}, 0),
    "looked up": (looked_up, {"a": draw(1, 2, 4), "b": draw(2, 4, 3)}, 1),
    "idle": (idle, {"a": draw(1, 4, 3), "unused": draw(2, 2)}, 1),
    "returned": (returned, {"a": draw(1, 3)}, 0),
}


def both_ways(apply, params, rows):
    """(shortcut, plain `vmap` of gradients) of the same weighted sum of squares."""

    def values(params, row):
        x, share = row
        outputs = apply(params, x)
        return outputs, share * jnp.arange(1.0, 1.0 + len(outputs))

    def plain(params):
        jacobian = jax.vmap(jax.jacrev(lambda p, x: apply(p, x)), (None, 0))
        sums = lambda j: jnp.einsum(
            "b,m,bm...->...", rows[1], jnp.arange(1.0, 1.0 + j.shape[1]), j**2
        )
        return jax.tree.map(sums, jacobian(params, rows[0]))

    def shortcut(params):
        return sum_squared_gradients(read_program(values, params, rows), params, rows)

    return jax.jit(lambda p: (shortcut(p), plain(p)))(params)


@pytest.mark.parametrize("name", MODELS)
def test_the_shortcut_is_taken_where_it_holds_and_changes_no_number(name):
    """Oracle: squares of the Jacobian of every row, all at once."""
    apply, params, num_dense = MODELS[name]
    rows = (draw(0, ROWS, 4), jnp.array([1.0, 0.0, 2.0, 1.0, 0.5]))
    values = lambda params, row: (apply(params, row[0]),) * 2
    program = read_program(values, params, rows)
    assert len(program.sites) == num_dense
    found, expected = both_ways(apply, params, rows)
    # bfloat16 rounds each gradient, float32 the sums: the oracle rounds elsewhere.
    rtol = 2e-2 if name == "half precision" else 2e-6
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol, atol=1e-6 * e.max()),
        found,
        expected,
    )
    assert jax.tree.structure(found) == jax.tree.structure(params)


def test_the_shortcut_sees_through_flax_modules():
    """Oracle: squares of the Jacobian of every row, all at once."""
    layers = nnx.List(
        [nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 3, rngs=nnx.Rngs(1))]
    )
    graph, params = nnx.split(layers)

    def apply(params, x):
        first, second = nnx.merge(graph, params)
        return second(nnx.relu(first(x)))

    rows = (draw(0, ROWS, 4), jnp.ones(ROWS))
    values = lambda params, row: (apply(params, row[0]),) * 2
    assert len(read_program(values, params, rows).sites) == 2
    found, expected = both_ways(apply, params, rows)
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, 2e-6, atol=1e-6), found, expected
    )


class Flattening(nnx.Module):
    """Images as one vector each, in nnx; batch-first, as users write it."""

    def __init__(self, rngs, rate=0.0):
        self.first = nnx.Linear(12, 5, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.first(x.reshape(x.shape[0], -1)))))


class LinenFlattening(linen.Module):
    """The same in linen."""

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(5)(x.reshape((x.shape[0], -1)))
        return linen.Dense(3)(linen.relu(x))


IMAGES = draw(0, ROWS, 2, 2, 3)


@pytest.mark.parametrize(
    ("build", "num_dense"),
    [
        (lambda: from_flax(Flattening), 2),
        (lambda: from_flax(lambda rngs: Flattening(rngs, rate=0.5)), 2),
        (lambda: from_flax(LinenFlattening(), IMAGES), 2),
        (lambda: mlp((12, 5, 4, 3), layer_norm=True), 3),
        (lambda: resnet(3, width=4, blocks=(1,), groups=2), 1),  # the output layer
    ],
    ids=["nnx", "dropout", "linen", "mlp", "resnet"],
)
def test_the_shortcut_sees_through_batch_first_networks(build, num_dense):
    """Oracle: squared gradients of every row as a batch of one, and their sum."""
    model = build()
    params = model.init(jax.random.key(0))
    batch = as_batch(IMAGES, jnp.arange(ROWS) % 3)
    one = of_one(cross_entropy(single_head(model.apply)))
    rows = batch, jax.random.split(jax.random.key(1), ROWS)

    def values(params, row):
        value = one(params, *row)
        return value[None], jnp.ones(1)

    @jax.jit
    def both(params):
        program = read_program(values, params, rows)
        assert len(program.sites) == num_dense
        grads = jax.vmap(jax.grad(one), (None, 0, 0))(params, *rows)
        plain = jax.tree.map(lambda grad: jnp.sum(grad**2, axis=0), grads)
        return sum_squared_gradients(program, params, rows), plain

    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, 1e-4, atol=1e-5 * e.max()),
        *both(params),
    )


def test_no_per_example_gradient_of_a_dense_layer_is_ever_formed():
    """Oracle: the sizes of all intermediate arrays; negative control: a tied weight."""
    rows = (draw(0, ROWS, 4), jnp.ones(ROWS))

    def largest(apply, params):
        def run(params):
            values = lambda params, row: (apply(params, row[0]),) * 2
            return sum_squared_gradients(
                read_program(values, params, rows), params, rows
            )

        program = jax.make_jaxpr(run)(params)
        sizes = [v.aval.size for eqn in program.eqns for v in eqn.outvars]
        return max(sizes)

    wide = {"a": draw(1, 4, 400), "b": draw(2, 400, 2)}
    straight = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
    assert largest(straight, wide) <= max(ROWS * 2 * 400, 4 * 400)
    tied_too = lambda params, x: straight(params, x) + jnp.sum(params["a"][0, 0])
    assert largest(tied_too, wide) >= ROWS * 4 * 400


def test_the_program_may_be_read_inside_other_transformations():
    """Oracle: one seed at a time; the loss closes over traced values."""
    rows = (draw(0, ROWS, 4), jnp.ones(ROWS))

    def fisher(scale, params):
        def values(params, row):
            outputs = scale * network(params, row[0])
            return outputs, jnp.ones(3)

        return sum_squared_gradients(read_program(values, params, rows), params, rows)

    scales = jnp.array([1.0, 3.0])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), LAYERS)
    together = jax.jit(jax.vmap(fisher))(scales, stacked)
    walk = lambda carry, pair: (carry, fisher(*pair))
    in_turn = jax.jit(lambda *pair: jax.lax.scan(walk, 0.0, pair)[1])(scales, stacked)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), together, in_turn
    )
    assert not np.allclose(together["in"][0], together["in"][1])
