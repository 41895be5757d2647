"""What numbers may be: the known ones are refused by name, the others pass."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.errors import (
    check_key,
    check_number,
    check_size,
)


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_number_out_of_range_is_named_whatever_its_type(kind, value):
    """Oracle: the message, written out."""
    wanted = r"sam: rho must be a finite number of at least 0, got"
    with pytest.raises(ValueError, match=wanted):
        check_number("sam", rho=kind(value))
    with pytest.raises(
        ValueError, match=r"ema: decay must be a number in \[0, 1\], got"
    ):
        check_number("ema", most=1.0, decay=kind(value))


def test_ends_of_a_range_belong_to_it_or_not():
    """Oracle: by hand."""
    check_number("ema", most=1.0, decay=0.0)
    check_number("ema", most=1.0, decay=1.0)
    check_number("box", infinite=True, radius=float("inf"))
    with pytest.raises(ValueError, match="a finite number above 0, got 0"):
        check_number("distill", above=True, temperature=0)
    inside = {"most": 1.0, "above": True, "below": True}
    check_number("split", fraction=np.float32(0.5), **inside)
    for end in (0.0, np.float32(1.0), 10**400):
        with pytest.raises(ValueError, match=r"fraction must be a number in \(0, 1\)"):
            check_number("split", fraction=end, **inside)
    for wrong in ([0.1, 0.2], None, True):
        with pytest.raises(
            ValueError, match="of at least 0, got " + re.escape(f"{wrong}")
        ):
            check_number("sam", rho=wrong)


def test_what_is_not_known_passes():
    """Oracle: tracing. Schedules pass where they are read, and None where it may."""
    check_number("sam", schedules=True, rho=lambda count: -1.0)
    check_number("ewc", optional=True, decay=None)
    with pytest.raises(ValueError, match="of at least 0 or a schedule, got -1"):
        check_number("sam", schedules=True, rho=-1)
    with pytest.raises(ValueError, match="of at least 0, got function"):
        check_number("ewc", strength=lambda count: 1.0)
    jax.jit(lambda rho: check_number("sam", rho=rho))(-1.0)
    jax.jit(lambda low: check_number("adaptive", least=low, high=0.0))(1.0)
    check_size("store", optional=True, sample_size=None)
    with pytest.raises(ValueError, match="sample_size must be an int"):
        check_size("store", sample_size=None)


def test_a_key_passes_in_both_forms_and_traced():
    """Oracle: JAX's own makers of keys. Negative control: many keys, and a seed."""
    for make in (jax.random.key, jax.random.PRNGKey):
        check_key("step", make(0))
        jax.jit(lambda key: check_key("step", key))(make(0))
        many = jax.random.split(make(0))
        jax.vmap(lambda key: check_key("step", key))(many)
        for wrong in (many, 0, jnp.zeros(2), jnp.zeros(3, jnp.uint32), jnp.uint32(0)):
            with pytest.raises(ValueError, match="step: key must be one JAX key, got"):
                check_key("step", wrong)


def test_a_seed_that_is_traced_is_called_by_its_type():
    """Oracle: the message of a seed that is not traced, and JAX's name of the type."""
    with pytest.raises(ValueError, match=r"must be one JAX key, got int32\[\]"):
        jax.jit(lambda seed: check_key("step", seed))(0)


def test_an_empty_range_is_refused():
    """Oracle: the order of two numbers."""
    check_number("adaptive", least=0.1, high=0.1)
    with pytest.raises(ValueError, match=r"high must be .* at least 2, got 1\.0"):
        check_number("adaptive", least=2, high=np.float32(1.0))


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "ten"])
def test_a_size_that_is_no_positive_int_is_named(value):
    """Oracle: the message."""
    wanted = r"store: capacity must be an int of at least 1, .* got"
    with pytest.raises(ValueError, match=wanted):
        check_size("store", capacity=value)


def test_a_traced_size_is_refused():
    """Oracle: tracing; shapes cannot depend on it."""
    with pytest.raises(ValueError, match="known before tracing, got"):
        jax.jit(lambda size: check_size("store", capacity=size))(3)
