"""Packing: how many runs one accelerator does per hour, side by side in one program.

The grid is that of the plasticity paper: permuted tasks and pairs of classes, a small
network, online SGD at two rates, ten seeds, and beside SGD, SAM and GNP the neighbours
that keep a network plastic. Seeds and rates are mapped over, so they share one program;
data are synthetic images in MNIST's shapes, since only time and memory are looked at.

    python -m experiments.benchmarks.packing smoke    # seconds, any machine
    python -m experiments.benchmarks.packing curve    # runs per hour against runs packed
    python -m experiments.benchmarks.packing grid     # every arm, all tasks, 20 runs each
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments.harness import (
    RunFolder,
    append,
    finished,
    main,
    progress,
    read_records,
    write_text,
)
from jaxcl.losses import cross_entropy, multi_head, single_head
from jaxcl.method import make_method
from jaxcl.models import crelu, mlp
from jaxcl.plasticity import continual_backprop, redo, shrink_and_perturb
from jaxcl.regularizers import l2_init
from jaxcl.report.tables import Column, Table, to_markdown
from jaxcl.streams import class_pairs, permuted, synthetic_images, take_tasks
from jaxcl.training.device import (
    current_accuracy,
    first_example,
    over_runs,
    run_stream,
    steps_for,
)
from jaxcl.transforms import gnp, sam
from jaxcl.tree import at, num_tasks
from jaxcl.typing import Method, Model, Stream

ARMS = (
    "sgd",
    "sam",
    "gnp",
    "l2-init",
    "shrink-perturb",
    "redo",
    "continual-backprop",
    "crelu",
    "layer-norm",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Runs per hour and memory against the number of runs in one program."""

    settings: tuple[str, ...] = ("permuted", "pairs-one-head", "pairs-new-head")
    """permuted | pairs-one-head | pairs-new-head."""
    arms: tuple[str, ...] = ARMS
    """What is compared in the paper, and its neighbours."""
    packs: tuple[int, ...] = (20,)
    """Runs in one program; 20 are ten seeds at two rates."""
    num_tasks: int = 100
    """Permutations; pairs are always all 45."""
    task_limit: int | None = None
    """Time only so many tasks, and scale; all if None."""
    num_train: int = 60_000
    """Images of the pool, as in MNIST."""
    num_test: int = 2_000
    """Test images."""
    examples_per_task: int = 10_000
    """Steps are one pass over so many images."""
    batch_size: int = 16
    """Images per step."""
    hidden: tuple[int, ...] = (100, 100)
    """Units of the hidden layers."""
    learning_rates: tuple[float, ...] = (0.01, 0.001)
    """Runs of a pack alternate between them."""
    seed: int = 0
    """Of images, tasks and networks."""


PRESETS = {
    "smoke": Config(
        settings=("pairs-new-head",),
        arms=("sgd", "sam"),
        packs=(1, 2),
        task_limit=1,
        num_train=200,
        num_test=40,
        examples_per_task=64,
        hidden=(8,),
    ),
    "curve": Config(
        settings=("permuted",),
        arms=("sgd", "sam", "gnp"),
        packs=(1, 10, 40, 160, 640),
        task_limit=5,
    ),
    "grid": Config(),
}


def run(config: Config, folder: RunFolder) -> None:
    """Time every setting, arm and pack; a pack that does not fit ends its arm."""
    images = synthetic_images(
        jax.random.key(config.seed),
        num_train=config.num_train,
        num_test=config.num_test,
    )
    streams = {name: make_stream(name, config, images) for name in config.settings}
    jobs = [
        (setting, arm, pack)
        for setting in config.settings
        for arm in config.arms
        for pack in sorted(config.packs)
    ]
    full: set[tuple[str, str]] = set()
    with progress(len(jobs), "programs") as advance:
        for setting, arm, pack in jobs:
            name = f"{setting}/{arm}/runs={pack}"
            if name not in finished(folder) and (setting, arm) not in full:
                record = time_pack(config, setting, streams[setting], arm, pack)
                append(folder, [{"run": name, **record}])
                if record["status"] == "out of memory":
                    full.add((setting, arm))
            advance(1, name)


def make_stream(setting: str, config: Config, images) -> Stream:
    """The tasks of a setting.

    Raises:
      ValueError: for a name that is not a setting.
    """
    if setting == "permuted":
        key = jax.random.key(config.seed)
        rows = min(config.examples_per_task, config.num_train)
        return permuted(key, images, num_tasks=config.num_tasks, num_examples=rows)
    if setting.startswith("pairs-"):
        return class_pairs(images)
    msg = f"settings: expected permuted, pairs-one-head or pairs-new-head, got {setting!r}."
    raise ValueError(msg)


