"""The compiled functions of the host loop, on one device or sharded over a mesh."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcl.errors import InputError, check_kind
from jaxcl.metrics.evaluation import (
    RowMetric,
    TaskMetric,
    check_names,
    finished,
    listed,
    weighted_sums,
)
from jaxcl.sharding import ShardingPlan, batch_sharding, replicated, shardings
from jaxcl.training.device import with_num_steps
from jaxcl.typing import Batch, Key, Method, MethodState, Params

#: ``(frozen) -> method``: called while tracing, so that ``frozen`` is not a constant.
Build = Callable[[PyTree], Method]

#: Metrics of test rows: one, or several with different names.
Metrics = RowMetric | TaskMetric | Sequence[RowMetric | TaskMetric]

#: How to treat a step that is not finite.
Policy = Literal["stop", "skip", "continue"]


class Program(NamedTuple):
    """The functions of a run on the device; each is compiled when it is first used."""

    start: Callable[[Params], MethodState]
    step: Callable[..., Any]  # (state, key, number, num_steps, batch) -> (state, info)
    end_task: Callable[..., MethodState]  # (state, key, task) -> state
    read: Callable[[MethodState], dict[str, PyTree]]  # the learners
    total: Callable[..., Any]  # (params, batch) -> (sums of each row metric, weight)
    metrics: tuple[RowMetric | TaskMetric, ...]
    metric_names: tuple[str, ...]
    learner_names: tuple[str, ...]
    frozen: PyTree


class Rows(NamedTuple):
    """The batches that the functions of a run get, for shapes and dtypes."""

    example: Batch  # one real row
    batch: Batch  # of a step
    data: Batch  # of the end of a task
    tested: Batch  # of an evaluation


class _Parts(NamedTuple):
    """The jitted functions of a program."""

    start: Any  # (params, frozen, example) -> state
    step: Any  # (state, frozen, key, number, num_steps, batch) -> (state, info)
    end_task: Any  # (state, frozen, key, task) -> state
    read: Any  # (state, frozen) -> the learners, in the order of their names
    names: tuple[str, ...]  # of the learners, the default one first: jit sorts a dict
    total: Any  # (params, frozen, batch) -> (sums of each row metric, weight)


class _Known(NamedTuple):
    """The functions of an earlier run, and what they were compiled from."""

    programs: tuple  # of each function: its StableHLO, hashed, and its trees
    sharding: ShardingPlan | None
    parts: _Parts


_KNOWN: list[_Known] = []  # the latest first
_MOST_KNOWN = 8


def compile_program(
    build: Build,
    params: Params,
    frozen: PyTree,
    rows: Rows,
    *,
    key: Key,
    metrics: Metrics = (),
    on_non_finite: Policy = "stop",
    sharding: ShardingPlan | None = None,
) -> Program:
    """Jit the functions of a run. The state is donated to each step.

    All functions are traced and lowered in the shapes they will get, so that errors of
    shape are raised before the first step. Where an earlier run of this process was
    lowered to the same programs, its compiled ones are used; the last few are kept.

    Args:
      build: makes the method.
      params: for shapes and dtypes.
      frozen: placed by :func:`shard`; passed to every call.
      rows: shapes and dtypes of batches.
      key: of the run, for its type.
      metrics: computed on test rows.
      on_non_finite: with ``skip`` a step whose loss, gradient or parameters are not
        finite does not change the state.
      sharding: of inputs and outputs.

    Raises:
      ValueError: if ``build`` or a metric has other results.
    """
    remedy = "give one of frozen that makes the method"
    check_kind("learn", Callable, remedy, build=build)
    metrics = listed("learn", metrics)
    row_metrics = [metric for metric in metrics if isinstance(metric, RowMetric)]

    inputs = params, frozen, rows.example
    totals = [metric.rows for metric in row_metrics]
    parts = _jit_parts(build, totals, on_non_finite, sharding, inputs)
    names = _metric_names(parts, metrics, inputs, rows.tested)
    parts = _compiled_before(parts, inputs, rows, key, sharding, bool(metrics))

    def begin(params):
        # Copies: a step donates its buffers, and the caller keeps `params`.
        placed = shard(sharding, params, "params/")
        return jax.tree.map(jnp.copy, parts.start(placed, frozen, rows.example))

    return Program(
        begin,
        lambda state, *given: parts.step(state, frozen, *given),
        lambda state, key, task: parts.end_task(state, frozen, key, task),
        lambda state: dict(zip(parts.names, parts.read(state, frozen), strict=True)),
        lambda params, batch: parts.total(params, frozen, batch),
        metrics,
        names,
        parts.names,
        frozen,
    )


def _metric_names(parts, metrics, inputs, tested) -> tuple[str, ...]:
    """The names of all metrics, known by tracing."""
    if not metrics:
        return ()
    state = parts.start.eval_shape(*inputs)
    first = parts.read.eval_shape(state, inputs[1])[0]
    with _noting("metrics", tested):
        sums, _ = parts.total.eval_shape(first, inputs[1], tested)
    names: list[str] = []
    sums = iter(sums)
    for metric in metrics:
        if isinstance(metric, TaskMetric):
            names += metric.names
        else:
            names += jax.eval_shape(partial(finished, metric), next(sums))
    check_names("learn", names)
    return tuple(names)


def _compiled_before(parts, inputs, rows, key, sharding, measured) -> _Parts:
    """The functions of an earlier run with the same programs, or these."""
    lowered = list(_lowered(parts, inputs, rows, key, measured))
    texts = [program.as_text() for program in lowered]
    if any("callback" in text for text in texts):
        return parts  # which function is called back is not in the text
    digest = lambda text: hashlib.sha256(text.encode()).digest()
    trees = [(program.in_tree, program.out_tree) for program in lowered]
    programs = parts.names, tuple(zip(map(digest, texts), trees, strict=True))
    for known in _KNOWN:
        if known.programs == programs and known.sharding == sharding:
            return known.parts
    _KNOWN.insert(0, _Known(programs, sharding, parts))
    del _KNOWN[_MOST_KNOWN:]
    return parts


def _lowered(parts, inputs, rows: Rows, key, measured: bool) -> Iterator[Any]:
    """All functions of a run, lowered in the shapes they will get."""
    params, frozen, example = inputs
    key, number = jax.eval_shape(lambda: key), jax.ShapeDtypeStruct((), np.int32)
    state = parts.start.eval_shape(*inputs)
    yield parts.start.lower(params, frozen, example)
    with _noting("step", rows.batch):
        given = state, frozen, key, number, number, rows.batch
        check_state("step", state, parts.step.eval_shape(*given)[0])
        yield parts.step.lower(*given)
    with _noting("end_task", rows.data):
        given = state, frozen, key, rows.data
        check_state("end_task", state, parts.end_task.eval_shape(*given))
        yield parts.end_task.lower(*given)
    yield parts.read.lower(state, frozen)
    for learner in parts.read.eval_shape(state, frozen) if measured else ():
        with _noting("metrics", rows.tested):
            yield parts.total.lower(learner, frozen, rows.tested)


def check_state(where: str, before: MethodState, after: MethodState) -> None:
    """Refuse a state that changes its structure, shapes or dtypes.

    Raises:
      ValueError: naming the first leaf that differs, and so the part.
    """

    def specs(state):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        name = jax.tree_util.keystr
        return {name(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}

    old, new = specs(before), specs(after)
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            msg = (
                f"learn: {where} must keep the form of the state, got "
                f"{new.get(path, 'nothing')} at {path.lstrip('.')}, "
                f"{old.get(path, 'nothing')} before; let that part return a state like "
                "the one of its init."
            )
            raise InputError(msg)


def _jit_parts(
    build: Build,
    totals: Sequence[Callable],
    policy: Policy,
    sharding: ShardingPlan | None,
    inputs: tuple,
) -> _Parts:
    """Jit the functions of the method, and the sums of metrics."""
    params, frozen, example = inputs

    def made(frozen):
        method = build(frozen)
        remedy = "let build return what make_method returns"
        check_kind("learn", Method, remedy, method=method)
        return method

    def start(params, frozen, example):
        return made(frozen).init(params, example)

    def step(state, frozen, key, number, num_steps, batch):
        state = with_num_steps(state, num_steps)
        after, info = made(frozen).step(jax.random.fold_in(key, number), state, batch)
        finite = info.finite & jnp.isfinite(info.metrics["grad_norm"])
        for leaf in jax.tree.leaves(after.params):
            finite &= jnp.all(jnp.isfinite(leaf))
        if policy == "skip":
            keep = lambda new, old: jnp.where(finite, new, old)
            kept = jax.tree.map(keep, after, state)
            after = kept._replace(progress=after.progress)  # the task goes on
        return after, info._replace(finite=finite)

    def end_task(state, frozen, key, task):
        return made(frozen).end_task(key, state, task)

    def read(state, frozen):
        return tuple(made(frozen).learners(state).values())

    def total(params, frozen, batch):
        sums = [weighted_sums(rows(params, frozen, batch), batch) for rows in totals]
        return sums, jnp.sum(batch.weight)

    with _noting("build or the method's init", example):
        state = jax.eval_shape(start, *inputs)
        names: list[str] = []
        read_names = lambda state, frozen: names.extend(made(frozen).learners(state))
        jax.eval_shape(read_names, state, frozen)
    spread = lambda tree, prefix="": (
        sharding and shardings(sharding, tree, prefix=prefix)
    )
    weights, base = spread(params, "params/"), spread(frozen, "frozen/")
    states = spread(state)
    rows, same = (
        sharding and batch_sharding(sharding),
        sharding and replicated(sharding),
    )

    def jit(function, arguments, results, donate=()):
        if sharding is None:
            return jax.jit(function, donate_argnums=donate)
        return jax.jit(
            function,
            donate_argnums=donate,
            in_shardings=arguments,
            out_shardings=results,
        )

    return _Parts(
        jit(start, (weights, base, same), states),
        jit(step, (states, base, same, same, same, rows), (states, same), donate=0),
        jit(end_task, (states, base, same, rows), states, donate=0),
        jit(read, (states, base), None),
        tuple(names),
        jit(total, (None, base, rows), same),
    )


def shard(sharding: ShardingPlan | None, tree: PyTree, prefix: str) -> PyTree:
    """Arrays on the devices by the plan's rule, with prefixed paths.

    Arrays with this sharding are not moved. From the host they would be copied per call.
    """
    if sharding is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, shardings(sharding, tree, prefix=prefix))


@contextmanager
def _noting(part: str, batch: Batch) -> Iterator[None]:
    """Add a note to an error: what was traced, and on which rows."""
    try:
        yield
    except Exception as error:
        kind = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
        x, y = jax.tree.map(kind, (batch.x, batch.y))
        error.add_note(f"learn: in {part}, on x {x} and y {y}, before the first step.")
        raise
