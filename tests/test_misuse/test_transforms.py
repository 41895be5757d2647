"""Wrong calls of gradient transformations."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl import transforms
from jaxcl.transforms import (
    adaptive_rho,
    adaptive_strength,
    agem,
    c_flat,
    friendly_sam,
    gem,
    gnp,
    gsam,
    looksam,
    random_sam,
    reverse_sam,
    rho_schedule,
    sam,
)
from tests.test_misuse.table import (
    KEY,
    NAN,
    assert_refused,
    refused,
)

PARAMS = {"w": jnp.ones(3)}
WRONG = {"w": jnp.ones(4)}


def updated(transformation, params=PARAMS, **functions):
    """One update at ``PARAMS``, with a gradient of ones."""
    state = transformation.init(PARAMS)
    return transformation.update(PARAMS, state, params, **functions)


REFUSED = [
    # sharpness-aware
    (lambda: transforms.sam("0.05"), "sam: rho must be a finite number .* got '0.05'"),
    (lambda: transforms.sam(None), "sam: rho must be a finite number .* got None"),
    (lambda: transforms.sam(True), "sam: rho must be a finite number .* got True"),
    (
        lambda: transforms.random_sam(0, 0.1),
        "random_sam: key must be .* key, got 0; make",
    ),
    *[
        (lambda bad=bad, build=build: build(bad), f"^{words}")
        for bad in (-0.1, NAN, float("inf"), np.float32(-1))
        for build, words in (
            (sam, "sam: rho must be a finite number of at least 0"),
            (reverse_sam, "reverse_sam: rho"),
            (lambda rho: random_sam(KEY, rho), "random_sam: rho"),
            (lambda eta: sam(0.1, adaptive=True, eta=eta), "sam: eta"),
        )
    ],
    (lambda: updated(sam(0.1), None, grad_fn=jnp.sin), "sam: update needs params"),
    (lambda: updated(sam(0.1)), "sam: update needs grad_fn"),
    (
        lambda: updated(sam(0.1), grad_fn=lambda params: (0.0, params)),
        "return the gradients alone",
    ),
    (
        lambda: updated(sam(0.1), grad_fn=lambda _: WRONG),
        r"sam: grad_fn must .* got \(4,\) for \(3,\)",
    ),
    (
        lambda: updated(sam(0.1, mask={"other": True}), grad_fn=lambda p: p),
        "sam: mask must be a tree of booleans",
    ),
    (lambda: adaptive_rho(-1.0), "adaptive_rho: target"),
    (lambda: adaptive_rho(1.0, high=float("inf")), "adaptive_rho: high"),
    (lambda: adaptive_strength(sam, -1.0, reference=1.0), "adaptive_strength: base"),
    (
        lambda: adaptive_strength(sam, 0.1, reference=0.0),
        "adaptive_strength: reference",
    ),
    (
        lambda: updated(
            adaptive_strength(sam, 0.1, reference=1.0), grad_fn=lambda p: p
        ),
        "build the transformation with measure=True",
    ),
    (lambda: c_flat(-0.1), "c_flat: rho"),
    (lambda: c_flat(0.1, -0.1), "c_flat: strength"),
    *[
        (
            lambda name=name: friendly_sam(**({"rho": 0.1} | {name: -0.1})),
            f"friendly_sam: {name}",
        )
        for name in ("rho", "sigma", "decay")
    ],
    *[
        (
            lambda given=given: gnp(0.1, **given),
            f"gnp: needs exactly one of alpha .* alpha={given.get('alpha')}",
        )
        for given in ({}, {"alpha": 0.5, "penalty": 0.1})
    ],
    (lambda: gnp(0.1, alpha=-0.1), "gnp: alpha must be a finite number"),
    (lambda: gnp(0.1, penalty=NAN), "gnp: penalty must be a finite number"),
    (lambda: gnp(-0.1, alpha=0.5), "gnp: r must be a finite number"),
    (lambda: gnp(0.0, penalty=0.1), "gnp: penalty needs r above 0"),
    (lambda: gsam(-1.0, 0.5), "gsam: rho must be"),
    (lambda: gsam(1.0, -0.5), "gsam: alpha must be"),
    (
        lambda: rho_schedule(lambda t: t, lr_max=0.1, lr_min=0.1, rho_max=0.1),
        "rho_schedule: lr_max must differ",
    ),
    *[
        (
            lambda k=k: looksam(0.3, k=k),
            f"looksam: k must be a Python int of at least 1, got {k}",
        )
        for k in (0, -1, True)
    ],
    (lambda: looksam(0.3, alpha=-1.0), "looksam: alpha"),
    (lambda: looksam(-0.3), "looksam: rho"),
    # projections
    (lambda: updated(agem()), "agem: update needs replay_grad_fn"),
    (
        lambda: updated(agem(), None, replay_grad_fn=jnp.sin),
        "agem: update needs params",
    ),
    (
        lambda: updated(agem(), replay_grad_fn=lambda _: WRONG),
        r"agem: replay_grad_fn must .* got \(4,\)",
    ),
    *[
        (
            lambda rows=rows: updated(gem(), task_grad_fn=rows),
            "gem: task_grad_fn must return gradients with",
        )
        for rows in (
            lambda p: p,
            lambda p: jax.tree.map(lambda leaf: leaf[None][:0], p),
        )
    ],
    (lambda: updated(gem()), "gem: update needs task_grad_fn"),
    (lambda: gem(-0.5), "gem: margin must be"),
]


@refused(REFUSED)
def test_the_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the message says who, what was expected and what it was."""
    assert_refused(call, words)
