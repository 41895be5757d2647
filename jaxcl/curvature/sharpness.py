"""Sharpness of the loss at a point: rise within a radius, and largest curvature."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, ScalarLike

from jaxcl import tree
from jaxcl.errors import check_number, check_size
from jaxcl.typing import Key, Params


def sam_sharpness(
    loss: Callable[[Params], Float[Array, ""]], params: Params, rho: ScalarLike
) -> Float[Array, ""]:
    r"""Rise of the loss after a step of length ``rho`` along the gradient.

    .. math:: L(\theta + \rho\, g / \|g\|_2) - L(\theta)

    This is the first-order approximation of the worst loss within distance ``rho`` that
    SAM minimises, not that maximum itself.

    In units of the loss, with ``rho`` in units of the parameters; 0 where the gradient is
    zero. The loss is the mean over a fixed batch, without dropout.

    Reference: Foret et al. 2021, arXiv:2010.01412, equation 2.
    """
    check_number("sam_sharpness", rho=rho)
    params = jax.tree.map(tree.wide, params)  # bfloat16 would round the step away
    value, grads = jax.value_and_grad(loss)(params)
    # L(theta + rho g / |g|) - L(theta)
    uphill = tree.axpy(tree.safe_divide(rho, tree.norm(grads)), grads, params)
    return loss(uphill) - value


def top_eigenvalue(
    key: Key,
    loss: Callable[[Params], Float[Array, ""]],
    params: Params,
    *,
    num_steps: int = 50,
) -> Float[Array, ""]:
    """Hessian eigenvalue of largest magnitude, by power iteration.

    In units of loss per squared parameter; negative if the curvature of largest magnitude
    is, and 0 where the Hessian is zero. The loss is the mean over a fixed batch, without
    dropout, and ``key`` draws the starting direction. Each step costs a Hessian-vector
    product; the error shrinks like ``|second / first| ** (2 * num_steps)``.
    """
    check_size("top_eigenvalue", num_steps=num_steps)
    params = jax.tree.map(tree.wide, params)

    def product(direction):
        return jax.jvp(jax.grad(loss), (params,), (direction,))[1]

    def sharpen(direction, _):
        return tree.normalized(product(direction)), None

    start = tree.normalized(tree.random_normal_like(key, params))
    # v <- H v / |H v|; at the end the Rayleigh quotient <v, H v>, which keeps the sign.
    direction, _ = jax.lax.scan(sharpen, start, length=num_steps)
    return tree.dot(direction, product(direction))
