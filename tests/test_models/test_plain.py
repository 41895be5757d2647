"""Networks that no module describes: plain functions, and trees of a user's own making."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.averages import ema
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import accuracy, check_rows_independent, cross_entropy, single_head
from jaxcl.memory import reservoir
from jaxcl.method import default_learner, make_method
from jaxcl.regularizers import ewc
from jaxcl.transforms import sam
from jaxcl.tree import as_batch, at
from jaxcl.typing import Array, Model


def kernels(key):
    key_w, key_v = jax.random.split(key)
    return jax.random.normal(key_w, (4, 5)), jax.random.normal(key_v, (5, 3))


class Layers(NamedTuple):
    """Two kernels by name."""

    w: Array
    v: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Net:
    """A module that is a tree of arrays itself, as in Equinox; its activation is static."""

    w: Array
    v: Array
    activation: Callable = dataclasses.field(metadata={"static": True})

    def __call__(self, x):
        return self.activation(x @ self.w) @ self.v


MODELS = {
    "dict": Model(
        lambda key: dict(zip("wv", kernels(key), strict=True)),
        lambda params, x, keys=None: jnp.tanh(x @ params["w"]) @ params["v"],
    ),
    "tuple": Model(
        lambda key: Layers(*kernels(key)),
        lambda params, x, keys=None: jnp.tanh(x @ params.w) @ params.v,
    ),
    "dataclass": Model(
        lambda key: Net(*kernels(key), jnp.tanh), lambda net, x, keys=None: net(x)
    ),
}
X = jax.random.normal(jax.random.key(0), (24, 4))
FIRST = as_batch(X, jnp.argmax(X[:, :3], axis=1))
SECOND = as_batch(-X, jnp.argmax(X[:, 1:], axis=1), task=1)


@functools.cache
def learned(name):
    """The state after two tasks of a method with every part, and what it reads."""
    model = MODELS[name]
    outputs = single_head(model.apply)
    loss = cross_entropy(outputs)
    method = make_method(
        loss,
        optax.adam(0.05),
        gradient=sam(0.1),
        regularizer=ewc(empirical_fisher(loss), 3.0),
        memory=reservoir(8, 4),
        average=ema(0.5),
    )

    @jax.jit
    def run(key):
        state = method.init(model.init(key), at(slice(1), FIRST))
        for task in (FIRST, SECOND):
            step = lambda state, key, task=task: method.step(key, state, task)
            state, _ = jax.lax.scan(step, state, jax.random.split(key, 4))
            state = method.end_task(key, state, task)
        read = default_learner(method, state)
        return state, read, accuracy(outputs, read, SECOND)

    return run(jax.random.key(1))


@pytest.mark.parametrize("name", ["tuple", "dataclass"])
def test_the_form_of_the_parameters_changes_nothing(name):
    """Oracle: the same network over a dict, through a method with every part."""
    state, read, share = learned(name)
    wanted, wanted_read, wanted_share = learned("dict")
    start = MODELS[name].init(jax.random.key(1))
    for found, other in ((state.params, wanted.params), (read, wanted_read)):
        assert jax.tree.structure(found) == jax.tree.structure(start)
        for leaf in "wv":
            ours, theirs = getattr(found, leaf), other[leaf]
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
            moved = np.abs(ours - getattr(start, leaf)).max()
            assert moved > 0.05  # control
    assert share == wanted_share


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_any_pair_of_functions(name):
    """Oracle: the rows one by one; hidden activations are not there, and it is said."""
    model = MODELS[name]
    params = model.init(jax.random.key(2))
    loss = cross_entropy(single_head(model.apply))
    check_rows_independent(loss, params, FIRST, jax.random.key(3))
    assert model.units == ()
    with pytest.raises(
        ValueError, match=r"no hidden activations; .* Model\(init, apply, "
    ):
        model.hidden(params, X)
