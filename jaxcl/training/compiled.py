"""The compiled functions of the host loop, on one device or sharded over a mesh."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcl.errors import InputError, reason_of, require, shown
from jaxcl.files import differing
from jaxcl.metrics.evaluation import (
    RowMetric,
    TaskMetric,
    check_names,
    finished,
    listed,
    weighted_sums,
)
from jaxcl.sharding import ShardingPlan, batch_sharding, replicated, shardings
from jaxcl.training.checkpoint import leaf_specs, named_leaves
from jaxcl.training.device import with_num_steps
from jaxcl.tree import num_rows, row_format
from jaxcl.typing import Batch, Key, Method, MethodState, Params

#: ``(frozen) -> method``: called while tracing, so that ``frozen`` is not a constant.
Build = Callable[[PyTree], Method]

#: Metrics of test rows: one, or several with different names.
Metrics = RowMetric | TaskMetric | Sequence[RowMetric | TaskMetric]

#: How to treat a step that is not finite.
Policy = Literal["stop", "skip", "continue"]


class Rows(NamedTuple):
    """The batches that the functions of a run get, for shapes and dtypes."""

    example: Batch  # one real row
    batch: Batch  # of a step
    data: Batch  # of the end of a task
    tested: Batch  # of an evaluation
    name: str  # of the task that they are of


class _Parts(NamedTuple):
    """The jitted functions of a program."""

    start: Any  # (params, frozen, example) -> state
    step: Any  # (state, frozen, key, number, num_steps, batch) -> (state, info)
    end_task: Any  # (state, frozen, key, task) -> state
    read: Any  # (state, frozen) -> the learners, in the order of their names
    total: Any  # (params, frozen, batch) -> (sums of each row metric, weight)
    names: tuple[str, ...]  # of the learners, the default one first: jit sorts a dict


class Program(NamedTuple):
    """The functions of a run on the device; each is compiled when it is first used."""

    parts: _Parts
    frozen: PyTree
    example: Batch
    sharding: ShardingPlan | None
    metrics: tuple[RowMetric | TaskMetric, ...]
    metric_names: tuple[str, ...]
    num_tested: int  # rows of a batch in an evaluation

    def start(self, params: Params) -> MethodState:
        """The first state. Copies: a step donates its buffers, the caller keeps params."""
        placed = shard(self.sharding, params, "params/")
        return jax.tree.map(
            jnp.copy, self.parts.start(placed, self.frozen, self.example)
        )

    def step(self, state: MethodState, key, number, num_steps, batch) -> Any:
        """``(state, info)`` after step ``number`` of a task."""
        return self.parts.step(state, self.frozen, key, number, num_steps, batch)

    def end_task(self, state: MethodState, key: Key, task: Batch) -> MethodState:
        """The state after the end of a task."""
        return self.parts.end_task(state, self.frozen, key, task)

    def read(self, state: MethodState) -> dict[str, PyTree]:
        """The learners, the default one first."""
        learners = self.parts.read(state, self.frozen)
        return dict(zip(self.parts.names, learners, strict=True))

    def total(self, params: PyTree, batch: Batch) -> Any:
        """The sums of each row metric on a batch, and its weight."""
        return self.parts.total(params, self.frozen, batch)


class _Known(NamedTuple):
    """Functions of an earlier run, and what they were compiled from."""

    programs: tuple  # of each function its StableHLO, hashed, and its trees
    sharding: ShardingPlan | None
    parts: _Parts


#: The latest first.
_KNOWN: list[_Known] = []
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
      params: for shapes and dtypes, as are ``rows`` and the ``key``.
      frozen: placed by :func:`shard`; passed to every call.
      rows: what the functions will get.
      key: of the run.
      metrics: computed on test rows.
      on_non_finite: with ``skip`` a step whose loss, gradient or parameters are not
        finite does not change the state.
      sharding: of inputs and outputs.
    """
    wanted = f"build must be a function of frozen, got {shown(build)}"
    require(callable(build), "learn", f"{wanted}; give one that makes the method")
    metrics = listed("learn", metrics)
    row_metrics = [metric for metric in metrics if isinstance(metric, RowMetric)]

    inputs = params, frozen, rows.example
    totals = [metric.rows for metric in row_metrics]
    parts = _jit_parts(build, totals, on_non_finite, sharding, inputs, rows.name)
    names = _metric_names(parts, metrics, inputs, rows)
    parts = _compiled_before(parts, inputs, rows, key, sharding, bool(metrics))

    num_tested = rows.tested.weight.shape[0]
    return Program(parts, frozen, rows.example, sharding, metrics, names, num_tested)


