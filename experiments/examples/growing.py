"""A stream that grows: the same folder again, with more tasks, learns the new ones.

python -m experiments.examples.growing
"""

import tempfile

import jax
import numpy as np
import optax

from jaxcl import metrics
from jaxcl.data import digits, permuted, stream_tasks
from jaxcl.losses import cross_entropy, single_head
from jaxcl.methods import ewc
from jaxcl.models import mlp
from jaxcl.training import Options, learn


def main(num_steps: int = 100):
    """Matrices of accuracy after two tasks, after a third, and of all three at once."""
    tasks = stream_tasks(permuted(jax.random.key(0), digits(), num_tasks=3))
    model = mlp((64, 100, 10))
    logits = single_head(model.apply)
    params = model.init(jax.random.key(1))

    settings = {"method": "ewc", "rate": 0.1, "strength": 30.0}

    def build(frozen):
        del frozen  # weights that are used and not trained: none here
        rate, strength = settings["rate"], settings["strength"]
        return ewc(cross_entropy(logits), optax.sgd(rate), strength=strength)

    def accuracy(number_of_tasks, folder):
        learned = learn(
            jax.random.key(2),
            build,
            params,
            tasks[:number_of_tasks],
            Options(num_steps=num_steps, batch_size=32),
            folder=folder,
            metadata=settings,  # a folder of other settings is refused
            metrics=metrics.classification(logits),
        )
        return learned.matrix()

    with tempfile.TemporaryDirectory() as grown, tempfile.TemporaryDirectory() as once:
        return accuracy(2, grown), accuracy(3, grown), accuracy(3, once)


if __name__ == "__main__":
    two, three, at_once = main()
    print(f"after two tasks:\n{two}\nafter a third:\n{three}")
    print(
        "the last row is that of all three at once:",
        np.array_equal(three[-1], at_once[-1]),
    )
