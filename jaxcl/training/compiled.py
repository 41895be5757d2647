"""The compiled functions of the host loop, on one device or sharded over a mesh."""

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcl.errors import check_function, check_kind
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
    """The functions of a run on the device; each is compiled when it is first used.

    ``check_shapes`` traces every function that takes rows, in the shapes it will get, and
    caches the traces: errors of shape are raised before the first step. ``kept`` are
    ``build`` and the metrics, to which the functions have weak references only.
    """

    start: Callable[[Params], MethodState]
    step: Callable[..., Any]  # (state, key, number, num_steps, batch) -> (state, info)
    end_task: Callable[..., MethodState]  # (state, key, task) -> state
    read: Callable[[MethodState], dict[str, PyTree]]  # the learners
    total: Callable[..., Any]  # (params, batch) -> (sums of each row metric, weight)
    check_shapes: Callable[[Key, Batch, Batch], None]  # (key, batch, task)
    metrics: tuple[RowMetric | TaskMetric, ...]
    metric_names: tuple[str, ...]
    learner_names: tuple[str, ...]
    frozen: PyTree
    kept: tuple[Callable, ...]


class _Parts(NamedTuple):
    """The jitted functions of a program."""

    start: Any  # (params, frozen, example) -> state
    step: Any  # (state, frozen, key, number, num_steps, batch) -> (state, info)
    end_task: Any  # (state, frozen, key, task) -> state
    read: Any  # (state, frozen) -> the learners, in the order of their names
    names: tuple[str, ...]  # of the learners, the default one first: jit sorts a dict
    total: Any  # (params, frozen, batch) -> (sums of each row metric, weight)


class _Compiled(NamedTuple):
    """The compiled functions of an earlier run, and the key under which they are reused."""

    functions: list[weakref.ref]  # build, rows of metrics: the same objects
    outside: list  # objects in their closures and globals: the same objects
    traits: tuple  # policy, layout, trees and shapes: equal
    parts: _Parts


_RECENT: list[_Compiled] = []  # newest first; an entry is removed with its functions
_MAX_RECENT = 8


def compile_program(
    build: Build,
    params: Params,
    frozen: PyTree,
    example: Batch,
    *,
    tested: Batch,
    metrics: Metrics = (),
    on_non_finite: Policy = "stop",
    sharding: ShardingPlan | None = None,
) -> Program:
    """Jit the functions of a run. The state is donated to each step.

    A run reuses the compiled functions of an earlier one of this process if ``build`` and
    metrics are the same objects, with the same objects in their closures and globals, and
    if shapes, policy and sharding are equal. Objects that they read must not be changed in
    place between two runs.

    Args:
      build: makes the method.
      params: for shapes and dtypes.
      frozen: placed by :func:`shard`; passed to every call.
      example: a batch of one row.
      tested: a batch of test rows, for shapes and dtypes.
      metrics: computed on test rows.
      on_non_finite: with ``skip`` a step whose loss, gradient or parameters are not
        finite does not change the state.
      sharding: of inputs and outputs.

    Raises:
      ValueError: if ``build`` or a metric has other arguments or results.
    """
    check_function("learn", "frozen", build=build)
    metrics = listed("learn", metrics)
    row_metrics = [metric for metric in metrics if isinstance(metric, RowMetric)]
    for metric in row_metrics:
        check_function("learn", "params, frozen, batch", rows=metric.rows)

    functions = [build, *(metric.rows for metric in row_metrics)]
    inputs = params, frozen, example
    parts = _find_parts(functions, on_non_finite, sharding, inputs)

    def begin(params):
        # Copies: a step donates its buffers, and the caller keeps `params`.
        placed = shard(sharding, params, "params/")
        return jax.tree.map(jnp.copy, parts.start(placed, frozen, example))

    def check_shapes(key, batch, task):
        key, number = jax.eval_shape(lambda: key), np.int32(0)
        state = parts.start.eval_shape(*inputs)
        with _noting("step", batch):
            parts.step.eval_shape(state, frozen, key, number, number, batch)
        with _noting("end_task", task):
            parts.end_task.eval_shape(state, frozen, key, task)
        for learner in parts.read.eval_shape(state, frozen) if metrics else ():
            with _noting("metrics", tested):
                parts.total.eval_shape(learner, frozen, tested)

    learners, names = _names(parts, metrics, inputs, tested)
    return Program(
        begin,
        lambda state, *given: parts.step(state, frozen, *given),
        lambda state, key, task: parts.end_task(state, frozen, key, task),
        lambda state: dict(zip(parts.names, parts.read(state, frozen), strict=True)),
        lambda params, batch: parts.total(params, frozen, batch),
        check_shapes,
        metrics,
        names,
        learners,
        frozen,
        tuple(functions),
    )


def _names(parts, metrics, inputs, tested) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of learners and of metrics, known by tracing."""
    if not metrics:
        return parts.names, ()
    state = parts.start.eval_shape(*inputs)
    learners = parts.read.eval_shape(state, inputs[1])
    first = learners[0]
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
    return parts.names, tuple(names)


def _find_parts(
    functions: list[Callable],
    policy: Policy,
    sharding: ShardingPlan | None,
    inputs: tuple,
) -> _Parts:
    """The compiled functions of an equivalent run, or new ones.

    Only those of plain functions are cached: other callables may have their own state.
    """
    plain = all(map(inspect.isfunction, functions))
    outside = _read_outside(functions) if plain else []
    shapes = jax.eval_shape(lambda *trees: trees, *inputs)
    traits = policy, sharding, *jax.tree.flatten(shapes)
    for known in _RECENT:
        same = _identical([find() for find in known.functions], functions)
        if same and _identical(known.outside, outside) and known.traits == traits:
            return known.parts
    if not plain:
        return _jit_parts([lambda f=f: f for f in functions], policy, sharding, inputs)
    found = [weakref.ref(function, _forget) for function in functions]
    parts = _jit_parts(found, policy, sharding, inputs)
    _RECENT.insert(0, _Compiled(found, outside, traits, parts))
    del _RECENT[_MAX_RECENT:]
    return parts


def _read_outside(functions: list[Callable]) -> list:
    """The objects of the closures and global names of functions.

    They distinguish runs in a loop over learning rates that ``build`` reads as a global.
    """
    read = map(inspect.getclosurevars, functions)
    return [v for names in read for v in {**names.nonlocals, **names.globals}.values()]


def _identical(left: list, right: list) -> bool:
    pairs = zip(left, right, strict=False)
    return len(left) == len(right) and all(a is b for a, b in pairs)


def _forget(gone: weakref.ref) -> None:
    _RECENT[:] = [known for known in _RECENT if gone not in known.functions]


def _jit_parts(
    functions: list[Callable[[], Any]],
    policy: Policy,
    sharding: ShardingPlan | None,
    inputs: tuple,
) -> _Parts:
    """Jit the functions of the method and the metrics; ``functions`` return these."""
    params, frozen, example = inputs

    def made(frozen):
        method = functions[0]()(frozen)
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
        sums = [weighted_sums(f()(params, frozen, batch), batch) for f in functions[1:]]
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


__all__ = ["Build", "Metrics", "Policy", "Program", "compile_program", "shard"]
