"""The protocol in order: data, network, method, the host loop."""

import functools
from collections.abc import Mapping

import jax
import optax

from experiments.class_stream.config import NUMBERS, Config
from jaxcl.curvature import empirical_fisher
from jaxcl.data import (
    Images,
    class_splits,
    digits,
    load_images,
    split_sizes,
    stream_tasks,
)
from jaxcl.losses import cross_entropy, heads
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import classification
from jaxcl.models import resnet
from jaxcl.regularizers import ewc
from jaxcl.runs.folder import RunFolder, check_data_hash
from jaxcl.runs.trials import RunSpec, Trial, all_trials, run_specs
from jaxcl.training import Options
from jaxcl.transforms import sam
from jaxcl.typing import Method, Outputs


def run(config: Config, folder: RunFolder) -> None:
    """Do every run that is not in ``results.jsonl`` yet."""
    check_data_hash(folder, images_of(config)[:4])
    run_specs(folder, all_trials("class splits", config, NUMBERS), run_spec)


@functools.lru_cache(maxsize=1)  # one process reads the images once for all its runs
def images_of(config: Config) -> Images:
    """The images, always with an axis for channels."""
    images = digits() if config.data == "digits" else load_images(config.data)
    if images.train_x.ndim == 4:
        return images
    deep = lambda x: x[..., None]
    return images._replace(train_x=deep(images.train_x), test_x=deep(images.test_x))


def run_spec(config: Config, trial: Trial) -> RunSpec:
    """Tasks, start, method and metrics of a trial."""
    images = images_of(config)
    of_seed = jax.random.fold_in(jax.random.key(config.seed), trial.seed)
    # A seed draws which classes meet, the start, and the batches.
    key_stream, key_start, key = jax.random.split(of_seed, 3)
    stream = class_splits(key_stream, images, num_tasks=config.num_tasks, flat=False)
    model = resnet(
        images.num_classes,
        width=config.width,
        stem_stride=config.stem_stride,
        channels=images.train_x.shape[-1],
    )
    outputs = heads(model.apply, split_sizes(images.num_classes, config.num_tasks))

    def build(frozen) -> Method:
        del frozen
        return make_arm(trial.arm, trial.hyper, outputs)

    options = Options(
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        end_task_examples=config.fisher_rows,
        eval_batch_size=config.eval_batch_size,
        eval_examples=config.test_rows,
        eval_start=False,  # the matrix begins after the first task
        save_every=config.checkpoint_seconds,
    )
    start = model.init(key_start)
    return RunSpec(
        key, build, start, stream_tasks(stream), classification(outputs), options
    )


def make_arm(arm: str, hyper: Mapping[str, float], outputs: Outputs) -> Method:
    """What an arm is made of."""
    loss, optimizer = cross_entropy(outputs), optax.sgd(hyper["learning_rate"])
    if arm == "none":
        return make_method(loss, optimizer)
    memory = reservoir(int(hyper["capacity"]), sample_size=int(hyper["replay_size"]))
    if arm == "er":
        return make_method(loss, optimizer, memory=memory)
    fisher = empirical_fisher(loss, chunk_size=16)  # gradients of 16 images at a time
    return make_method(
        loss,
        optimizer,
        gradient=sam(hyper["rho"]),
        regularizer=ewc(fisher, hyper["strength"]),
        memory=memory,
    )
