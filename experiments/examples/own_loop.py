"""SAM and EWC in a training loop of your own, without a method.

python -m experiments.examples.own_loop
"""

from typing import Any

import jax
import optax

from jaxcl.curvature import empirical_fisher
from jaxcl.data import digits, permuted
from jaxcl.losses import cross_entropy, mean_loss, single_head
from jaxcl.models import mlp
from jaxcl.regularizers import ewc
from jaxcl.training import accuracies, first_example
from jaxcl.transforms import sam
from jaxcl.tree import at, num_rows

NO_CONTEXT: Any = None  # EWC's penalty is one of its state and the parameters alone


def main(strength: float = 30.0, rho: float = 0.05, num_steps: int = 200):
    """Accuracy on both of two tasks after the second one, [2]."""
    stream = permuted(jax.random.key(0), digits(), num_tasks=2)
    model = mlp((64, 100, 10))
    logits = single_head(model.apply)
    loss = cross_entropy(logits)
    regularizer = ewc(empirical_fisher(loss), strength)
    optimizer = optax.chain(sam(rho), optax.sgd(0.1))

    @jax.jit
    def step(key, params, opt_state, ewc_state, data):
        pick, noise = jax.random.split(key)
        batch = at(jax.random.choice(pick, num_rows(data), (32,)), data)

        def objective(params):
            penalty = regularizer.penalty(ewc_state, params, NO_CONTEXT)
            return mean_loss(loss, params, batch, noise) + penalty

        grad_fn = jax.grad(objective)
        updates, opt_state = optimizer.update(
            grad_fn(params), opt_state, params, grad_fn=grad_fn
        )
        return optax.apply_updates(params, updates), opt_state

    params = model.init(jax.random.key(1))
    ewc_state = regularizer.init(params, first_example(stream))
    for task in range(2):
        data = stream.train(stream.pool, at(task, stream.plan))
        opt_state = optimizer.init(params)
        for key in jax.random.split(jax.random.key(task), num_steps):
            params, opt_state = step(key, params, opt_state, ewc_state, data)
        ewc_state = regularizer.end_task(jax.random.key(task), ewc_state, params, data)
    return accuracies(logits, params, stream)


if __name__ == "__main__":
    print("accuracy on both tasks at the end, SGD:      ", main(0.0, 0.0))
    print("accuracy on both tasks at the end, SAM + EWC:", main())
