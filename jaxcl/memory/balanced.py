"""Class-balanced memories."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxcl.errors import check_size
from jaxcl.memory.base import (
    as_stored,
    blank_rows,
    draw_ranks,
    later_rows_win,
    read_rows,
    write_rows,
)
from jaxcl.typing import Batch, Memory


class BalancedState(NamedTuple):
    """The stored rows, and statistics of the classes."""

    kept: Batch  # leaves [m, ...]; the first `filled` rows are stored ones
    filled: Int[Array, ""]
    seen: Int[Array, " c"]  # real rows offered so far of each class; int32
    full: Bool[Array, " c"]  # were the largest class while the memory was full


def greedy_balanced(capacity: int, sample_size: int, *, num_classes: int) -> Memory:
    """Store a row if its class has less than an equal part of the memory: GDumb's sampler.

    A row is stored if its class has fewer than ``capacity / classes seen`` rows; in a full
    memory it replaces a random row of the largest class. Rows of weight zero, or with a
    label outside the classes, are never stored.

    Args:
      capacity: ``m``, how many rows are kept.
      sample_size: rows per sample, drawn uniformly with replacement; of weight zero while
        the memory is empty.
      num_classes: labels are integers below it.

    State: :class:`BalancedState`. A step costs ``b * m`` integer operations.

    Source: Prabhu et al. 2020, "GDumb", ECCV, algorithm 1.
    """

    def choose(_, label, counts, state):
        known = jnp.sum((state.seen > 0) | (jnp.arange(num_classes) == label))
        wanted = counts[label] * known < capacity
        return wanted, jnp.argmax(counts)

    return _balanced("greedy_balanced", capacity, sample_size, num_classes, choose)


def class_balanced_reservoir(
    capacity: int, sample_size: int, *, num_classes: int
) -> Memory:
    """Store a uniform sample of each class, and all of small classes: CBRS.

    While there is room every row is stored. Then a row of a class that never was the
    largest replaces a random row of the largest class; a row of any other class ``c``
    replaces a random row of its own class with probability ``m_c / n_c``, stored rows
    over rows seen.

    Arguments and state as in :func:`greedy_balanced`.

    Source: Chrysakis and Moens 2020, "Online continual learning from imbalanced data",
    ICML, algorithm 1.
    """

    def choose(key, label, counts, state):
        kept, seen = counts[label], state.seen[label] + 1
        accepted = jax.random.uniform(key, (), jnp.float32) * seen <= kept
        own = state.full[label]
        return ~own | accepted, jnp.where(own, label, jnp.argmax(counts))

    who = "class_balanced_reservoir"
    return _balanced(who, capacity, sample_size, num_classes, choose)


def _balanced(who, capacity, sample_size, num_classes, choose) -> Memory:
    """A memory in which ``choose`` decides whether a row is stored, and what it replaces.

    ``choose(key, label, counts [c], state) -> (keep, class)``: a row of the class is
    replaced if the memory is full.
    """
    check_size(who, capacity=capacity, sample_size=sample_size, num_classes=num_classes)

    def init(_params, example):
        seen, full = jnp.zeros(num_classes, jnp.int32), jnp.zeros(num_classes, bool)
        filled = jnp.zeros((), jnp.int32)
        return BalancedState(blank_rows(capacity, example), filled, seen, full)

    def sample(key, state):
        rows, real = draw_ranks(key, state.filled, sample_size, replace=True)
        return read_rows(state.kept, rows, real)

    def place(carry, row):
        """The slot of one row; ``capacity`` if it is not stored."""
        labels, state = carry
        key, label, real = row
        key_choice, key_slot = jax.random.split(key)
        there = jnp.arange(capacity) < state.filled
        counts = jnp.zeros(num_classes, jnp.int32).at[labels].add(there)
        full = state.filled == capacity
        largest = full & (counts == jnp.max(counts))
        state = state._replace(full=state.full | largest)
        keep, replaced = choose(key_choice, label, counts, state)
        most = jnp.maximum(counts[replaced], 1)
        drawn = jax.random.randint(key_slot, (), 0, most, jnp.int32)
        given = jnp.searchsorted(jnp.cumsum(there & (labels == replaced)), drawn + 1)
        slot = jnp.where(full, given, state.filled)
        slot = jnp.where(keep & real, slot, capacity)  # out of range, hence dropped
        state = state._replace(
            filled=state.filled + (keep & real & ~full),
            seen=state.seen.at[label].add(real),
        )
        return (labels.at[slot].set(label, mode="drop"), state), slot

    def observe(key, state, step, _params):
        small = state._replace(kept=())
        batch = as_stored(who, state.kept, step.batch)
        keys = jax.random.split(key, batch.weight.shape)
        real = (batch.weight > 0) & (batch.y >= 0) & (batch.y < num_classes)
        rows = keys, batch.y, real
        (_, small), slot = jax.lax.scan(place, (state.kept.y, small), rows)
        slot = later_rows_win(slot, capacity)
        return small._replace(kept=write_rows(state.kept, slot, batch))

    return Memory(init, sample, observe)
