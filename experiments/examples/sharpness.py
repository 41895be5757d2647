"""How sharp the loss is around a checkpoint: largest curvature, and rise within a radius.

python -m experiments.examples.sharpness
"""

import tempfile

import jax
import optax

from jaxcl.curvature import sam_sharpness, top_eigenvalue
from jaxcl.data import digits, permuted
from jaxcl.losses import cross_entropy, mean_loss, single_head
from jaxcl.methods import sam
from jaxcl.models import mlp
from jaxcl.training import first_example, restore, run_stream, save
from jaxcl.tree import at

MODEL = mlp((64, 100, 10))
LOSS = cross_entropy(single_head(MODEL.apply))


def train(stream, rho: float, num_steps: int):
    """Parameters after one task with SAM; with a radius of zero it is SGD."""
    method = sam(LOSS, optax.sgd(0.1), rho=rho)
    state = method.init(MODEL.init(jax.random.key(1)), first_example(stream))
    run = lambda state: run_stream(
        jax.random.key(2), method, stream, state, num_steps=num_steps, batch_size=32
    )
    return jax.jit(run)(state)[0].params


@jax.jit
def probe(params, data):
    """``(top eigenvalue, rise within 0.05)`` of the mean loss over the rows."""
    loss = lambda params: mean_loss(LOSS, params, data, jax.random.key(0))
    eigenvalue = top_eigenvalue(jax.random.key(3), loss, params)
    return eigenvalue, sam_sharpness(loss, params, 0.05)


def main(num_steps: int = 300):
    """The two measures for SGD and for SAM, at checkpoints read back from a folder."""
    stream = permuted(jax.random.key(0), digits(), num_tasks=1)
    data = stream.train(stream.pool, at(0, stream.plan))
    found = {}
    for name, rho in {"SGD": 0.0, "SAM": 0.2}.items():
        with tempfile.TemporaryDirectory() as folder:
            save(folder, num_steps, train(stream, rho, num_steps))
            like = jax.eval_shape(MODEL.init, jax.random.key(0))
            found[name] = probe(restore(folder, like).tree, data)
    return found


if __name__ == "__main__":
    for name, (eigenvalue, rise) in main().items():
        print(f"{name}: top eigenvalue {eigenvalue:.2f}, rise of the loss {rise:.4f}")
