"""Every method of the command: what it is composed of, and what it starts from."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import methods
from jaxcl.adapters import combine, merge_lora, with_frozen
from jaxcl.cli.finetune import parse
from jaxcl.data import Task, array_dataset
from jaxcl.finetune import config as settings
from jaxcl.finetune import plan as planned
from jaxcl.finetune import run as finetuning
from jaxcl.finetune.answer_loss import hidden_states
from jaxcl.finetune.checks import check
from jaxcl.finetune.method import (
    from_the_start,
    learning_rate,
    make,
    rate_factor,
    scale_adapter,
    set_up,
)
from jaxcl.finetune.plan import Clock, num_params, plan, trained_part
from jaxcl.interop import read_config
from jaxcl.losses import single_head, squared_error, token_cross_entropy
from jaxcl.method import make_method
from jaxcl.methods import slow_learner
from jaxcl.models import decoder
from jaxcl.training import Options, learn
from jaxcl.tree import as_batch
from jaxcl.typing import Average
from tests.test_finetune.conftest import words_of

METHODS = get_args(settings.Method)
LEARNERS = {"ilora": ["slow", "fast"], "wise-ft": ["interpolated", "params"]}


def config_of(home, out, *more, **options):
    return parse(words_of(home, out, *more, **options)[1:])


def job_of(home, out, *more):
    config = config_of(home, out, *more)
    check(config)
    return finetuning.load(config)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_form_of_its_state(home, tmp_path, method):
    """Oracle: shapes of the state before and after a step and the end of a task; the
    names of the learners, and leaves of the adapter."""
    job = job_of(home, tmp_path / "run", "--method", method, "--memory", "4")
    setup, rows = job.setup, job.tasks[0].train.read(np.arange(2))
    built = setup.build(setup.frozen)
    example = jax.tree.map(lambda leaf: leaf[:1], rows)
    start = jax.eval_shape(built.init, setup.trainable, example)
    key = jax.random.key(0)
    step, info = jax.eval_shape(built.step, key, start, rows)
    end = jax.eval_shape(built.end_task, key, step, rows)
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
    for after in (step, end):
        assert all(jax.tree.leaves(jax.tree.map(same, start, after)))
    assert {"grad_norm"} <= {*info.metrics}
    state = built.init(setup.trainable, example)
    assert list(built.learners(state)) == LEARNERS.get(method, ["params"])
    leaves = jax.tree.leaves_with_path(setup.trainable)
    ends = {str(path[-1].key) for path, _ in leaves}
    assert ends == ({"prompts", "keys"} if method == "l2p" else {"lora_a", "lora_b"})


@pytest.mark.parametrize("last", [True, False])
def test_one_pass_for_loss_and_distillation_is_as_two(home, tmp_path, last):
    """Oracle: the loss and the penalty in passes of their own. Control: no penalty."""
    job = job_of(home, tmp_path / "run", "--method", "ilora")
    setup, read = job.setup, job.tasks[0].train.read
    apply = decoder(setup.config)

    def built(frozen, shared, strength):
        hidden, with_hidden = hidden_states(apply, frozen, last=last)
        outputs = single_head(with_frozen(apply.apply, frozen))
        return slow_learner(
            token_cross_entropy(outputs),
            optax.sgd(0.1),
            hidden,
            decay=0.5,
            strength=strength,
            capacity=8,
            sample_size=4,
            with_hidden=with_hidden if shared else None,
        )

    found = []
    for shared, strength in ((True, 5.0), (False, 5.0), (False, 0.0)):
        method = built(setup.frozen, shared, strength)
        state, step = (
            method.init(setup.trainable, read(np.arange(1))),
            jax.jit(method.step),
        )
        for number in range(4):
            rows = read(np.arange(4 * number, 4 * number + 4))
            state = step(jax.random.key(number), state, rows)[0]
        found.append(state.params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, *found[:2])
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *found[1:])
    assert max(jax.tree.leaves(gaps)) > 1e-4


@pytest.mark.parametrize(("more", "rows"), [((), 2), (("--replay", "3"), 3)])
def test_gem_computes_a_few_rows_of_each_task(home, tmp_path, monkeypatch, more, rows):
    """Oracle: the flags; all rows of the memory would be many times the cost."""
    given = {}
    gem = methods.gem
    keep = lambda *parts, **sizes: given.update(sizes) or gem(*parts, **sizes)
    monkeypatch.setattr(methods, "gem", keep)
    config = config_of(home, tmp_path, "--method", "gem", *more)
    model = decoder(read_config(config.model))
    make(config, model, {})
    assert (given["sample_size"], given["capacity_per_task"]) == (rows, 8)


@pytest.fixture(scope="module")
def two_steps(home, tmp_path_factory):
    """A function that makes two steps by a gradient, and what the plain one reaches."""
    more = "--rho", "0.5", "--method", "seq"
    job = job_of(home, tmp_path_factory.mktemp("gradients") / "run", *more)
    model, rows = decoder(job.setup.config), job.tasks[0].train.read(np.arange(2))

    def made(gradient):
        built = make(replace(job.config, gradient=gradient), model, job.setup.frozen)
        state, step = built.init(job.setup.trainable, rows), jax.jit(built.step)
        for number in range(2):  # B is zero at first, and with it half of the gradient
            state = step(jax.random.key(number), state, rows)[0]
        return built, state, rows

    return made, made("plain")[1].params


@pytest.mark.parametrize("gradient", get_args(settings.Gradient)[1:])
def test_every_gradient_changes_the_step(two_steps, gradient):
    """Oracle: the step of the plain gradient, from which all differ at this radius.
    LookSAM's state is zero again at the end of a task, as at the start."""
    made, plain = two_steps
    built, state, rows = made(gradient)
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), plain, state.params)
    assert max(jax.tree.leaves(gaps)) > 1e-6
    if gradient == "looksam":
        largest = lambda state: max(map(jnp.max, jax.tree.leaves(state.gradient)))
        assert largest(state) > 0
        end = jax.jit(built.end_task)(jax.random.key(0), state, rows)
        assert largest(end) == 0


