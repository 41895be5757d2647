"""Steps of an adapter by several methods, each compiled once, which take turns."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from experiments.benchmarks.finetune.config import Config
from experiments.benchmarks.language.config import Config as LanguageConfig
from experiments.benchmarks.language.ours import (
    Job,
    make_job,
    make_model,
    make_steps,
    program_of,
    seconds,
)
from experiments.benchmarks.language.shapes import SHAPES
from experiments.benchmarks.rounds import Work, compiled, in_turn, timed
from jaxcl import methods
from jaxcl.averages import ema
from jaxcl.finetune.answer_loss import hidden_states
from jaxcl.transforms import sam
from jaxcl.typing import Loss, Method

STRENGTH = 1.0  # of the distillation, on which the cost does not depend


def make_method(
    config: Config, size: int, what: str, loss: Loss, states: Callable
) -> Method:
    """One of the methods, as ``jaxcl finetune`` has it; ``size`` rows are replayed."""
    given = loss, optax.adamw(config.learning_rate)
    sizes: Any = {"capacity": config.capacity, "sample_size": size}
    replay = partial(methods.experience_replay, *given, **sizes)
    kept = {"decay": config.decay, "strength": STRENGTH, "start_after": 1, **sizes}

    def slow(*, last=True, **options):
        hidden, with_hidden = states(last=last)
        options |= {"with_hidden": with_hidden, **kept}
        return methods.slow_learner(*given, hidden, **options)

    makers: dict[str, Callable[[], Method]] = {
        "plain": partial(methods.plain, *given),
        "sam": partial(methods.plain, *given, gradient=sam(config.rho)),
        "er": replay,
        "average": partial(replay, average=ema(config.decay)),
        "ilora": slow,
        "ilora_all": partial(slow, last=False),
        "ilora_products": partial(slow, of_products=True),
    }
    return makers[what]()


def steps(config: Config, name: str) -> Work:
    """Compile the steps of a model; what is returned takes some of each, in turn.

    Its line has the seconds of a step of each, ``NAME_cpu`` and ``NAME_wall``, those of the
    first one with its compilation, ``NAME_first_cpu``, XLA's count of operations,
    ``NAME_flops``, and with ``average`` the seconds of its update alone, ``update_cpu``.
    XLA counts one of the layers, as they are a loop.
    """
    shape = SHAPES[name]
    language = LanguageConfig(rank=config.rank, seed=config.seed)
    job = make_job(language, name, adapter=True)
    model, count, size = make_model(shape)[0], shape.steps, shape.batch_size

    def build(frozen, what):
        states = partial(hidden_states, model, frozen)
        return make_method(config, size, what, job.loss(frozen), states)

    works, known = {}, {}
    for what in config.methods:
        program = program_of(job, partial(build, what=what))
        made = make_steps(job, program, count)
        works[what] = made.go_on
        known |= seconds(f"{what}_first_", made.first)
        known[f"{what}_flops"] = made.compiled.cost_analysis()["flops"]
    many = config.average_updates
    if "average" in config.methods:
        works["update"] = updates(config, job, many)
        timed(works["update"])

    def work(turn):
        found = dict(known)
        for what, cost in in_turn(works, turn.round).items():
            found |= seconds(f"{what}_", cost, many if what == "update" else count)
        return found

    return work


def updates(config: Config, job: Job, count: int) -> Callable[[], Any]:
    """So many updates of the average of an adapter, and nothing else."""
    average, key = ema(config.decay), jax.random.key(0)
    record: Any = None  # of the step, at which this average does not look
    update = lambda state, params: average.observe(key, state, record, params)
    held = [average.init(job.trainable, job.batch)]
    program, _ = compiled(update, *held, job.trainable, donate=0)

    def go_on():
        for _ in range(count):
            held.append(program(held.pop(), job.trainable))
        return held[0]

    return go_on
