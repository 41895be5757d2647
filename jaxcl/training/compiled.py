"""The functions of the host loop, compiled: on one device, or placed on a mesh."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxcl.errors import check_function, check_kind, shown
from jaxcl.sharding import ShardingPlan, batch_sharding, replicated, shardings
from jaxcl.typing import Batch, Key, Method, MethodState, Params

#: ``(frozen) -> method``: called while tracing, so that nothing is baked in.
Build = Callable[[PyTree], Method]

#: ``(params, frozen, batch) -> [b]``: how well each row is answered, such as 0 or 1.
Score = Callable[[Params, PyTree, Batch], Float[Array, " b"]]

#: What becomes of a step that is not finite.
Policy = Literal["stop", "skip", "continue"]


class Program(NamedTuple):
    """What a run does on the device; each part is compiled when it is first used.

    ``check_shapes`` traces every part that takes rows, in the shapes it will get, and keeps
    what it traced: what is wrong with them shows before the first step.
    """

    start: Callable[[Params], MethodState]
    step: Callable[..., Any]  # (state, key, number, batch) -> (state, info)
    end_task: Callable[..., MethodState]  # (state, key, task) -> state
    read: Callable[[MethodState], Params]
    total: Callable[..., Any] | None  # (params, batch) -> sums of score and weight
    check_shapes: Callable[
        [Key, Batch, Batch, Batch], None
    ]  # (key, batch, task, tested)


def compile_program(
    build: Build,
    params: Params,
    frozen: PyTree,
    example: Batch,
    *,
    score: Score | None = None,
    on_non_finite: Policy = "stop",
    sharding: ShardingPlan | None = None,
) -> Program:
    """Jit the parts of a run. The state is donated to each step.

    Args:
      build: makes the method.
      params: in their shapes.
      frozen: where :func:`shard` put it; handed to every call.
      example: a batch of one row, in its shapes.
      score: what is summed over test rows; nothing if absent.
      on_non_finite: with ``skip`` a step whose loss, gradient or parameters are not
        finite leaves the state as it was.
      sharding: where everything lives; inputs and outputs keep their places.

    Raises:
      ValueError: if ``build`` or ``score`` takes or returns something else.
    """
    check_function("learn", "frozen", build=build)
    if score is not None:
        check_function("learn", "params, frozen, batch", score=score)

    def made(frozen):
        method = build(frozen)
        remedy = "let build return what make_method returns"
        check_kind("learn", Method, remedy, method=method)
        return method

    def start(params, frozen):
        return made(frozen).init(params, example)

    def step(state, frozen, key, number, batch):
        after, info = made(frozen).step(jax.random.fold_in(key, number), state, batch)
        finite = info.finite & jnp.isfinite(info.grad_norm)
        for leaf in jax.tree.leaves(after.params):
            finite &= jnp.all(jnp.isfinite(leaf))
        if on_non_finite == "skip":
            keep = lambda new, old: jnp.where(finite, new, old)
            after = jax.tree.map(keep, after, state)
        return after, info._replace(finite=finite)

    def end_task(state, frozen, key, task):
        return made(frozen).end_task(key, state, task)

    def read(state, frozen):
        return made(frozen).eval_params(state)

    def total(params, frozen, batch):
        assert score is not None
        scores = score(params, frozen, batch)
        array = isinstance(scores, jax.Array)
        real = array and not jnp.iscomplexobj(scores)
        if not real or scores.shape != batch.weight.shape:
            came = f"{scores.dtype}{list(scores.shape)}" if array else shown(scores)
            msg = (
                "learn: score must return a JAX array with a real number for each row, "
                f"shape {list(batch.weight.shape)}, got {came}; leave the mean to the "
                "loop."
            )
            raise ValueError(msg)
        return jnp.sum(scores * batch.weight), jnp.sum(batch.weight)

    with _noting("build or the method's init", example):
        state = jax.eval_shape(start, params, frozen)
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

    first = jit(start, (weights, base), states)
    next_ = jit(step, (states, base, same, same, rows), (states, same), donate=0)
    last = jit(end_task, (states, base, same, rows), states, donate=0)
    reading = jit(read, (states, base), None)
    sums = jit(total, (None, base, rows), same) if score else None

    def begin(params):
        # Copies: a step may take every buffer once, and the caller keeps `params`.
        return jax.tree.map(jnp.copy, first(shard(sharding, params, "params/"), frozen))

    def check_shapes(key, batch, task, tested):
        key, number = jax.eval_shape(lambda: key), np.int32(0)
        state = first.eval_shape(params, frozen)
        with _noting("step", batch):
            next_.eval_shape(state, frozen, key, number, batch)
        with _noting("end_task", task):
            last.eval_shape(state, frozen, key, task)
        if sums is not None:
            with _noting("score", tested):
                sums.eval_shape(reading.eval_shape(state, frozen), frozen, tested)

    return Program(
        begin,
        lambda state, key, number, batch: next_(state, frozen, key, number, batch),
        lambda state, key, task: last(state, frozen, key, task),
        lambda state: reading(state, frozen),
        (lambda params, batch: sums(params, frozen, batch)) if sums else None,
        check_shapes,
    )


def shard(sharding: ShardingPlan | None, tree: PyTree, prefix: str) -> PyTree:
    """Arrays on the devices by the layout's rule, which sees their paths so prefixed.

    What is there already is not moved. On the host they would travel with every call.
    """
    if sharding is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, shardings(sharding, tree, prefix=prefix))


@contextmanager
def _noting(part: str, batch: Batch) -> Iterator[None]:
    """Add to an error what was traced, and on which rows."""
    try:
        yield
    except Exception as error:
        kind = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
        x, y = jax.tree.map(kind, (batch.x, batch.y))
        error.add_note(f"learn: in {part}, on x {x} and y {y}, before the first step.")
        raise


__all__ = ["Build", "Policy", "Program", "Score", "compile_program", "shard"]
