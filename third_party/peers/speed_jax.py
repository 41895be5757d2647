"""The speed job in plain JAX: a ``lax.scan`` by hand, and optax's own SAM in it.

``naive`` is the least that the step can cost in JAX; ``sam`` is ``optax.contrib.sam`` in
its opaque mode, where one call takes both gradients.
"""

import platform
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from speed_job import Ledger, load, serve, task_images


def main():
    """Serve requests for ``naive`` and ``sam``."""
    job = load()
    steps = -(-job.num_train // job.batch_size)

    tests = zip(*(task_images(job, k)[2:] for k in range(job.num_tasks)), strict=True)
    tests = [jnp.stack(part) for part in tests]
    programs = {}

    def work(request):
        method, ledger = request["method"], Ledger()
        optimizer = make_optimizer(job, method)
        params = init(job)
        state = optimizer.init(params)
        wait = jax.block_until_ready
        if method not in programs:  # compile, outside the clock
            programs[method] = jax.jit(make_fit(job, optimizer, method, steps))
            x, y = map(jnp.asarray, task_images(job, 0)[:2])
            wait(programs[method](params, state, jax.random.key(0), x, y))
            wait(evaluate(params, *tests))
        for task in range(job.num_tasks):
            x, y = map(jnp.asarray, task_images(job, task)[:2])
            train = partial(programs[method], params, state, jax.random.key(task), x, y)
            params, state = ledger.time("train", lambda work=train: wait(work()))
            test = partial(evaluate, params, *tests)
            row = ledger.time("eval", lambda work=test: wait(work()))
            ledger.answer["accuracy"].append(np.asarray(row).tolist())
        finite = all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(params))
        return {**ledger.answer, "finite": finite}

    versions = {"jax": jax.__version__, "optax": optax.__version__}
    serve({"python": platform.python_version(), **versions}, work)


def make_optimizer(job, method):
    """Plain SGD, or SAM around it."""
    base = optax.sgd(job.learning_rate)
    if method == "naive":
        return base
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(job.rho))
    return optax.contrib.sam(base, climb, sync_period=2, opaque_mode=True)


def make_fit(job, optimizer, method, steps):
    """One pass over a task, as one program."""

    def fit(params, state, key, x, y):
        order = jax.random.permutation(key, len(y))
        filled = jnp.concatenate([order, order])[: steps * job.batch_size]

        def step(carry, rows):
            params, state = carry
            here = x[rows], y[rows]
            grads = jax.grad(loss)(params, *here)
            more = {}
            if method == "sam":
                more["grad_fn"] = lambda p, _: jax.grad(loss)(p, *here)
            updates, state = optimizer.update(grads, state, params, **more)
            return (optax.apply_updates(params, updates), state), None

        rows = filled.reshape(steps, job.batch_size)
        return jax.lax.scan(step, (params, state), rows)[0]

    return fit


def init(job):
    """Weights ``[in, out]`` and biases of each layer, Kaiming uniform."""
    widths, layers = [784, *job.hidden, 10], []
    keys = jax.random.split(jax.random.key(job.seed), len(widths) - 1)
    for key, inputs, outputs in zip(keys, widths[:-1], widths[1:], strict=True):
        bound = (6 / inputs) ** 0.5
        kernel = jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound)
        layers.append((kernel, jnp.zeros(outputs)))
    return layers


def forward(params, x):
    """Logits of a batch."""
    *hidden, (kernel, bias) = params
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    return x @ kernel + bias


def loss(params, x, y):
    """Mean cross-entropy of a batch."""
    logits = forward(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def evaluate(params, x, y):
    """Accuracy on every task, one after the other."""
    score = lambda task: (forward(params, task[0]).argmax(-1) == task[1]).mean()
    return jax.lax.map(score, (x, y))


if __name__ == "__main__":
    main()
