"""Everything a task boundary changes is an argument of the compiled program.

One program walks the second task. Each leaf of the state that the first task's end wrote
is then given another value, one at a time: the result must change, and nothing may be
compiled again. A value baked into the program would show as no change.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxcl.averages import interpolate, wise_ft
from jaxcl.curvature import empirical_fisher
from jaxcl.data import from_arrays
from jaxcl.losses import cross_entropy, single_head
from jaxcl.memory import episodic
from jaxcl.method import make_method
from jaxcl.regularizers import box, distill, ewc, l2_init
from jaxcl.training import first_example, run_stream
from jaxcl.transforms import sam
from jaxcl.tree import as_batch

D, C = 4, 3
LOGITS = single_head(
    lambda params, x, keys=None: jnp.tanh(x @ params["w"]) @ params["v"]
)
LOSS = cross_entropy(LOGITS)
FISHER = empirical_fisher(LOSS)

#: What the state holds, the parts of a method, and names of leaves that are only logs.
CASES = {
    "ewc": ("regularizer", {"regularizer": ewc(FISHER, 3.0)}, "constant tasks_seen"),
    "online ewc": (
        "regularizer",
        {"regularizer": ewc(FISHER, 3.0, decay=0.9)},
        "constant tasks_seen",
    ),
    "l2_init": ("regularizer", {"regularizer": l2_init(1.0)}, ""),
    "box": ("regularizer", {"regularizer": box(0.01)}, ""),
    "distill": ("regularizer", {"regularizer": distill(LOGITS, 3.0)}, ""),
    # Slots of the next task are overwritten at its end, and only then: what they hold
    # now has weight zero. `task` numbers are no input of this network.
    "episodic": ("memory", {"memory": episodic(2, 6, 4)}, "task tasks_seen"),
    "interpolate": ("average", {"average": interpolate(0.5)}, ""),
    "wise_ft": ("average", {"average": wise_ft(0.5)}, ""),
    "momentum": ("optimizer", {"reset_optimizer": False}, ""),
    "schedule": (
        "gradient",
        {"gradient": sam(lambda count: 0.1 * count)},
        "rho grad_norm",
    ),
}


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, D)).astype(np.float32)
    y = np.argmax(x @ rng.normal(size=(2, D, C)), axis=2)
    tasks = [as_batch(x[t], y[t], task=t) for t in (0, 1)]
    both = jax.tree.map(lambda *leaves: np.stack(leaves), *tasks)
    return from_arrays(both, both, num_classes=C)


@pytest.mark.parametrize("name", CASES)
def test_every_leaf_that_a_boundary_writes_changes_the_next_task(stream, name):
    """Oracle: the same program on the state as it was, traced once."""
    field, parts, logs = CASES[name]
    method = make_method(LOSS, optax.sgd(0.1, momentum=0.9), **parts)

    traces = []

    @jax.jit
    def walk(state, tasks):
        traces.append(None)
        return run_stream(
            jax.random.key(5),
            method,
            stream,
            state,
            tasks=tasks,
            after=lambda snapshot: snapshot.params,
            num_steps=5,
            batch_size=8,
        )

    keys = jax.random.split(jax.random.key(2), 2)
    params = {
        "w": jax.random.normal(keys[0], (D, 5)),
        "v": jax.random.normal(keys[1], (5, C)),
    }
    state = method.init(params, first_example(stream))
    state, _ = walk(state, jnp.array([0]))
    usual = ravel_pytree(walk(state, jnp.array([1]))[1].after)[0]

    part = getattr(state, field)
    leaves, structure = jax.tree_util.tree_flatten_with_path(part)
    touched = []
    for place, (path, leaf) in enumerate(leaves):
        where = jax.tree_util.keystr(path)
        if any(where.endswith(f".{log}") for log in logs.split()):
            continue
        swapped = [other for _, other in leaves]
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        # Not one number for all entries, which a softmax or a mean would cancel.
        ramp = jnp.linspace(0.1, 1.5, leaf.size).reshape(leaf.shape)
        swapped[place] = leaf + ramp if real else jnp.zeros_like(leaf)
        other = state._replace(**{field: jax.tree.unflatten(structure, swapped)})
        found = ravel_pytree(walk(other, jnp.array([1]))[1].after)[0]
        assert float(jnp.max(jnp.abs(found - usual))) > 1e-6, where
        touched.append(where)
    assert touched, "the state of this part is empty"
    assert len(traces) == 1
