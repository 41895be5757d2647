"""Unweighted quadratic penalties: towards zero, and towards the initial parameters."""

from jaxtyping import ScalarLike

from jaxcl.errors import check_number
from jaxcl.tree import copied, dot, subtract
from jaxcl.typing import Regularizer


def l2(strength: ScalarLike) -> Regularizer:
    r"""L2 penalty: ``strength / 2 * |params|^2``.

    Under plain SGD this is weight decay of ``strength`` (per unit of learning rate).
    Decoupled decay, as in AdamW, is ``optax.add_decayed_weights`` instead.

    In nats per squared parameter; other libraries often omit the 1/2, so their
    coefficient is half of this one.
    """
    check_number("l2", strength=strength)

    def penalty(_state, params, _context):
        return 0.5 * strength * dot(params, params)

    return Regularizer(penalty=penalty)


def l2_init(strength: ScalarLike) -> Regularizer:
    r"""L2 penalty on the distance from the start: ``strength / 2 * |params - start|^2``.

    It maintains plasticity; it does not prevent forgetting. The state is the initial
    parameters, and tasks do not change it. For a penalty towards the *last* solution use
    ``ewc(uniform_importance(), strength, decay=0.0)``. The paper omits the 1/2.

    Source: Kumar et al. 2023, "Maintaining plasticity in continual learning via
    regenerative regularization", arXiv:2308.11958, equation 1.
    """
    check_number("l2_init", strength=strength)

    def penalty(start, params, _context):
        away = subtract(params, start)
        return 0.5 * strength * dot(away, away)

    return Regularizer(lambda params, example: copied(params), penalty)
