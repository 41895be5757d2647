import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxcl import transforms
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import make_method
from jaxcl.models import mlp
from jaxcl.transforms import (
    across_devices,
    adaptive_rho,
    adaptive_strength,
    agem,
    c_flat,
    friendly_sam,
    gem,
    gnp,
    gsam,
    looksam,
    random_sam,
    reverse_sam,
    sam,
)
from jaxcl.tree import as_batch, at

DEVICES = 8
ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)
W = jnp.array([0.3, -0.2, 0.5, 0.1])


@jax.jit
def gradient(w, rows):
    return jax.grad(lambda w: jnp.mean(jnp.sin(rows @ w) ** 2))(w)


def unit(v):
    return v / np.linalg.norm(v)


def over_shards(body, check_vma=True):
    """Runs `body(w, rows)` on every device's share; its results must be the same on all."""
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("data",))
    spec = PartitionSpec("data")
    return jax.jit(
        jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(PartitionSpec(), spec),
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )
    )(W, ROWS)


def over_replicas(body):
    """The same by pmap; all replicas must agree."""
    shares = ROWS.reshape(DEVICES, -1, 4)
    out = jax.pmap(body, axis_name="data", in_axes=(None, 0))(W, shares)
    same = lambda x: np.testing.assert_allclose(x, np.stack([x[0]] * DEVICES))
    jax.tree.map(same, out)
    return jax.tree.map(lambda x: x[0], out)


WAYS = {
    "shard_map": over_shards,
    "shard_map unchecked": lambda body: over_shards(body, check_vma=False),
    "pmap": over_replicas,
}


def update(transformation, w, rows, num_steps=1):
    """What the last of some steps at the same place returns, with its state."""
    state = transformation.init(w)
    own = w + 0 * jnp.sum(rows)  # as jax.lax.pcast does, and also under pmap and vmap
    for _ in range(num_steps):
        changed, state = transformation.update(
            gradient(own, rows),
            state,
            w,
            grad_fn=lambda p: gradient(p, rows),
            replay_grad_fn=lambda p: -jnp.sign(p) - gradient(p, rows),
            task_grad_fn=lambda p: jnp.stack([-p - gradient(p, rows), -jnp.sign(p)]),
        )
    return jax.tree.map(numbers_of, (changed, state))


def numbers_of(leaf):
    """A key by its numbers."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def measured_sam(rho):
    return sam(rho, measure=True)


TRANSFORMS = {
    "sam": sam(0.5, measure=True),
    "adaptive": sam(0.5, adaptive=True),
    "gnp": gnp(0.5, alpha=0.3),
    "looksam": looksam(0.5, k=2, measure=True),
    "gsam": gsam(0.5, 0.6),
    "friendly_sam": friendly_sam(0.5),
    "c_flat": c_flat(0.5, 0.3, measure=True),
    "adaptive_rho": adaptive_rho(0.1),
    "adaptive_strength": adaptive_strength(measured_sam, 0.5, reference=1.0),
    "reverse_sam": reverse_sam(0.5, measure=True),
    "random_sam": random_sam(jax.random.key(0), 0.5),
    "agem": agem(),
    "gem": gem(),
}
close = dict(rtol=1e-3, atol=1e-5)  # sums over rows in another order; small differences


def test_every_transformation_is_tried():
    """Oracle: the package's own list of transformations."""
    found = (name for name in transforms.__all__ if name[0].islower())
    others = {"accumulated", "across_devices"}  # the wrapper itself, and for one device
    others |= {"scale_by_progress"}  # of updates
    others |= {"perturbation_curvature", "perturbation_rise", "rho_schedule"}  # numbers
    assert {*found} - others == {*TRANSFORMS} - {"adaptive"}


@pytest.mark.parametrize("way", WAYS)
def test_devices_share_one_perturbation(way):
    """Oracle: the same on one device with the whole batch; for SAM, the formula as well."""
    across = {name: across_devices(b, "data") for name, b in TRANSFORMS.items()}
    body = lambda w, rows: {name: update(b, w, rows, 2) for name, b in across.items()}
    found = WAYS[way](body)
    want = jax.jit(
        lambda w: {name: update(b, w, ROWS, 2) for name, b in TRANSFORMS.items()}
    )(W)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), found, want)
    by_hand = gradient(W + 0.5 * unit(gradient(W, ROWS)), ROWS)
    np.testing.assert_allclose(found["sam"][0], by_hand, **close)


