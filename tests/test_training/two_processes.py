"""A run of several processes, for the test beside it: one process of it.

``python two_processes.py FOLDER DEVICES [INDEX COUNT PORT] [slow]``
"""

import os
import sys
import time

folder, devices, *rest = sys.argv[1:]
slow = "slow" in rest
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
os.environ["NPROC"] = "8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from jaxcl.curvature import empirical_fisher  # noqa: E402
from jaxcl.losses import cross_entropy, single_head  # noqa: E402
from jaxcl.method import make_method  # noqa: E402
from jaxcl.models import mlp  # noqa: E402
from jaxcl.regularizers import ewc  # noqa: E402
from jaxcl.streams import Rows, Task, digits, permuted, stream_tasks, subset  # noqa: E402
from jaxcl.training import Options, learn  # noqa: E402
from jaxcl.training.parallel import Layout, make_mesh, split_large  # noqa: E402
from jaxcl.training.processes import start_processes  # noqa: E402
from jaxcl.transforms import sam  # noqa: E402

if rest and rest[0] != "slow":
    start_processes(
        f"127.0.0.1:{rest[2]}", count=int(rest[1]), index=int(rest[0]), patience=10
    )

model = mlp((64, 8, 10))
logits = single_head(model.apply)
loss = cross_entropy(logits)
images = subset(digits(), key=jax.random.key(5), num_train=64, num_test=32)
tasks = stream_tasks(permuted(jax.random.key(1), images, num_tasks=2))
read = []


def counted(rows):
    def numbers(index):
        read.append(len(index))
        if slow:
            time.sleep(0.2)
        return rows.read(index)

    return Rows(rows.count, numbers)


tasks = [Task(task.name, counted(task.train), task.test) for task in tasks]


def build(rate):
    pull = ewc(empirical_fisher(loss), 10.0)
    return make_method(loss, optax.adam(rate), gradient=sam(0.05), regularizer=pull)


def score(params, rate, batch):
    del rate
    return jax.vmap(lambda row: jnp.argmax(logits(params, row)) == row.y)(batch)


layout = Layout(make_mesh(data=2, fsdp=2), split_large(at_least=256))
learned = learn(
    jax.random.key(3),
    build,
    model.init(jax.random.key(2)),
    tasks,
    Options(
        num_steps=20, batch_size=8, report_every=2, eval_batch_size=16, save_every=0
    ),
    folder=folder,
    frozen=jnp.float32(0.01),
    score=score,
    layout=layout,
    quiet=True,
)
whole = jax.jit(
    lambda tree: tree,
    out_shardings=jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec()),
)(learned.params)
if jax.process_index() == 0:
    np.savez(
        f"{folder}/result.npz",
        matrix=learned.position.matrix,
        rows_read=max(read),
        **{str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(whole))},
    )
print(learned.status, flush=True)
