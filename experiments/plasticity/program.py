"""One arm in one setting as a compiled program: the method, the loop, the measures."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.plasticity.arms import Arm
from experiments.plasticity.config import Config
from experiments.plasticity.settings import Setting, make_model
from jaxcl.curvature import top_eigenvalue
from jaxcl.losses import cross_entropy, mean_loss
from jaxcl.plasticity import measure
from jaxcl.training import current_accuracy, first_example, over_runs, run_stream
from jaxcl.tree import at


class Program(NamedTuple):
    """One arm in one setting, compiled for a number of runs side by side."""

    start: Callable  # (keys, hypers) -> states
    advance: Callable  # (states, keys, hypers, seeds, pool, plans, tasks) -> ...


def make_program(config: Config, setting: Setting, arm: Arm) -> Program:
    """Compile once what all runs of an arm share; numbers and seeds are arguments."""
    model = make_model(
        config, setting, activation=arm.activation, layer_norm=arm.layer_norm
    )
    outputs = setting.outputs(model.apply)
    loss = cross_entropy(outputs)

    def start(key, hyper):
        method = arm.build(loss, model, hyper, key)
        one_seed = setting.streams._replace(plan=at(0, setting.streams.plan))
        return method.init(model.init(key), first_example(one_seed))

    def advance(state, key, hyper, seed, pool, plans, tasks):
        method = arm.build(loss, model, hyper, key)
        stream = setting.streams._replace(pool=pool, plan=at(seed, plans))
        accuracy = current_accuracy(outputs, stream, chunk_size=1000)
        origin = model.init(key)

        def look(moment):
            """Figures on the first images of the task at hand."""
            probe = at(slice(config.probe_examples), moment.task)
            figures = measure(
                moment.key,
                loss,
                model.hidden,
                moment.params,
                origin,
                probe,
                rho=config.measured_rho,
                tau=config.measured_dormant,
            )
            mean = lambda p: mean_loss(loss, p, probe, moment.key)
            due = (moment.index + 1) % config.probe_every == 0
            curvature = jax.lax.cond(
                due,
                lambda p: top_eigenvalue(moment.key, mean, p, num_steps=10),
                lambda p: jnp.full((), jnp.nan),
                moment.params,
            )
            return accuracy(moment), figures | {"top_eigenvalue": curvature}

        return run_stream(
            key,
            method,
            stream,
            state,
            num_steps=setting.num_steps,
            batch_size=config.batch_size,
            after=look,
            tasks=tasks,
        )

    runs = {
        "mesh": mesh_for(runs_per_call(config)),
        "at_once": 1 if jax.default_backend() == "cpu" else None,
    }
    shared = (0, 0, 0, 0, None, None, None)
    return Program(
        jax.jit(over_runs(start, **runs)),
        jax.jit(over_runs(advance, shared, **runs), donate_argnums=0),
    )


def runs_per_call(config: Config) -> int:
    """The wanted number; by default one on a CPU, where runs only take turns."""
    return config.runs_per_call or (1 if jax.default_backend() == "cpu" else 10)


def mesh_for(num_runs: int) -> jax.sharding.Mesh:
    """As many devices as divide the runs evenly."""
    count = max(k for k in range(1, jax.device_count() + 1) if num_runs % k == 0)
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("runs",))
