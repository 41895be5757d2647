"""Sums of squared per-example gradients, without the gradients for dense layers.

For a dense layer ``z = x W`` of one example the gradient is an outer product, ``x d^T``
with ``d = dL/dz``. So the sum of its squares over examples is one matrix product,

    sum_b w_b (x_b d_b^T)^2 = (x^2)^T (w d^2),

and the ``[b, *W.shape]`` array of per-example gradients is not needed. This works for any
model: in its program (the jaxpr of ONE example), every parameter leaf that is used exactly
once, as an operand of a plain vector-matrix product, is found, and a zero is added to that
product's result; the derivative with respect to the zero is ``d``. For all other leaves
(biases, convolutions, weights that are shared or applied to several positions of one
example) the ordinary gradient under ``vmap`` is used. The numbers are the same either way.

Source: Goodfellow 2015, "Efficient per-example gradient computations",
arXiv:1510.01799, section 5, for the outer product; here for squares of entries.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import Array, Float, PyTree

from jaxcl.tree import wide
from jaxcl.typing import Params

#: ``(params, row) -> (values [m], weights [m])``; the weights are not differentiated.
WeightedValues = Callable[
    [Params, PyTree], tuple[Float[Array, " m"], Float[Array, " m"]]
]

_VIEWS = {
    primitives.transpose_p,
    primitives.reshape_p,
    primitives.convert_element_type_p,
}


class Site(NamedTuple):
    """The only vector-matrix product in which a parameter leaf is used."""

    leaf: int  # which leaf of the parameters
    equation: int  # which equation of the program
    side: int  # whether the leaf is the left (0) or right (1) operand
    views: tuple[Any, ...]  # transposes and reshapes between leaf and operand


class Program(NamedTuple):
    """One example's values as a flat list of equations, with the sites found in it."""

    jaxpr: Any  # inputs: leaves of the parameters, then leaves of the row
    sites: tuple[Site, ...]
    num_values: int  # m
    num_plain: int  # entries of the leaves that need the ordinary gradient


def read_program(function: WeightedValues, params: Params, rows: PyTree) -> Program:
    """Trace ``function`` on one row and find the leaves that allow the shortcut.

    Args:
      function: ``(params, row) -> (values [m], weights [m])`` for ONE row.
      params: for shapes only.
      rows: leaves ``[n, ...]``, for shapes only.

    """
    leaves, tree = jax.tree.flatten(params)
    row, row_tree = jax.tree.flatten(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rows
        )
    )

    def flat(*arguments):
        split = len(leaves)
        return function(
            jax.tree.unflatten(tree, arguments[:split]),
            jax.tree.unflatten(row_tree, arguments[split:]),
        )

    nested = jax.make_jaxpr(flat)(*leaves, *row)
    num_values = nested.jaxpr.outvars[0].aval.shape[0]
    jaxpr = jax.make_jaxpr(lambda *args: _evaluate(nested, args, {})[0])(*leaves, *row)
    sites = _find_sites(jaxpr.jaxpr, len(leaves))
    dense = {site.leaf for site in sites}
    num_plain = sum(leaf.size for i, leaf in enumerate(leaves) if i not in dense)
    return Program(jaxpr, sites, num_values, num_plain)


def sum_squared_gradients(
    program: Program,
    params: Params,
    rows: PyTree,
    *,
    of: Callable[[Array], Array] = jnp.square,
) -> Params:
    r"""Sum over rows and values of the weighted squared gradients.

    .. math:: \sum_b \sum_m w_{bm} \, (\partial v_{bm} / \partial \theta)^2

    Args:
      program: from :func:`read_program`, for rows of these shapes.
      params: where to differentiate.
      rows: leaves ``[b, ...]``.
      of: another function than the square for which ``f(x d) = f(x) f(d)``: ``jnp.abs``
        gives the sum of absolute gradients.

    Returns:
      A tree like ``params``, in float32 or better. Memory: ``b * m`` gradients of the
      leaves without shortcut, and the activations of the others.
    """
    leaves, tree = jax.tree.flatten(params)
    dense = {site.leaf for site in program.sites}
    plain = {i: leaf for i, leaf in enumerate(leaves) if i not in dense}
    results = [eqn.outvars[0].aval for eqn in program.jaxpr.jaxpr.eqns]
    zeros = {
        site.equation: jnp.zeros(
            results[site.equation].shape, results[site.equation].dtype
        )
        for site in program.sites
    }

    def squares_of_row(row):
        def values(plain, taps):
            arguments = [plain.get(i, leaf) for i, leaf in enumerate(leaves)]
            (values, weights), operands = _evaluate(
                program.jaxpr, (*arguments, *jax.tree.leaves(row)), taps
            )
            inputs = {s.leaf: operands[s.equation][1 - s.side] for s in program.sites}
            return values, (weights, inputs)

        values, pullback, (weights, inputs) = jax.vjp(
            values, plain, zeros, has_aux=True
        )
        grads = jax.vmap(pullback)(jnp.eye(program.num_values, dtype=values.dtype))
        weigh = lambda grad: jnp.tensordot(weights, of(wide(grad)), axes=1)
        return *jax.tree.map(weigh, grads), inputs

    plain_squares, deltas, inputs = jax.vmap(squares_of_row)(rows)
    squares = {i: jnp.sum(square, axis=0) for i, square in plain_squares.items()}
    for site in program.sites:
        squares[site.leaf] = _outer(
            site,
            program.jaxpr.jaxpr.eqns[site.equation],
            inputs[site.leaf],
            deltas[site.equation],
            leaves[site.leaf],
            of,
        )
    return jax.tree.unflatten(tree, [squares[i] for i in range(len(leaves))])