@pytest.mark.parametrize("way", WAYS)
def test_devices_have_a_perturbation_each(way):
    """Oracle: the mean over shares, one after the other on one device."""
    across = {n: across_devices(b, "data", sync=False) for n, b in TRANSFORMS.items()}
    body = lambda w, rows: {name: update(b, w, rows) for name, b in across.items()}
    found = WAYS[way](body)
    shares = ROWS.reshape(DEVICES, -1, 4)
    alone = lambda rows: {name: update(b, W, rows) for name, b in TRANSFORMS.items()}
    each = jax.jit(jax.vmap(alone))(shares)
    want = jax.tree.map(lambda leaf: np.mean(np.asarray(leaf), axis=0), each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), found, want)

    raised = [gradient(W + 0.5 * unit(gradient(W, rows)), rows) for rows in shares]
    np.testing.assert_allclose(found["sam"][0], np.mean(raised, 0), **close)
    shared = gradient(W + 0.5 * unit(gradient(W, ROWS)), ROWS)
    assert np.max(np.abs(found["sam"][0] - shared)) > 1e-2  # they do differ


def test_without_the_combinator_the_caller_averages():
    """Law: the mean over plain transformations."""

    def body(w, rows):
        across = update(across_devices(sam(0.5), "data", sync=False), w, rows)[0]
        plain = update(sam(0.5), w + 0 * jnp.sum(rows), rows)[0]
        return across, jax.lax.pmean(plain, "data")

    np.testing.assert_allclose(*over_shards(body), rtol=1e-6)


def test_gradients_of_weights_that_do_not_vary_are_too_large_as_the_docstring_warns():
    """Oracle: on eight devices, eight times the gradient; ours are right in all cases."""

    def body(w, rows):
        summed = gradient(w, rows)  # JAX sums it over devices
        averaged = jax.lax.pmean(gradient(w + 0 * jnp.sum(rows), rows), "data")
        blend = across_devices(gnp(0.5, alpha=0.3), "data")
        changed = lambda grads: blend.update(
            grads, blend.init(w), w, grad_fn=lambda p: gradient(p, rows)
        )[0]
        return jax.lax.pmean(summed, "data"), changed(averaged), changed(summed)

    eightfold, right, wrong = over_shards(body)
    g = gradient(W, ROWS)
    above = gradient(W + 0.5 * unit(g), ROWS)
    np.testing.assert_allclose(eightfold, DEVICES * g, **close)
    np.testing.assert_allclose(right, 0.7 * g + 0.3 * above, **close)
    np.testing.assert_allclose(wrong, 0.7 * DEVICES * g + 0.3 * above, **close)


def test_bfloat16_gradients_are_averaged_in_float32():
    """Oracle: the exact mean; in bfloat16, 256 + 1 stays 256."""
    values = jnp.array([256.0] + [1.0] * (DEVICES - 1), jnp.bfloat16)
    keep = across_devices(gnp(0.5, alpha=0.0), "data")

    def body(value):
        return keep.update(value, keep.init(value), value, grad_fn=lambda p: p)[0]

    found = jax.vmap(body, axis_name="data")(values)
    want = np.full(DEVICES, (256 + DEVICES - 1) / DEVICES).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("sync", [True, False])
