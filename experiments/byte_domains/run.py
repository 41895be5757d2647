"""The protocol in order: text, network, method, the host loop."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.byte_domains.config import Config
from experiments.byte_domains.text import domains, make_task
from jaxcl.curvature import empirical_fisher
from jaxcl.data import Task
from jaxcl.errors import InputError
from jaxcl.losses import single_head, token_accuracy, token_cross_entropy
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import RowMetric
from jaxcl.models import LlamaConfig, cast_compute, llama
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
from jaxcl.typing import Loss, Method, Model

ARMS = ("none", "er", "sam", "sam-ewc-er")
NUM_BYTES = 256  # a token is a byte


def run(config: Config, folder: RunFolder) -> None:
    """Do every run that is not in ``results.jsonl`` yet."""
    check(config)
    sharding_of(config.fsdp)
    texts = texts_of(config)
    tasks_of(config)  # refuses what does not fit the data
    make_model(config)
    check_data_hash(folder, (np.frombuffer(text, np.uint8) for text in texts.values()))
    trials = [
        Trial(arm, {}, seed) for seed in range(config.seeds) for arm in config.arms
    ]
    count = worker_count(config.workers)
    run_trials(config, folder, trials, worker, num_workers=count)


def worker(config: Config, folder: RunFolder):
    """What a process needs to do trials."""

    def do(trial: Trial, send: Callable) -> None:
        spec = run_spec(config, trial)
        learn_trial(
            trial,
            spec,
            folder,
            send,
            setting="domains of text",
            fsdp=config.fsdp,
            named=True,
        )

    return do


@functools.lru_cache(maxsize=1)
def texts_of(config: Config) -> dict[str, bytes]:
    """The domains by name."""
    return domains(config.data, config.max_bytes)


@functools.lru_cache(maxsize=1)
def tasks_of(config: Config) -> list[Task]:
    """A task per domain."""
    return [
        make_task(name, text, index, config.length)
        for index, (name, text) in enumerate(texts_of(config).items())
    ]


def make_model(config: Config) -> Model:
    """The decoder, in the precision asked for."""
    sizes = LlamaConfig(
        vocab_size=NUM_BYTES,
        hidden_size=config.hidden_size,
        intermediate_size=8 * config.hidden_size // 3,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=max(1, config.num_heads // 2),
    )
    model = llama(sizes, scan=config.scan, checkpoint=config.checkpoint)
    if not config.bfloat16:
        return model
    narrow = functools.partial(cast_compute, jnp.bfloat16)
    return model._replace(apply=narrow(model.apply))


def run_spec(config: Config, trial: Trial) -> RunSpec:
    """Tasks, start, method and metrics of a trial."""
    of_seed = jax.random.fold_in(jax.random.key(config.seed), trial.seed)
    key_start, key = jax.random.split(of_seed)
    model = make_model(config)
    outputs = single_head(model.apply)
    loss, hits = token_cross_entropy(outputs), token_accuracy(outputs)

    def build(frozen) -> Method:
        del frozen
        return make_arm(config, trial.arm, loss)

    def rows(params, frozen, batch):
        del frozen
        return {"token_accuracy": hits(params, batch)}

    options = Options(
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        end_task_examples=config.fisher_rows,
        eval_batch_size=2 * config.batch_size,
        eval_examples=config.test_rows,
        eval_start=False,
        save_every=config.checkpoint_seconds,
    )
    return RunSpec(
        key, build, model.init(key_start), tasks_of(config), RowMetric(rows), options
    )


def make_arm(config: Config, arm: str, loss: Loss) -> Method:
    """What an arm is made of."""
    rate = optax.warmup_constant_schedule(0, config.learning_rate, config.warm_steps)
    memory = regularizer = gradient = None
    if "er" in arm.split("-"):
        memory = reservoir(config.capacity, sample_size=config.replay_size)
    if "sam" in arm.split("-"):
        gradient = sam(config.rho)
    if "ewc" in arm.split("-"):
        regularizer = ewc(empirical_fisher(loss, chunk_size=8), config.strength)
    return make_method(
        loss,
        optax.adamw(rate),
        gradient=gradient,
        regularizer=regularizer,
        memory=memory,
        chunk_size=config.chunk_size,
    )


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute.

    Raises:
      ValueError: naming the field, what it must be, and what it was.
    """
    check_fields(
        config, may_be_zero=("checkpoint_seconds", "rho", "strength", "warm_steps")
    )
    check_names("arms", config.arms, ARMS)
    if config.replay_size > config.capacity:
        msg = (
            f"replay_size: at most the capacity, {config.capacity}, got "
            f"{config.replay_size}."
        )
        raise InputError(msg)


__all__ = ["ARMS", "run"]
