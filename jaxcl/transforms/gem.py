"""GEM: the nearest gradient that points uphill for no remembered task."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from jaxcl.errors import check_number
from jaxcl.transforms._perturb import (
    check_update,
    next_count,
    transformation,
)
from jaxcl.transforms.agem import ProjectionState, untouched
from jaxcl.tree import norm, safe_divide, wide


def gem(margin: ScalarLike = 0.0) -> optax.GradientTransformationExtraArgs:
    r"""Project the gradient on the cone that no remembered task objects to.

    .. math::
        g' = \arg\min_{\tilde g} \tfrac12 \|\tilde g - g\|^2
        \quad\text{s.t.}\quad \langle \tilde g, g_k\rangle \ge 0 \;\;\forall k

    solved exactly in its dual, ``T`` numbers :math:`v \ge 0` with :math:`g' = g + G^T
    v`. ``update(grads, state, params, *, task_grad_fn)`` asks for ``G``: gradients with
    a leading axis ``[T]``, one row per task. Rows of zeros, those of tasks not seen
    yet, are inert. A gradient that breaks no constraint is left as it is.

    With a margin, :math:`v_k \ge margin` wherever a constraint was broken: the gradient
    is first bent by ``margin`` times the sum of all rows, then projected. This favours
    backward transfer and keeps every constraint, as the authors' code does; the paper's
    text adds the margin to the optimal ``v``, which may break one.

    Constraints hold to about 1e-6 of the lengths involved. Tasks whose gradients are
    parallel or opposite to within a thousandth cannot be told apart in float32 inner
    products; there the optimum is approximate.

    Args:
      margin: at least 0, in units of gradient per gradient (the authors use 0.5).

    Raises:
      ValueError: if ``margin`` is known to be negative or not finite, if an update
        lacks ``params`` or ``task_grad_fn``, or if that returns no leading task axis.

    Cost: one gradient per task and step, memory for ``T`` gradients, two products with
    them, and a ``T x T`` solve per constraint that binds. State:
    :class:`ProjectionState`.

    Reference: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equations 8 to 11.
    """
    check_number("gem", margin=margin)

    def update(grads, state, params=None, *, task_grad_fn: Any = None, **ignored):
        del ignored
        check_update("gem", params, task_grad_fn=task_grad_fn)
        rows = task_gradients(task_grad_fn(params), grads)
        norms = jax.vmap(norm)(rows)
        scale = norm(grads)
        # Rows and gradient of unit length: one tolerance fits every scale.
        unit = jax.vmap(shrink)(rows, norms)
        gram = products(unit, unit)
        slope = over_rows(unit, shrink(grads, scale))
        broken = slope < -ROUNDING
        bent = margin * safe_divide(norms, scale)
        extra = nonnegative_minimum(gram, slope + apply(gram, bent))
        weights = jnp.where(jnp.any(broken), bent + extra, 0.0)
        moved = jnp.sqrt(jnp.maximum(jnp.vdot(weights, apply(gram, weights)), 0.0))
        after = ProjectionState(
            next_count(state.count),
            jnp.sum(broken).astype(jnp.int32),
            moved.astype(jnp.float32),
        )
        return add_rows(grads, scale * weights, unit), after

    return transformation(untouched, update)


#: Inner products of unit vectors below this are rounding, not conflict.
ROUNDING = 1e-7


def task_gradients(rows, grads):
    """Gradients of all tasks, checked to be ``grads`` with one more axis in front."""
    leading = {leaf.shape[:1] for leaf in jax.tree.leaves(rows)}
    shapes = jax.tree.map(lambda leaf: leaf.shape[1:], rows)
    if (
        len(leading) > 1
        or (0,) in leading
        or shapes != jax.tree.map(lambda leaf: leaf.shape, grads)
    ):
        msg = (
            "gem: task_grad_fn must return gradients with a leading task axis [T], got "
            f"{jax.tree.map(lambda leaf: leaf.shape, rows)}; stack them, zeros for tasks "
            "not seen yet."
        )
        raise ValueError(msg)
    return rows


def shrink(tree, scale):
    """``tree / norm``, zero for zero."""
    return jax.tree.map(lambda leaf: safe_divide(wide(leaf), scale), tree)


def total(terms):
    """The sum of all leaves of a tree."""
    return sum(jax.tree.leaves(terms), jnp.zeros(()))


def exact(subscripts, a, b):
    """A product in full precision, also where hardware would round the factors."""
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST)


def products(a, b):
    """Inner products of all rows of two trees.  Returns [T, T]."""
    flat = lambda leaf: leaf.reshape(leaf.shape[0], -1)
    return total(jax.tree.map(lambda x, y: exact("ip,jp->ij", flat(x), flat(y)), a, b))


def over_rows(rows, tree):
    """The inner product of a tree with every row.  Returns [T]."""
    flat = lambda leaf: leaf.reshape(leaf.shape[0], -1)
    one = lambda x, y: exact("ip,p->i", flat(x), y.reshape(-1))
    return total(jax.tree.map(one, rows, tree))


def apply(matrix, vector):
    """A small matrix times a vector, in full precision."""
    return exact("ij,j->i", matrix, vector)


def add_rows(tree, weights, rows):
    """``tree + sum_k weights[k] * rows[k]``, in the dtypes of ``tree``."""
    one = lambda y, x: (wide(y) + exact("i,i...->...", weights, x)).astype(y.dtype)
    return jax.tree.map(one, tree, rows)


class Search(NamedTuple):
    """Where the active-set search stands."""

    weights: Float[Array, " T"]  # feasible: never negative, zero outside `free`
    free: Bool[Array, " T"]  # constraints held with equality, whose weight may vary
    rounds: Int[Array, ""]
    done: Bool[Array, ""]


def nonnegative_minimum(
    gram: Float[Array, "T T"], slope: Float[Array, " T"]
) -> Float[Array, " T"]:
    """The ``v >= 0`` that minimises ``v K v / 2 + b v``, by an active-set search.

    Lawson and Hanson's method (Solving Least Squares Problems, 1974, chapter 23): free
    the most broken constraint, solve for the free ones, and step back to the boundary
    whenever one turns negative. It ends after about as many rounds as constraints bind,
    each a ``T x T`` solve; ``4 T + 8`` rounds at most. Rows that depend on each other
    are fine. The derivative is that of the solution with the same binding constraints.

    Args:
      gram: ``K``, positive semidefinite with ones (or zeros) on its diagonal.
      slope: ``b``, of order one.

    Returns:
      ``v``, with ``K v + b >= 0`` and ``v (K v + b) = 0`` to rounding.
    """
    size = slope.shape[0]
    tolerance = 8 * jnp.finfo(gram.dtype).eps
    fixed_gram, fixed_slope = jax.lax.stop_gradient((gram, slope))

    def one_round(search):
        trial = solve_free(fixed_gram, fixed_slope, search.free)
        blocked = search.free & (trial <= 0)
        # The largest step towards the trial that keeps every weight at or above zero.
        share = safe_divide(search.weights, search.weights - trial)
        step = jnp.min(jnp.where(blocked, share, 1.0))
        weights = search.weights + step * (trial - search.weights)
        stuck = jnp.any(blocked)
        free = jnp.where(stuck, search.free & ~(blocked & (share <= step)), search.free)
        weights = jnp.where(free, jnp.maximum(weights, 0.0), 0.0)

        rest = jnp.where(free, 0.0, apply(fixed_gram, weights) + fixed_slope)
        worst = jnp.argmin(rest)
        broken = ~stuck & (rest[worst] < -tolerance)
        free = free.at[worst].set(free[worst] | broken)
        return Search(weights, free, search.rounds + 1, ~stuck & ~broken)

    # Made of the slope, so that it varies over devices where the slope does.
    none = slope > jnp.inf
    zero = jnp.zeros((), jnp.int32)
    start = Search(jnp.zeros_like(slope), none, zero, jnp.any(none))
    found = jax.lax.while_loop(
        lambda search: ~search.done & (search.rounds < 4 * size + 8), one_round, start
    )
    free = jax.lax.stop_gradient(found.free)
    return jnp.maximum(solve_free(gram, slope, free), 0.0)


def solve_free(gram, slope, free):
    """``K v = -b`` on the free rows, zero elsewhere; least squares if rows depend.

    A ridge above rounding makes the inverse safe, and refinement takes its bias out
    again, except along directions that the rows do not span.
    """
    both = free[:, None] & free[None, :]
    inside = jnp.where(both, gram, 0.0)
    ridge = 16 * jnp.finfo(gram.dtype).eps * gram.shape[0]
    inverse = jnp.linalg.inv(inside + jnp.diag(jnp.where(free, ridge, 1.0)))
    want = jnp.where(free, -slope, 0.0)

    def refine(weights, _):
        return weights + apply(inverse, want - apply(inside, weights)), None

    weights, _ = jax.lax.scan(refine, jnp.zeros_like(slope), length=8)
    return jnp.where(free, weights, 0.0)


__all__ = ["ProjectionState", "gem"]
