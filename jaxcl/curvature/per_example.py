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
from jaxtyping import Array, PyTree

from jaxcl.tree import wide
from jaxcl.typing import Params

#: ``(params, row) -> (values [m], weights [m])``; the weights are not differentiated.
WeightedValues = Callable[[Params, PyTree], tuple[Array, Array]]


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
    """Trace ``function`` on one of the rows and find the leaves that have a shortcut."""
    leaves = jax.tree.leaves(params)
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    nested = jax.make_jaxpr(function)(params, row)
    num_values = nested.jaxpr.outvars[0].aval.shape[0]
    inline = lambda *arguments: _evaluate(nested, arguments, {})[0]
    jaxpr = jax.make_jaxpr(inline)(*leaves, *jax.tree.leaves(row))
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

    In float32 or better. Memory: ``b * m`` gradients of the leaves without shortcut, and
    the activations of the others.

    Args:
      program: from :func:`read_program`, for rows of these shapes.
      params: where to differentiate.
      rows: leaves ``[b, ...]``.
      of: another function than the square for which ``f(x d) = f(x) f(d)``: ``jnp.abs``.
    """
    leaves, tree = jax.tree.flatten(params)
    dense = {site.leaf for site in program.sites}
    plain = {i: leaf for i, leaf in enumerate(leaves) if i not in dense}
    equations = program.jaxpr.jaxpr.eqns
    results = {s.equation: equations[s.equation].outvars[0].aval for s in program.sites}
    zeros = {i: jnp.zeros(aval.shape, aval.dtype) for i, aval in results.items()}

    def squares_of_row(row):
        def values(plain, taps):
            mixed = [plain.get(i, leaf) for i, leaf in enumerate(leaves)]
            arguments = (*mixed, *jax.tree.leaves(row))
            (values, weights), operands = _evaluate(program.jaxpr, arguments, taps)
            inputs = {s.leaf: operands[s.equation][1 - s.side] for s in program.sites}
            return values, (weights, inputs)

        found, pullback, (weights, inputs) = jax.vjp(values, plain, zeros, has_aux=True)
        grads = jax.vmap(pullback)(jnp.eye(program.num_values, dtype=found.dtype))
        weigh = lambda grad: jnp.tensordot(weights, of(wide(grad)), axes=1)
        return *jax.tree.map(weigh, grads), inputs

    plain_squares, deltas, inputs = jax.vmap(squares_of_row)(rows)
    squares = {i: jnp.sum(square, axis=0) for i, square in plain_squares.items()}
    for site in program.sites:
        x, d = of(wide(inputs[site.leaf])), deltas[site.equation]
        eqn = equations[site.equation]
        squares[site.leaf] = _outer(site, eqn, x, d, leaves[site.leaf])
    return jax.tree.unflatten(tree, [squares[i] for i in range(len(leaves))])


def _outer(site, eqn, inputs, deltas, leaf):
    """``(x^2)^T d^2`` [leaf.shape], given ``x^2`` and ``d^2``, each ``[b, ...]``."""
    contracted, _ = eqn.params["dimension_numbers"]
    own, other = contracted[site.side], contracted[1 - site.side]
    operand = eqn.invars[site.side].aval.shape
    free = tuple(i for i in range(len(operand)) if i not in own)
    # The other operand's free axes have size one, so reshaping drops them.
    moved = jnp.moveaxis(inputs, [i + 1 for i in other], range(1, len(other) + 1))
    x = moved.reshape(len(inputs), *(operand[i] for i in own))
    d = deltas.reshape(len(deltas), *(operand[i] for i in free))
    square = jnp.tensordot(x, d, axes=(0, 0), precision=jax.lax.Precision.HIGHEST)
    square = jnp.transpose(square, np.argsort(own + free).tolist())

    def view(leaf):
        for eqn in site.views:
            leaf = eqn.primitive.bind(leaf, **eqn.params)
        return leaf

    like = jax.ShapeDtypeStruct(leaf.shape, square.dtype)
    return jax.linear_transpose(view, like)(square)[0]


def _evaluate(program, arguments, taps):
    """Run a jaxpr, nested jits inlined, with ``taps[i]`` added to equation i's result.

    Returns the results, and the operands of every tapped equation.
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
            params = eqn.primitive.get_bind_params(eqn.params)
            results = eqn.primitive.bind(*values, **params)
            results = results if eqn.primitive.multiple_results else [results]
        if i in taps:
            operands[i], results = values, [results[0] + taps[i]]
        memory.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars], operands


def _find_sites(jaxpr, num_leaves):
    """The leaves whose only use is a plain vector-matrix product."""
    readers = defaultdict(list)
    reads = [
        (i, *read) for i, e in enumerate(jaxpr.eqns) for read in enumerate(e.invars)
    ]
    for i, side, atom in [*reads, *((None, 0, atom) for atom in jaxpr.outvars)]:
        if not isinstance(atom, core.Literal):
            readers[atom].append((i, side))

    def follow(leaf, variable, views):
        uses = readers[variable]
        if len(uses) != 1:
            return None
        i, side = uses[0]
        if i is None:  # a result of the program
            return None
        eqn = jaxpr.eqns[i]
        if eqn.primitive is primitives.convert_element_type_p:
            return follow(leaf, eqn.outvars[0], views)
        if eqn.primitive in (primitives.transpose_p, primitives.reshape_p):
            return follow(leaf, eqn.outvars[0], (*views, eqn))
        return Site(leaf, i, side, views) if _is_plain_product(eqn, side) else None

    found = (follow(i, jaxpr.invars[i], ()) for i in range(num_leaves))
    return tuple(site for site in found if site)


def _is_plain_product(eqn, side):
    """Whether it multiplies its operand of this side by one vector, without batch axes."""
    if eqn.primitive is not primitives.dot_general_p:
        return False
    contracted, batched = eqn.params["dimension_numbers"]
    shape = eqn.invars[1 - side].aval.shape
    free = [d for i, d in enumerate(shape) if i not in contracted[1 - side]]
    return not batched[0] and all(d == 1 for d in free)
