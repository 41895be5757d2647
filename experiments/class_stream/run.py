"""The protocol in order: data, network, method, the host loop."""

import functools
from collections.abc import Callable

import jax
import optax

from experiments.class_stream.config import Config
from jaxcl.curvature import empirical_fisher
from jaxcl.data import (
    Images,
    class_splits,
    digits,
    load_images,
    split_sizes,
    stream_tasks,
)
from jaxcl.errors import InputError
from jaxcl.losses import cross_entropy, heads
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import classification
from jaxcl.models import resnet
from jaxcl.regularizers import ewc
from jaxcl.runs import (
    RunFolder,
    RunSpec,
    Trial,
    check_data_hash,
    check_fields,
    check_names,
    learn_trial,
    run_trials,
    sharding_of,
    worker_count,
)
from jaxcl.training import Options
from jaxcl.transforms import sam
from jaxcl.typing import Method, Outputs

ARMS = ("none", "er", "sam-ewc-er")


def run(config: Config, folder: RunFolder) -> None:
    """Do every run that is not in ``results.jsonl`` yet."""
    check(config)
    sharding_of(config.fsdp)
    images = images_of(config)
    check_data_hash(folder, images[:4])
    run_spec(config, Trial(config.arms[0], {}, 0))  # refuses what does not fit the data
    trials = [
        Trial(arm, {}, seed) for seed in range(config.seeds) for arm in config.arms
    ]
    count = worker_count(config.workers)
    run_trials(config, folder, trials, worker, num_workers=count)


def worker(config: Config, folder: RunFolder):
    """What a process needs to do trials."""

    def do(trial: Trial, send: Callable) -> None:
        spec = run_spec(config, trial)
        learn_trial(trial, spec, folder, send, setting="class splits", fsdp=config.fsdp)

    return do


@functools.lru_cache(maxsize=1)
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
        return make_arm(config, trial.arm, outputs)

    options = Options(
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        end_task_examples=config.fisher_rows,
        eval_batch_size=config.eval_batch_size,
        eval_examples=config.test_rows,
        eval_start=False,
        save_every=config.checkpoint_seconds,
    )
    start = model.init(key_start)
    return RunSpec(
        key, build, start, stream_tasks(stream), classification(outputs), options
    )


def make_arm(config: Config, arm: str, outputs: Outputs) -> Method:
    """What an arm is made of."""
    loss, optimizer = cross_entropy(outputs), optax.sgd(config.learning_rate)
    if arm == "none":
        return make_method(loss, optimizer)
    memory = reservoir(config.capacity, sample_size=config.replay_size)
    if arm == "er":
        return make_method(loss, optimizer, memory=memory)
    fisher = empirical_fisher(loss, chunk_size=16)
    return make_method(
        loss,
        optimizer,
        gradient=sam(config.rho),
        regularizer=ewc(fisher, config.strength),
        memory=memory,
    )


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute.

    Raises:
      ValueError: naming the field, what it must be, and what it was.
    """
    if not config.data:
        msg = "data: name the images: --data FOLDER with CIFAR-100, or --data digits."
        raise InputError(msg)
    check_fields(config, may_be_zero=("checkpoint_seconds", "rho", "strength"))
    check_names("arms", config.arms, ARMS)
    if config.replay_size > config.capacity:
        msg = (
            f"replay_size: at most the capacity, {config.capacity}, got "
            f"{config.replay_size}."
        )
        raise InputError(msg)


__all__ = ["ARMS", "run"]