def _metric_names(parts, metrics, inputs, rows: Rows) -> tuple[str, ...]:
    """The names of all metrics, known by tracing."""
    if not metrics:
        return ()
    state = parts.start.eval_shape(*inputs)
    first = parts.read.eval_shape(state, inputs[1])[0]
    with _explained("metrics", rows.tested, rows.name):
        found, _ = parts.total.eval_shape(first, inputs[1], rows.tested)
    names, sums = [], iter(found)
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
    with _explained("step", rows.batch, rows.name):
        given = state, frozen, key, number, number, rows.batch
        check_state("step", state, parts.step.eval_shape(*given)[0])
        yield parts.step.lower(*given)
    with _explained("end_task", rows.data, rows.name):
        given = state, frozen, key, rows.data
        check_state("end_task", state, parts.end_task.eval_shape(*given))
        yield parts.end_task.lower(*given)
    yield parts.read.lower(state, frozen)
    for learner in parts.read.eval_shape(state, frozen) if measured else ():
        with _explained("metrics", rows.tested, rows.name):
            yield parts.total.lower(learner, frozen, rows.tested)


def check_state(where: str, before: MethodState, after: MethodState) -> None:
    """Refuse a state that changes its structure, shapes or dtypes, naming the part."""
    old, new = (leaf_specs(named_leaves(state)) for state in (before, after))
    for path in differing(old, new):
        msg = (
            f"learn: {where} must keep the form of the state, got "
            f"{new.get(path, 'nothing')} at {path.lstrip('.')}, "
            f"{old.get(path, 'nothing')} before; let that part return a state like the "
            "one of its init."
        )
        raise InputError(msg)


def _jit_parts(
    build: Build,
    totals: Sequence[Callable],
    policy: Policy,
    sharding: ShardingPlan | None,
    inputs: tuple,
    name: str,
) -> _Parts:
    """Jit the functions of the method, and the sums of metrics."""
    params, frozen, example = inputs

    def start(params, frozen, example):
        return build(frozen).init(params, example)

    def step(state, frozen, key, number, num_steps, batch):
        state, key = with_num_steps(state, num_steps), jax.random.fold_in(key, number)
        with _mesh_of(sharding):
            after, info = build(frozen).step(key, state, batch)
        finite = info.finite & jnp.isfinite(info.metrics["grad_norm"])
        for leaf in jax.tree.leaves(after.params):
            finite &= jnp.all(jnp.isfinite(leaf))
        if policy == "skip":
            keep = lambda new, old: jnp.where(finite, new, old)
            kept = jax.tree.map(keep, after, state)
            after = kept._replace(progress=after.progress)  # the task goes on
        return after, info._replace(finite=finite)

    def end_task(state, frozen, key, task):
        with _mesh_of(sharding):
            return build(frozen).end_task(key, state, task)

    def read(state, frozen):
        return tuple(build(frozen).learners(state).values())

    def total(params, frozen, batch):
        sums = [weighted_sums(rows(params, frozen, batch), batch) for rows in totals]
        return sums, jnp.sum(batch.weight)

    names: list[str] = []
    with _explained("build or the method's init", example, name):
        state = jax.eval_shape(start, *inputs)
        read_names = lambda state, frozen: names.extend(build(frozen).learners(state))
        jax.eval_shape(read_names, state, frozen)
    if sharding is None:
        jit = lambda function, inputs, outputs, **donate: jax.jit(function, **donate)
        weights = base = states = rows = same = None
    else:
        jit = lambda function, inputs, outputs, **donate: jax.jit(
            function, in_shardings=inputs, out_shardings=outputs, **donate
        )
        weights = shardings(sharding, params, prefix="params/")
        base = shardings(sharding, frozen, prefix="frozen/")
        states = shardings(sharding, state)
        rows, same = batch_sharding(sharding), replicated(sharding)
    stepped = states, base, same, same, same, rows
    return _Parts(
        jit(start, (weights, base, same), states),
        jit(step, stepped, (states, same), donate_argnums=0),
        jit(end_task, (states, base, same, rows), states, donate_argnums=0),
        jit(read, (states, base), None),
        jit(total, (None, base, rows), same),
        tuple(names),
    )


def _mesh_of(sharding: ShardingPlan | None) -> AbstractContextManager:
    """Where a method splits replayed rows: see :func:`jaxcl.sharding.split_rows`."""
    if sharding is None:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh)


def shard(sharding: ShardingPlan | None, tree: PyTree, prefix: str) -> PyTree:
    """Arrays on the devices by the plan's rule, with prefixed paths.

    Arrays with this sharding are not moved. From the host they would be copied per call.
    """
    if sharding is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, shardings(sharding, tree, prefix=prefix))


@contextmanager
def _explained(part: str, batch: Batch, name: str) -> Iterator[None]:
    """Say what was traced on which rows: in one line if shapes differ, else in a note."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        given = f"{row_format(batch)} in batches of {num_rows(batch)}"
        is_shape = re.search(r"\bshapes?\b", str(error))
        if is_shape and isinstance(error, TypeError | ValueError):
            msg = (
                f"learn: the rows of {name}, {given}, do not fit in {part} "
                f"({reason_of(error, 300)}); give rows and network the same shapes."
            )
            raise InputError(msg) from error
        error.add_note(f"learn: in {part}, on {given}, before the first step.")
        raise