def _outer(site, eqn, inputs, deltas, leaf, of):
    """``(x^2)^T d^2`` [leaf.shape], given ``x`` and ``d^2``, each ``[b, ...]``."""
    contracted, _ = eqn.params["dimension_numbers"]
    own, other = contracted[site.side], contracted[1 - site.side]
    operand = eqn.invars[site.side].aval.shape
    free = tuple(i for i in range(len(operand)) if i not in own)
    # The other operand's free axes have size one, so reshaping drops them.
    moved = jnp.moveaxis(inputs, [i + 1 for i in other], range(1, len(other) + 1))
    x = moved.reshape(len(inputs), *(operand[i] for i in own))
    d = deltas.reshape(len(deltas), *(operand[i] for i in free))
    square = jnp.tensordot(
        of(wide(x)), d, axes=(0, 0), precision=jax.lax.Precision.HIGHEST
    )
    square = jnp.transpose(square, np.argsort(own + free).tolist())

    def view(leaf):
        for eqn in site.views:
            leaf = eqn.primitive.bind(leaf, **eqn.params)
        return leaf

    (back,) = jax.linear_transpose(
        view, jax.ShapeDtypeStruct(leaf.shape, square.dtype)
    )(square)
    return back


def _evaluate(program, arguments, taps):
    """Run a jaxpr with nested jits inlined; add ``taps[i]`` to equation i's result.

    Returns:
      The results, and the operands of every tapped equation.
    """
    jaxpr, operands = program.jaxpr, {}
    variables = (*jaxpr.constvars, *jaxpr.invars)
    memory = dict(zip(variables, (*program.consts, *arguments), strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else memory[atom]
    for i, eqn in enumerate(jaxpr.eqns):
        values = [read(atom) for atom in eqn.invars]
        if eqn.primitive is primitives.jit_p:
            results, _ = _evaluate(eqn.params["jaxpr"], values, {})
        else:
            results = eqn.primitive.bind(
                *values, **eqn.primitive.get_bind_params(eqn.params)
            )
            results = results if eqn.primitive.multiple_results else [results]
        if i in taps:
            operands[i], results = values, [results[0] + taps[i]]
        memory.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars], operands


def _find_sites(jaxpr, num_leaves):
    """The leaves whose only use is a plain vector-matrix product."""
    readers = defaultdict(list)
    for i, eqn in enumerate(jaxpr.eqns):
        for side, atom in enumerate(eqn.invars):
            if not isinstance(atom, core.Literal):
                readers[atom].append((i, side))
    for atom in jaxpr.outvars:
        if not isinstance(atom, core.Literal):
            readers[atom].append((None, 0))

    def follow(leaf, variable, views):
        if len(readers[variable]) != 1:
            return None
        ((i, side),) = readers[variable]
        if i is None:
            return None
        eqn = jaxpr.eqns[i]
        if eqn.primitive in _VIEWS:
            moves = eqn.primitive is not primitives.convert_element_type_p
            return follow(leaf, eqn.outvars[0], (*views, eqn) if moves else views)
        return Site(leaf, i, side, views) if _is_plain_product(eqn, side) else None

    found = (follow(i, jaxpr.invars[i], ()) for i in range(num_leaves))
    return tuple(site for site in found if site)


def _is_plain_product(eqn, side):
    if eqn.primitive is not primitives.dot_general_p:
        return False
    contracted, batched = eqn.params["dimension_numbers"]
    shape = eqn.invars[1 - side].aval.shape
    free = [d for i, d in enumerate(shape) if i not in contracted[1 - side]]
    return not batched[0] and all(d == 1 for d in free)
