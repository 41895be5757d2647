"""A run of one or several processes, for the test beside it: one process of it.

``python two_processes.py FOLDER DEVICES [INDEX COUNT PORT] [slow]``
"""

import os
import sys
import time


def main(folder, devices, *rest):
    """Learn two tasks on a mesh of four devices, and write what came of it."""
    os.environ["JAX_NUM_CPU_DEVICES"] = devices
    os.environ["NPROC"] = "8"
    os.environ["JAX_PLATFORMS"] = "cpu"

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from jaxcl.curvature import empirical_fisher
    from jaxcl.data import Dataset, Task, digits, permuted, stream_tasks, subset
    from jaxcl.losses import cross_entropy, single_head
    from jaxcl.method import make_method
    from jaxcl.metrics import classification
    from jaxcl.models import mlp
    from jaxcl.regularizers import ewc
    from jaxcl.sharding import ShardingPlan, fsdp, make_mesh, replicated
    from jaxcl.training import Options, learn
    from jaxcl.training.processes import is_primary, start_processes
    from jaxcl.transforms import random_sam

    *place, pace = rest if rest[-1:] == ("slow",) else (*rest, "")
    if place:
        index, count, port = map(int, place)
        start_processes(f"127.0.0.1:{port}", count=count, index=index, patience=10)

    model = mlp((64, 8, 10))
    logits = single_head(model.apply)
    loss = cross_entropy(logits)
    images = subset(digits(), key=jax.random.key(5), num_train=64, num_test=32)
    read = []

    def counted(rows):
        def numbers(index):
            read.append(len(index))
            time.sleep(0.2 if pace else 0.0)
            return rows.read(index)

        return Dataset(rows.count, numbers)

    tasks = [
        Task(task.name, counted(task.train), task.test)
        for task in stream_tasks(permuted(jax.random.key(1), images, num_tasks=2))
    ]

    def build(rate):
        penalty = ewc(empirical_fisher(loss), 10.0)
        gradient = random_sam(jax.random.key(9), 0.05)  # its state holds a key
        return make_method(
            loss, optax.adam(rate), gradient=gradient, regularizer=penalty
        )

    sharding = ShardingPlan(make_mesh(data=2, fsdp=2), fsdp(at_least=256))
    result = learn(
        jax.random.key(3),
        build,
        model.init(jax.random.key(2)),
        tasks,
        Options(
            20, 8, report_every=50, eval_batch_size=16, eval_start=False, save_every=0
        ),
        folder=folder,
        frozen=jnp.float32(0.01),
        metrics=classification(logits),
        sharding=sharding,
        quiet=True,
    )
    params = jax.jit(lambda tree: tree, out_shardings=replicated(sharding))(
        result.params
    )
    if is_primary():
        np.savez(
            f"{folder}/result.npz",
            matrix=result.results["accuracy"]["params"][1:],
            rows_read=max(read),
            **{str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(params))},
        )
    print(result.status, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