def make_run(config: Config, setting: str, stream: Stream, arm: str) -> Callable:
    """``(key, rate, pool, plan) -> accuracies``: one run, all of it traced."""
    heads = stream.num_classes if setting == "pairs-new-head" else None
    outputs = stream.num_classes * (num_tasks(stream.plan) if heads else 1)
    options: dict[str, Any] = {"activation": crelu} if arm == "crelu" else {}
    model = mlp(
        (784, *config.hidden, outputs), layer_norm=arm == "layer-norm", **options
    )
    logits = multi_head(model.apply, heads) if heads else single_head(model.apply)
    rows = jax.eval_shape(stream.train, stream.pool, at(0, stream.plan)).weight.shape[0]
    used = min(config.examples_per_task, rows)

    def run(key, rate, pool, plan):
        here = stream._replace(pool=pool, plan=plan)
        method = make_arm(arm, cross_entropy(logits), model, rate)
        state = method.init(model.init(key), first_example(here))
        _, record = run_stream(
            key,
            method,
            here,
            state,
            num_steps=steps_for(used, batch_size=config.batch_size),
            batch_size=config.batch_size,
            after=current_accuracy(logits, here, chunk_size=1000),
        )
        return record.after

    return run


def make_arm(arm: str, loss, model: Model, rate: Array) -> Method:
    """One of :data:`ARMS`, with the numbers that the plasticity experiment has.

    Raises:
      ValueError: for a name that is not an arm.
    """
    network = (model.features, model.units, model.init)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "sgd": dict,
        "sam": lambda: {"gradient": sam(0.05)},
        "gnp": lambda: {"gradient": gnp(0.125, penalty=0.1)},
        "l2-init": lambda: {"regularizer": l2_init(1e-3)},
        "shrink-perturb": lambda: {
            "renewal": shrink_and_perturb(0.9975, 0.05, model.init, period=25)
        },
        "redo": lambda: {"renewal": redo(*network)},
        "continual-backprop": lambda: {"renewal": continual_backprop(*network)},
        "crelu": dict,
        "layer-norm": dict,
    }
    if arm not in parts:
        msg = f"arms: expected some of {', '.join(parts)}, got {arm!r}."
        raise ValueError(msg)
    return make_method(loss, optax.sgd(rate), **parts[arm]())


def time_pack(
    config: Config, setting: str, stream: Stream, arm: str, pack: int
) -> dict[str, Any]:
    """Compile a pack of runs, do it, and say what it took."""
    total = num_tasks(stream.plan)
    timed = take_tasks(stream, slice(config.task_limit))
    run = over_runs(make_run(config, setting, stream, arm), (0, 0, None, None))
    keys = jax.random.split(jax.random.key(config.seed), pack)
    rates = jnp.asarray(np.resize(np.array(config.learning_rates, np.float32), pack))
    data = (keys, rates, timed.pool, timed.plan)
    head = {
        "setting": setting,
        "arm": arm,
        "pack": pack,
        "tasks": total,
        "tasks_timed": num_tasks(timed.plan),
        "device": jax.devices()[0].device_kind,
    }
    started = time.perf_counter()
    try:
        program = jax.jit(run).lower(*data).compile()
        compiling = time.perf_counter() - started
        started = time.perf_counter()
        accuracy = np.asarray(jax.block_until_ready(program(*data)))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**head, "status": "out of memory"}
    seconds = (time.perf_counter() - started) * total / num_tasks(timed.plan)
    return {
        **head,
        "status": "done",
        "compile_seconds": compiling,
        "seconds": seconds,
        "runs_per_hour": 3600 * pack / seconds,
        "program_bytes": program_bytes(program),
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "accuracy": float(accuracy.mean()),
    }


def program_bytes(program) -> int | None:
    """Arguments, results and scratch of a compiled program, where the device tells."""
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    parts = ("argument", "output", "temp")
    return sum(getattr(sizes, f"{part}_size_in_bytes") for part in parts)


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/packing.md``: a row per setting, arm and pack."""
    records = read_records(folder)
    names = ("setting", "arm", "pack", "seconds", "runs_per_hour", "program_bytes")
    rows = [tuple(record.get(name) for name in names) for record in records]
    columns = (
        Column("setting"),
        Column("arm"),
        Column("runs packed", 0),
        Column("minutes", 2, 1 / 60),
        Column("runs per hour", 0),
        Column("memory, GB", 2, 1e-9),
    )
    done = [record for record in records if record["status"] == "done"]
    whole = sum(record["seconds"] + record["compile_seconds"] for record in done) / 60
    device = records[0]["device"] if records else "nothing"
    notes = [f"On {device}; all programs with compilation {whole:.1f} minutes."]
    if config.task_limit:
        notes.append(
            f"Timed on {config.task_limit} tasks and scaled to the whole stream."
        )
    table = Table(columns, tuple(rows), tuple(notes))
    write_text(folder.path / "tables" / "packing.md", to_markdown(table))


command = partial(
    main, PRESETS, run, __doc__ or "", report=report, name="benchmarks.packing"
)

__all__ = ["ARMS", "PRESETS", "Config", "command", "report", "run"]

if __name__ == "__main__":
    raise SystemExit(command())
