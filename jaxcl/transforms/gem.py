"""GEM: the nearest gradient that, to first order, raises the loss of no past task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from jaxcl.errors import check_number, require
from jaxcl.transforms._perturb import next_count, transformation
from jaxcl.transforms.agem import ProjectionState, untouched
from jaxcl.tree import norm, safe_divide, wide


def gem(margin: ScalarLike = 0.0) -> optax.GradientTransformationExtraArgs:
    r"""Project the gradient on the cone of directions that raise no past task's loss.

    .. math::
        g' = \arg\min_{\tilde g} \tfrac12 \|\tilde g - g\|^2
        \quad\text{s.t.}\quad \langle \tilde g, g_k\rangle \ge 0 \;\;\forall k

    solved exactly in its dual, ``T`` numbers :math:`v \ge 0` with :math:`g' = g + G^T
    v`. ``update(grads, state, params, *, task_grad_fn)`` evaluates ``G``: gradients with
    a leading axis ``[T]``, one row per task. Rows of zeros (tasks not seen yet) have no
    effect. A gradient that violates no constraint is unchanged.

    With a margin, :math:`v_k \ge margin` for all ``k`` if a constraint is violated:
    ``margin`` times the sum of all rows is added to the gradient, which is then
    projected. This favours backward transfer and satisfies every constraint, as the
    authors' code does; the paper's text adds the margin to the optimal ``v``, which may
    violate one.

    In float32 constraints hold to about 1e-6 of the lengths involved, also where rows are
    repeated or linearly dependent. Where rows are nearly dependent (opposite within a
    hundredth) they hold to 1e-4, because rounding the rows moves the optimum itself, and
    ``|g' - g|`` is at most 0.2 % of ``|g|`` above the least.

    Args:
      margin: at least 0, in units of gradient per gradient (the authors use 0.5).

    Cost: memory for ``T`` gradients, two products with them, and a ``T x T`` solve per
    active constraint; rows that are nearly dependent and oppose ``g`` cost up to 16 more
    products. State: :class:`ProjectionState`.

    Reference: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equations 8 to 11.
    """
    check_number("gem", margin=margin)

    def update(grads, state, params, *, task_grad_fn, **_):
        rows = task_grad_fn(params)
        wanted = jax.tree.map(jnp.shape, grads)
        came = jax.tree.map(lambda leaf: leaf.shape[1:], rows)
        message = (
            f"task_grad_fn must return a row [T] per task of {wanted}, got {came}; "
            "stack the tasks' gradients, zeros for tasks not seen yet"
        )
        require(came == wanted, "gem", message)
        norms = jax.vmap(norm)(rows)
        scale = norm(grads)
        # Rows and gradient of unit length: one tolerance fits every scale.
        unit = jax.vmap(_shrink)(rows, norms)
        gram = _products(unit)
        slope = _over_rows(unit, _shrink(grads, scale))
        broken = slope < -_ROUNDING
        conflict = jnp.any(broken)
        least = margin * safe_divide(norms, scale)
        least = jnp.where(conflict, least, 0.0).astype(slope.dtype)
        slope = jnp.where(conflict, slope, 0.0)
        projected = _project(grads, scale, unit, gram, slope, least)
        moved = norm(jax.tree.map(lambda new, old: new - wide(old), projected, grads))
        after = ProjectionState(
            next_count(state.count),
            jnp.sum(broken).astype(jnp.int32),
            safe_divide(moved, scale).astype(jnp.float32),
        )
        narrow = lambda new, old: new.astype(old.dtype)
        return jax.tree.map(narrow, projected, grads), after

    return transformation(untouched, update)


#: Inner products of unit vectors below this are rounding, not conflict.
_ROUNDING = 1e-7


def _shrink(tree, scale):
    """``tree / norm``, zero for zero."""
    return jax.tree.map(lambda leaf: safe_divide(wide(leaf), scale), tree)


def _exact(subscripts, a, b):
    """A product in full precision, also where hardware would round the factors."""
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST)


def _summed(product, a, b):
    """The sum of ``product(x, y)`` over the leaves of two trees."""
    parts = jax.tree.leaves(jax.tree.map(product, a, b))
    return sum(parts, jnp.zeros((), jnp.float32))


def _products(rows):
    """Inner products of all rows of a tree, [T, T]."""
    flat = lambda leaf: leaf.reshape(leaf.shape[0], -1)
    product = lambda x, y: _exact("ip,jp->ij", flat(x), flat(y))
    return _summed(product, rows, rows)


def _over_rows(rows, tree):
    """The inner product of a tree with every row, [T]."""
    product = lambda x, y: _exact("ip,p->i", x.reshape(len(x), -1), y.reshape(-1))
    return _summed(product, rows, tree)


def _apply(matrix, vector):
    """A small matrix times a vector, in full precision."""
    return _exact("ij,j->i", matrix, vector)


def _add_rows(tree, weights, rows):
    """``tree + sum_k weights[k] * rows[k]``, in the dtypes of ``tree``."""
    one = lambda y, x: (wide(y) + _exact("i,i...->...", weights, x)).astype(y.dtype)
    return jax.tree.map(one, tree, rows)


def _project(grads, scale, unit, gram, slope, least):
    """The feasible gradient nearest to ``g + scale * sum_k least[k] u_k``.

    Here ``scale`` is ``|g|``, the rows ``unit`` have length one or zero, ``gram`` [T, T]
    and ``slope`` [T] are their inner products with one another and with ``g / scale``
    (zeros leave ``g`` unchanged), and ``least`` [T] are lower bounds of the weights.

    Inner products give the slopes ``<u_k, g'> / scale`` to about ``eps`` times the sum of
    the weights. Where that is too coarse (rows that are nearly dependent and oppose ``g``
    have large weights), up to eight more passes over the rows measure the slopes of the
    current solution and solve for the remaining correction. Other gradients need none.

    The derivative is that of the solution with the same active constraints.
    """
    slope = slope + _apply(gram, least)
    fixed = jax.lax.stop_gradient((unit, gram, slope, scale, 1.0 + jnp.sum(least)))
    rows, products, start, length, reach = fixed
    solve = lambda slope, start: _nonnegative_minimum(products, slope, start, reach)
    weights, error = solve(start, jnp.zeros_like(start))
    newton = _solve_free(products, slope + _apply(gram, weights), weights > 0)
    chosen = _value_of(weights, weights + newton)
    near = _add_rows(jax.tree.map(wide, grads), scale * (least + chosen), unit)

    eps = jnp.finfo(gram.dtype).eps

    def correct(search):
        point, weights, _, passes = search
        slope = safe_divide(_over_rows(rows, point), length)
        found, error = solve(slope, weights)
        change = found - weights
        point = _add_rows(point, length * change, rows)
        error = jnp.maximum(error, eps * jnp.sum(jnp.abs(change)))
        return point, found, error, passes + 1

    def coarse(search):
        _, _, error, passes = search
        return (error > 16 * eps * reach) & (passes < 8)

    error = jnp.maximum(error, eps * jnp.sum(weights))
    first = jax.lax.stop_gradient(near), weights, error, jnp.zeros((), jnp.int32)
    point, *_ = jax.lax.while_loop(coarse, correct, first)
    return _value_of(point, near)


@jax.custom_jvp
def _value_of(value, slope):
    """``value``, with the derivative of ``slope``, which is computed for that alone."""
    del slope
    return value


@_value_of.defjvp
def _(arguments, changes):
    return arguments[0], changes[1]


class _Search(NamedTuple):
    """The state of the active-set search."""

    weights: Float[Array, " T"]  # never negative, zero outside `free`
    slope: Float[Array, " T"]  # of the objective, at `weights`
    free: Bool[Array, " T"]  # constraints held with equality, whose weight may vary
    refused: Bool[Array, " T"]  # freed without effect since the weights last changed
    best: Float[Array, " T"]  # the weights of least error so far
    error: Float[Array, ""]  # by how much `best` misses the optimality conditions
    rounds: Int[Array, ""]
    done: Bool[Array, ""]


def _nonnegative_minimum(gram, slope, start, reach):
    """The ``v >= 0`` [T] that minimises ``d K d / 2 + b d`` with ``d = v - start``.

    Lawson and Hanson's method (Solving Least Squares Problems, 1974, chapter 23): free
    the most violated constraint, solve for the free ones, and step back to the boundary
    whenever one turns negative. It ends after about as many rounds as there are active
    constraints, each a ``T x T`` solve; ``4 T + 8`` rounds at most.

    Where rows are linearly dependent, a constraint that the free ones satisfy already can
    look violated because of rounding. The solution then has a negative weight for it, and
    it is refused until the weights change. The best weights of the search are returned,
    so that rounding in a later round cannot spoil them, and their error: the largest
    ``-(K d + b)``, and ``|K d + b|`` where ``v`` is positive. ``reach`` is the magnitude
    of the numbers whose rounding error ``b`` has.
    """
    size = slope.shape[0]
    eps = jnp.finfo(gram.dtype).eps

    def one_round(search):
        trial = search.weights + _solve_free(gram, search.slope, search.free)
        blocked = search.free & (trial <= 0)
        # The largest step towards the trial that keeps every weight nonnegative.
        share = safe_divide(search.weights, search.weights - trial)
        step = jnp.min(jnp.where(blocked, share, 1.0))
        leaving = blocked & (share <= step)
        free = search.free & ~leaving
        weights = search.weights + step * (trial - search.weights)
        weights = jnp.where(free, jnp.maximum(weights, 0.0), 0.0)
        refused = jnp.where(step == 0, search.refused | leaving, False)

        change = weights - start
        here = slope + _apply(gram, change)
        error = jnp.max(jnp.where(free, jnp.abs(here), -here))
        solved = ~jnp.any(blocked)
        better = solved & (error < search.error)

        noise = 4 * eps * (_apply(jnp.abs(gram), jnp.abs(change)) + reach)
        rest = jnp.where(free | refused, 0.0, here + noise)
        worst = jnp.argmin(rest)
        ready = solved | (step == 0)
        broken = ready & (rest[worst] < 0)
        return _Search(
            weights,
            here,
            free.at[worst].set(free[worst] | broken),
            refused,
            jnp.where(better, weights, search.best),
            jnp.where(better, error, search.error),
            search.rounds + 1,
            ready & ~broken,
        )

    # Computed from the slope, so that it varies over devices where the slope does.
    none = slope > jnp.inf
    unknown = jnp.where(jnp.any(none), 0.0, jnp.full((), jnp.inf, slope.dtype))
    zero = jnp.zeros((), jnp.int32)
    first = _Search(start, slope, start > 0, none, start, unknown, zero, jnp.any(none))
    found = jax.lax.while_loop(
        lambda search: ~search.done & (search.rounds < 4 * size + 8), one_round, first
    )
    return found.best, found.error


def _solve_free(gram, slope, free):
    """``K d = -b`` on the free rows, zero elsewhere; least squares if rows depend.

    A ridge above rounding makes the inverse safe, and refinement removes its bias,
    except along directions that the rows do not span.
    """
    both = free[:, None] & free[None, :]
    inside = jnp.where(both, gram, 0.0)
    ridge = 2 * jnp.finfo(gram.dtype).eps * gram.shape[0]
    inverse = jnp.linalg.inv(inside + jnp.diag(jnp.where(free, ridge, 1.0)))
    want = jnp.where(free, -slope, 0.0)

    def refine(step, _):
        return step + _apply(inverse, want - _apply(inside, step)), None

    step, _ = jax.lax.scan(refine, jnp.zeros_like(slope), length=3)
    return jnp.where(free, step, 0.0)
