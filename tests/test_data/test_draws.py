"""Draws on the host: permutations, rows, and where they come from."""

import jax
import numpy as np

from jaxcl.data.draws import generator, permutations, rows_without_replacement


def test_permutations_hold_every_number_once(key):
    """Oracle: sorting; and two of ten tasks of 50 never agree (chance 1e-63)."""
    drawn = np.asarray(permutations(generator(key), 10, 50))
    np.testing.assert_array_equal(np.sort(drawn, axis=1), [np.arange(50)] * 10)
    assert len({row.tobytes() for row in drawn}) == 10


def test_the_first_permutation_may_be_none(key):
    """Oracle: counting; without the switch the same key gives another first row."""
    plain = np.asarray(permutations(generator(key), 3, 20))
    first = np.asarray(permutations(generator(key), 3, 20, identity_first=True))
    np.testing.assert_array_equal(first[0], np.arange(20))
    np.testing.assert_array_equal(first[1:], plain[1:])
    assert not np.array_equal(plain[0], first[0])


def test_rows_are_different_and_uniform(key):
    """Oracle: sets; each row is in 3 of 12 draws, binomial, within five deviations."""
    drawn = np.asarray(rows_without_replacement(generator(key), 2_000, 12, 3))
    assert all(len(set(rows)) == 3 for rows in drawn.tolist())
    share = np.bincount(drawn.ravel(), minlength=12) / 2_000
    np.testing.assert_allclose(share, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 2_000))


def test_equal_keys_draw_equally_and_others_differ(key):
    """Oracle: determinism; folding in a number changes the words of the key."""
    draw = lambda key: generator(key).integers(1 << 60)
    assert draw(key) == draw(jax.random.key(0))
    assert len({draw(jax.random.fold_in(key, i)) for i in range(5)} | {draw(key)}) == 6
