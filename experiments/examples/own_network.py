"""A Flax network of your own, learned with DER++ and classified by its class means.

python -m experiments.examples.own_network
"""

import jax
import optax
from flax import nnx

from jaxcl import metrics
from jaxcl.data import class_splits, digits, stream_tasks
from jaxcl.learners import nearest_mean, nearest_mean_outputs
from jaxcl.losses import single_head
from jaxcl.methods import dark_experience_replay
from jaxcl.models import from_flax
from jaxcl.training import Options, learn


class Net(nnx.Module):
    """Convolutions with GroupNorm, which keeps no statistics."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.features = nnx.Linear(64, 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def hidden(self, x):
        """Activations, the last one the input of the output layer."""
        x = nnx.relu(self.norm(self.first(x)))
        x = nnx.relu(self.second(x)).reshape(len(x), -1)
        return (nnx.relu(self.features(x)),)

    def __call__(self, x):
        """Logits."""
        return self.out(self.hidden(x)[-1])


def main(num_steps: int = 100):
    """``{learner: [T + 1, T]}``: accuracy on five pairs of classes in one head."""
    key = jax.random.key(0)
    split = class_splits(key, digits(), num_tasks=5, relabel=False, flat=False)
    model = from_flax(Net, hidden=Net.hidden)
    logits = single_head(model.apply)
    means = nearest_mean(model.hidden, 10)
    build = lambda frozen: dark_experience_replay(
        logits, optax.adam(0.003), capacity=200, sample_size=32, alpha=0.5, beta=1.0,
        learners=lambda state: {"params": state.params, "nearest_mean": means(state)},
    )  # fmt: skip
    return learn(
        key, build, model.init(key), stream_tasks(split),
        Options(num_steps=num_steps, batch_size=32), folder=None,
        metrics=metrics.classification(nearest_mean_outputs(logits, model.hidden)),
    ).results["accuracy"]  # fmt: skip


if __name__ == "__main__":
    for learner, matrix in main().items():
        print(f"{learner}: {matrix[-1].mean():.3f} on all classes at the end")
