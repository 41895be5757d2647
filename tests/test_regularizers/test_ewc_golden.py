"""EWC met from outside: the numbers of an independent implementation in torch.

The file tests/golden/ewc_torch.npz is written by third_party/peers/ewc_torch.py: inputs,
initial weights, and the weights and exact Fisher diagonals after each of three tasks.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.curvature import batched_fisher, exact_fisher
from jaxcl.losses import cross_entropy, mean_loss, single_head
from jaxcl.regularizers import ewc
from jaxcl.tree import as_batch, axpy

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ewc_torch.npz")
NAMES = ("w1", "b1", "w2", "b2")


def weights(prefix):
    return {name: jnp.asarray(GOLDEN[f"{prefix}_{name}"]) for name in NAMES}


def apply(params, x, keys=None):
    del keys
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


LOSS = cross_entropy(single_head(apply))


def learn(fisher, start, decay=None):
    """Full-batch gradient descent through all tasks: parameters and Fishers of each."""
    regularizer = ewc(fisher, float(GOLDEN["strength"]), decay=decay)
    key = jax.random.key(0)

    def one_task(carry, rows):
        params, state = carry
        batch = as_batch(*rows)

        def step(params, _):
            objective = lambda p: (
                mean_loss(LOSS, p, batch, key) + regularizer.penalty(state, p, None)
            )
            return axpy(
                -GOLDEN["learning_rate"], jax.grad(objective)(params), params
            ), ()

        params, _ = jax.lax.scan(step, params, length=int(GOLDEN["steps"]))
        state = regularizer.end_task(key, state, params, batch)
        return (params, state), (params, fisher(key, params, batch))

    tasks = (jnp.asarray(GOLDEN["inputs"]), jnp.asarray(GOLDEN["labels"]))
    return jax.lax.scan(one_task, (start, regularizer.init(start, ())), tasks)[1]


def largest_gap(found, prefix):
    """Over all tasks, relative to the largest entry of each array."""
    return max(
        float(jnp.abs(leaf[task] - expected).max() / np.abs(expected).max())
        for name, leaf in found.items()
        for task in range(3)
        for expected in [GOLDEN[f"{prefix}{task}_{name}"]]
    )


def test_three_tasks_of_ewc_end_where_torch_ends():
    """Oracle: torch, in 64 bits; float32 here stays within 1e-5."""
    fisher = exact_fisher(single_head(apply))
    params, fishers = jax.jit(lambda start: learn(fisher, start))(weights("start"))
    assert largest_gap(params, "params") < 1e-5
    assert largest_gap(fishers, "fisher") < 1e-5


def test_the_golden_numbers_tell_ewc_from_its_neighbours():
    """Negative control: online anchors, or squared batch means, end elsewhere."""
    fisher = exact_fisher(single_head(apply))
    batched = batched_fisher(LOSS, batch_size=16)
    run = jax.jit(lambda s: (learn(fisher, s, 1.0)[0], learn(batched, s)[0]))
    for params in run(weights("start")):
        assert largest_gap(params, "params") > 1e-3
