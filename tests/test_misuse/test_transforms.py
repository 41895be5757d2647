"""Wrong calls of gradient transformations."""

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
    assert_raises,
    assert_refused,
    refused,
)

PARAMS = {"w": jnp.ones(3)}
GRADIENTS = dict.fromkeys(["grad_fn", "replay_grad_fn", "task_grad_fn"], jnp.sin)


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
    *[
        (
            lambda build=build: updated(build(), None, **GRADIENTS),
            "update: expected all params, got none",
        )
        for build in (lambda: sam(0.1), lambda: c_flat(0.1), agem, gem)
    ],
    (
        lambda: sam(0.1).init({"w": jnp.ones(3, jnp.complex64)}),
        "init: params must be real, got complex64 at .*w.*; make two leaves",
    ),
    (lambda: adaptive_rho(-1.0), "adaptive_rho: target"),
    (lambda: adaptive_rho(1.0, high=float("inf")), "adaptive_rho: high"),
    (
        lambda: adaptive_rho(1.0, low=2, high=np.float32(1)),
        "adaptive_rho: high must be a finite number of at least 2, got 1",
    ),
    (
        lambda: adaptive_strength(sam, 0.1, reference=1.0, limits=(2.0, 1.0)),
        "adaptive_strength: upper_limit must be .* at least 2, got 1",
    ),
    (lambda: adaptive_strength(sam, -1.0, reference=1.0), "adaptive_strength: base"),
    (
        lambda: adaptive_strength(sam, 0.1, reference=0.0),
        "adaptive_strength: reference",
    ),
    (
        lambda: updated(
            adaptive_strength(sam, 0.1, reference=1.0), grad_fn=lambda p: p
        ),
        "expected a measured state; build it with measure=True",
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
            f"gnp: needs alpha .* or penalty .*, got alpha={given.get('alpha')}",
        )
        for given in ({}, {"alpha": 0.5, "penalty": 0.1})
    ],
    (lambda: gnp(0.1, alpha=-0.1), "gnp: alpha must be a finite number"),
    (lambda: gnp(0.1, penalty=NAN), "gnp: penalty must be a finite number"),
    (lambda: gnp(-0.1, alpha=0.5), "gnp: r must be a finite number"),
    (lambda: gnp(0.0, penalty=0.1), "gnp: r must be a finite number above 0 .* got 0"),
    (lambda: gsam(-1.0, 0.5), "gsam: rho must be"),
    (lambda: gsam(1.0, -0.5), "gsam: alpha must be"),
    (
        lambda: rho_schedule(lambda t: t, lr_max=0.1, lr_min=0.1, rho_max=0.1),
        "rho_schedule: lr_max must differ",
    ),
    *[
        (
            lambda k=k: looksam(0.3, k=k),
            f"looksam: k must be an int of at least 1, .* got {k}",
        )
        for k in (0, -1, True)
    ],
    (lambda: looksam(0.3, alpha=-1.0), "looksam: alpha"),
    (lambda: looksam(-0.3), "looksam: rho"),
    # projections
    (
        lambda: updated(gem(), task_grad_fn=lambda p: p),
        r"gem: task_grad_fn must return a row \[T\] per task of .*\(3,\).*, got .*\(\)",
    ),
    (lambda: gem(-0.5), "gem: margin must be"),
]


# What Python and JAX refuse themselves.
LEFT_TO_OTHERS = [
    *[
        (
            lambda build=build: updated(build()),
            f"missing 1 required keyword-only argument: '{needed}'",
        )
        for build, needed in (
            (lambda: sam(0.1), "grad_fn"),
            (lambda: looksam(0.1), "grad_fn"),
            (lambda: c_flat(0.1), "grad_fn"),
            (agem, "replay_grad_fn"),
            (gem, "task_grad_fn"),
            (lambda: transforms.scale_by_progress(lambda done: done), "progress"),
        )
    ],
    (
        lambda: updated(sam(0.1), grad_fn=lambda params: (0.0, params)),
        "pytree structure error: different types.*tuple",
    ),
    *[
        (
            lambda shape=shape: updated(
                sam(0.1), grad_fn=lambda _: {"w": jnp.ones(shape)}
            ),
            "cannot reshape array of shape .* into shape .*3",
        )
        for shape in (4, 1, ())
    ],
    (
        lambda: updated(agem(), replay_grad_fn=lambda _: {"w": jnp.ones(4)}),
        "cannot reshape array of shape .* into shape .*3",
    ),
    (
        lambda: updated(sam(0.1, mask={"other": True}), grad_fn=lambda p: p),
        "pytree structure error: .*other",
    ),
]


@refused(LEFT_TO_OTHERS)
def test_the_wrong_call_is_refused_by_another_library(call, words):
    """Oracle: the message, written out."""
    assert_raises(call, words)


@refused(REFUSED)
def test_the_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the message says who, what was expected and what it was."""
    assert_refused(call, words)
