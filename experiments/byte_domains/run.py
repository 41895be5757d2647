"""The protocol in order: text, network, method, the host loop."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.byte_domains.config import NUMBERS, Config
from experiments.byte_domains.text import domains, make_task
from jaxcl.curvature import empirical_fisher
from jaxcl.data import Task
from jaxcl.losses import single_head, token_accuracy, token_cross_entropy
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import RowMetric
from jaxcl.models import DecoderConfig, cast_compute, decoder
from jaxcl.regularizers import ewc
from jaxcl.runs.folder import RunFolder, check_data_hash
from jaxcl.runs.trials import RunSpec, Trial, all_trials, run_specs
from jaxcl.training import Options
from jaxcl.transforms import sam
from jaxcl.typing import Loss, Method, Model

NUM_BYTES = 256  # a token is a byte


def run(config: Config, folder: RunFolder) -> None:
    """Do every run that is not in ``results.jsonl`` yet."""
    texts = texts_of(config)
    check_data_hash(folder, (np.frombuffer(text, np.uint8) for text in texts.values()))
    run_specs(folder, all_trials("domains of text", config, NUMBERS), run_spec)


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
    sizes = DecoderConfig(
        vocab_size=NUM_BYTES,
        hidden_size=config.hidden_size,
        intermediate_size=8 * config.hidden_size // 3,  # gated: three matrices, not two
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=max(1, config.num_heads // 2),
    )
    model = decoder(sizes, scan=config.scan, checkpoint=config.checkpoint)
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
        arm = functools.partial(make_arm, trial.arm, trial.hyper, loss)
        return arm(chunk_size=config.chunk_size)

    def rows(params, frozen, batch):
        del frozen
        return {"token_accuracy": hits(params, batch)}

    options = Options(
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        end_task_examples=config.fisher_rows,
        eval_batch_size=2 * config.batch_size,  # without gradients twice the rows fit
        eval_examples=config.test_rows,
        eval_start=False,  # the matrix begins after the first domain
        save_every=config.checkpoint_seconds,
    )
    return RunSpec(
        key, build, model.init(key_start), tasks_of(config), RowMetric(rows), options
    )


def make_arm(
    arm: str, hyper: Mapping[str, float], loss: Loss, *, chunk_size: int | None
) -> Method:
    """What an arm is made of."""
    warm_steps = int(hyper["warm_steps"])
    rate = optax.warmup_constant_schedule(0, hyper["learning_rate"], warm_steps)
    memory = regularizer = gradient = None
    if "er" in arm.split("-"):
        size = int(hyper["replay_size"])
        memory = reservoir(int(hyper["capacity"]), sample_size=size)
    if "sam" in arm.split("-"):
        gradient = sam(hyper["rho"])
    if "ewc" in arm.split("-"):
        regularizer = ewc(empirical_fisher(loss, chunk_size=8), hyper["strength"])
    return make_method(
        loss,
        optax.adamw(rate),
        gradient=gradient,
        regularizer=regularizer,
        memory=memory,
        chunk_size=chunk_size,
    )
