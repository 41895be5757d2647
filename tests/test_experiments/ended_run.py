"""A small experiment of the host loop: a test starts it and sends it SIGTERM."""

import time
from dataclasses import dataclass

import jax
import numpy as np
import optax

from jaxcl.data import Dataset, Task, array_dataset
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import make_method
from jaxcl.metrics import classification
from jaxcl.models import mlp
from jaxcl.runs.command import main
from jaxcl.runs.experiment import Experiment
from jaxcl.runs.trials import RunSpec, Trial, run_specs
from jaxcl.training import Options
from jaxcl.tree import as_batch


@dataclass(frozen=True, kw_only=True)
class Config:
    """Two runs, each in a process of its own."""

    num_steps: int = 600
    pause: float = 0.0  # seconds before each batch: time for a signal to arrive
    workers: int = 2
    fsdp: int = 1


def run(config, folder):
    trials = [Trial("toy", "sgd", {}, seed) for seed in range(2)]
    del config
    run_specs(folder, trials, spec)


def spec(config, trial):
    seed = trial.seed
    x = np.random.default_rng(seed).normal(size=(64, 4)).astype(np.float32)
    rows = array_dataset(as_batch(x, x[:, 0] > 0))
    model = mlp((4, 8, 2))
    logits = single_head(model.apply)

    def slowly(numbers):
        time.sleep(config.pause)
        return rows.read(numbers)

    return RunSpec(
        jax.random.key(seed),
        lambda frozen: make_method(cross_entropy(logits), optax.adam(0.01)),
        model.init(jax.random.key(seed)),
        [Task("sign", Dataset(rows.count, slowly), rows)],
        classification(logits),
        Options(num_steps=config.num_steps, batch_size=8, save_every=1000.0),
    )


if __name__ == "__main__":
    toy = Experiment("toy", {"toy": Config()}, "toy", "A toy.")
    toy = toy._replace(cosmetic_fields=("pause", "workers"))
    raise SystemExit(main(toy, run=run, report=lambda *_: None))