def test_each_task_by_itself_begins_with_the_first_parameters():
    """Oracle: a run of each task alone, after each of them. Control: without it they
    differ. A step costs nothing."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((16, 3)).astype(np.float32)
    data = [array_dataset(as_batch(x, x @ draw.standard_normal((3, 2)))) for _ in "ab"]
    tasks = [Task(name, rows, rows) for name, rows in zip("ab", data, strict=True)]
    loss = squared_error(lambda params, batch, keys=None: batch.x @ params["w"])
    params = {"w": jnp.zeros((3, 2))}
    run = lambda tasks, more={}, **options: learn(
        jax.random.key(0),
        lambda frozen: make_method(loss, optax.sgd(0.1), **options),
        params,
        [task._replace(shuffle=False) for task in tasks],
        Options(4, 4),
        folder=None,
        **more,
    )
    last = lambda state: {"params": state.average[1]}
    average, after = from_the_start(), []
    assert average.observe is Average().observe  # which does nothing
    seen = lambda ended, learners, _: after.append(np.asarray(learners["params"]["w"]))
    both = run(tasks, {"on_task_end": seen}, average=average, learners=last).params
    alone = [run([task]).params["w"] for task in tasks]
    np.testing.assert_allclose(after, [params["w"], *alone], rtol=1e-6)
    np.testing.assert_array_equal(both["w"], after[-1])
    assert np.abs(run(tasks).params["w"] - alone[1]).max() > 1e-3


def test_a_scaled_adapter_moves_its_kernels_as_far(home, tmp_path):
    """Oracle: the kernels, between those before and those after."""
    setup = job_of(home, tmp_path / "run", "--method", "wise-ft").setup
    draw = lambda path, leaf: jax.random.normal(
        jax.random.key(len(str(path))), leaf.shape
    )
    adapter = jax.tree_util.tree_map_with_path(draw, setup.trainable)
    kernels = lambda adapter: merge_lora(combine(adapter, setup.frozen))
    before, after = kernels(setup.trainable), kernels(adapter)
    found = kernels(scale_adapter(adapter, 0.25))
    wanted = jax.tree.map(
        lambda a, b: 0.75 * np.asarray(a) + 0.25 * np.asarray(b), before, after
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, wanted)


def test_the_rate_rises_and_falls_within_each_task(home, tmp_path):
    """Oracle: the schedule by hand, of a task of 10 steps after 20 % of warm-up."""
    config = config_of(home, tmp_path, "--warmup", "0.2", "--schedule", "linear")
    factors = [float(rate_factor(config)(done / 10)) for done in range(10)]
    rise = [0.005, 0.505]
    fall = [(10 - done) / 8 for done in range(2, 10)]
    np.testing.assert_allclose(factors, [*rise, *fall], rtol=1e-5)
    config = replace(config, training=replace(config.training, schedule="constant"))
    assert float(rate_factor(config)(0.9)) == 1.0


def test_the_plan_counts_weights_and_steps(home, tmp_path, monkeypatch, capsys):
    """Oracle: sizes of the adapter in closed form, and the flags. Nothing is written. A
    step is timed in the second of two runs. The clock: by hand."""
    job, results = job_of(home, tmp_path / "run", "--steps", "13"), []
    keep = lambda *given, **more: results.append(learn(*given, **more)) or results[-1]
    monkeypatch.setattr(planned, "learn", keep)
    d, units, kv, rank, layers = 16, 24, 8, 2, 2
    sides = [(d, d), (d, kv), (d, kv), (d, d), (d, units), (d, units), (units, d)]
    trained = layers * rank * sum(i + o for i, o in sides)
    assert num_params(job.setup.trainable) == trained
    lines = plan(job, timed=True)
    assert lines["trained"].startswith(f"{trained:,} (")
    assert "LoRA of rank 2 on all-linear" in lines["trained"]
    slots = trained_part(replace(job.config, method="olora"))
    assert slots == "LoRA of rank 2 for each of 2 tasks on all-linear"
    assert lines["steps"] == "26 of 2 rows"
    assert "GB in a step" in lines["memory"]
    _, second = (result.seconds for result in results)
    assert lines["time"].startswith(f"{second / 5:.2g} s a step, ")
    assert not (tmp_path / "run").exists()
    clock = Clock(job)
    for task, at, seconds in ((0, 5, 10.0), (0, 10, 5.0), (0, 13, 1.5), (1, 19, 5.0)):
        clock.note({"task": task, "at": at, "seconds": seconds})
    early, late = capsys.readouterr().out.strip().split("\n")
    assert early.startswith(
        "time  2 s a step, 42 s for the other 21, without tests, with"
    )
    assert late.startswith(
        "time  0.5 s a step, 4 s for the other 8, without tests, wit"
    )


def test_defaults_depend_on_what_is_trained(home, tmp_path):
    """Oracle: the help of the command."""
    plain = replace(
        config_of(home, tmp_path), training=settings.Training(learning_rate=None)
    )
    assert learning_rate(plain) == 2e-4
    assert learning_rate(replace(plain, adapter="full")) == 2e-5
    full = set_up(replace(plain, adapter="full"), jax.random.key(0))
    assert not jax.tree.leaves(full.frozen)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(full.trainable)} == {"float32"}