def test_devices_count_by_their_rows(sync):
    """Oracle: one device with the five rows of eight that have a weight; for one
    perturbation each, the mean over rows of what each device finds by itself. Negative
    control: without the weights devices count alike."""
    rows = jnp.arange(1.0, 9.0)
    weight = jnp.array([1.0, 1, 0, 0, 1, 0, 1, 1])  # of 4 devices with 2 rows each
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("data",))
    mean = lambda w, x, weight: (
        jnp.sum(weight * jnp.sin(w * x)) / jnp.maximum(jnp.sum(weight), 1)
    )

    def local(w, x, weight, counted):
        w_own = w + 0 * jnp.sum(x)
        grad = lambda p: jax.grad(mean)(p, x, weight)
        extra = {"weight": jnp.sum(weight)} if counted else {}
        transform = across_devices(sam(0.1), "data", sync=sync)
        return transform.update(
            grad(w_own), transform.init(w), w, grad_fn=grad, **extra
        )[0]

    def found(counted):
        spec = jax.sharding.PartitionSpec("data")
        run = jax.shard_map(
            lambda w, x, weight: local(w, x, weight, counted),
            mesh=mesh,
            in_specs=(jax.sharding.PartitionSpec(), spec, spec),
            out_specs=jax.sharding.PartitionSpec(),
            check_vma=False,
        )
        return jax.jit(run)(jnp.float32(0.7), rows, weight)

    def alone(x, weight):
        grad = lambda p: jax.grad(mean)(p, x, weight)
        w = jnp.float32(0.7)
        return sam(0.1).update(grad(w), sam(0.1).init(w), w, grad_fn=grad)[0]

    want = alone(rows, weight)
    if not sync:
        parts = [slice(2 * i, 2 * i + 2) for i in range(4)]
        each = jnp.stack([alone(rows[p], weight[p]) for p in parts])
        counts = jnp.stack([jnp.sum(weight[p]) for p in parts])
        want = jnp.sum(counts * each) / jnp.sum(counts)
    np.testing.assert_allclose(found(True), want, rtol=1e-5)
    assert abs(found(False) - want) > 1e-3


def test_devices_count_by_their_rows_of_each_task():
    """Oracle: GEM on one device with the rows that have a weight, 3 of 4 of one task and
    1 of 4 of the other. Negative control: without the weights another projection."""
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4)), jnp.float32)
    weight = jnp.array([[1.0, 1, 1, 0], [0, 0, 0, 1]])
    spec = PartitionSpec(None, "data")
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    grads = jnp.array([1.0, -2.0, 0.5, 3.0])

    def by_task(p, rows, weight):
        mean = lambda p, x, w: jnp.sum(w * jnp.sin(x @ p)) / jnp.maximum(jnp.sum(w), 1)
        return jax.vmap(jax.grad(mean), in_axes=(None, 0, 0))(p, rows, weight)

    def changed(transform, rows, weight, **extra):
        function = lambda p: by_task(p, rows, weight)
        state = transform.init(W)
        return transform.update(grads, state, W, task_grad_fn=function, **extra)[0]

    def found(counted):
        def body(rows, weight):
            extra = {"task_weight": jnp.sum(weight, axis=1)} if counted else {}
            return changed(across_devices(gem(), "data"), rows, weight, **extra)

        places = {"in_specs": (spec, spec), "out_specs": PartitionSpec()}
        run = jax.shard_map(body, mesh=mesh, check_vma=False, **places)
        return jax.jit(run)(rows, weight)

    want = changed(gem(), rows, weight)
    assert np.max(np.abs(want - grads)) > 0.1  # a constraint was violated
    np.testing.assert_allclose(found(True), want, rtol=1e-5)
    assert np.max(np.abs(found(False) - want)) > 1e-3


def test_a_method_gives_the_weights_of_its_rows():
    """Oracle: one device with all rows, five of eight real. Negative control: a gradient
    transformation that ignores the weights."""
    model = mlp((4, 3))
    loss = cross_entropy(single_head(model.apply))
    weight = jnp.array([1.0, 1, 1, 1, 1, 0, 0, 0])
    batch = as_batch(ROWS[:8], np.arange(8) % 3, weight=weight)
    shared = across_devices(optax.identity(), "data")
    unweighted = optax.GradientTransformationExtraArgs(
        shared.init,
        lambda grads, state, params, **_: shared.update(grads, state, params),
    )

    def stepped(gradient, rows, **axis):
        method = make_method(loss, optax.sgd(0.5), gradient=gradient)
        params = model.init(jax.random.key(0))
        one = lambda rows: (
            method.step(
                jax.random.key(1), method.init(params, at(slice(1), rows)), rows
            )[0].params
        )
        return jax.jit(jax.vmap(one, **axis))(rows)

    parts = jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), batch)
    whole = jax.tree.map(lambda leaf: leaf[None], batch)
    want = jax.tree.leaves(stepped(optax.identity(), whole))
    for gradient, equal in ((shared, True), (unweighted, False)):
        found = jax.tree.leaves(stepped(gradient, parts, axis_name="data"))
        same = [
            np.allclose(f[1], w[0], atol=1e-6) for f, w in zip(found, want, strict=True)
        ]
        assert all(same) is equal
