"""A grid of strengths and seeds as one compiled program.

python -m experiments.examples.sweep
"""

import jax
import jax.numpy as jnp
import optax

from jaxcl import metrics
from jaxcl.data import digits, permuted
from jaxcl.losses import cross_entropy, single_head
from jaxcl.methods import ewc
from jaxcl.models import mlp
from jaxcl.training import accuracy_row, first_example, run_stream

STRENGTHS = (0.0, 3.0, 30.0, 3000.0)


def main(num_seeds: int = 3, num_steps: int = 150):
    """Average accuracy at the end, [strengths, seeds]; NaN where a run diverged."""
    stream = permuted(jax.random.key(0), digits(), num_tasks=3)
    model = mlp((64, 100, 10))
    logits = single_head(model.apply)
    observe = accuracy_row(logits, stream)

    def run(strength, key):
        # The method is built inside, of its arguments: vmap then maps over them.
        method = ewc(cross_entropy(logits), optax.sgd(0.1), strength=strength)
        start, order = jax.random.split(key)
        state = method.init(model.init(start), first_example(stream))
        _, record = run_stream(
            order, method, stream, state,
            num_steps=num_steps, batch_size=32, after=observe,
        )  # fmt: skip
        average = metrics.average_accuracy(record.after)
        return jnp.where(record.finite.all(), average, jnp.nan)

    seeds = jax.vmap(run, in_axes=(None, 0))
    grid = jax.jit(jax.vmap(seeds, in_axes=(0, None)))
    return grid(jnp.array(STRENGTHS), jax.random.split(jax.random.key(1), num_seeds))


if __name__ == "__main__":
    for strength, row in zip(STRENGTHS, main(), strict=True):
        print(f"strength {strength:6g}: {row.mean():.3f} of {jnp.round(row, 3)}")
