"""Runs matched on rank: which moments count, and what is taken from them."""

import numpy as np
import pytest

from experiments.plasticity.matching import matched_table, pair


def run(arm, seed, eigenvalue, rank, accuracy, rate=0.1):
    return {
        "run": f"permuted/{arm}/{rate}/{seed}",
        "setting": "permuted",
        "arm": arm,
        "hyper": {"learning_rate": rate},
        "seed": seed,
        "status": "done",
        "accuracy": accuracy,
        "measures": {"top_eigenvalue": eigenvalue, "effective_rank": rank},
    }


def flat(seed, **others):
    """Looked at after the second, fourth and last of six tasks."""
    looks = [None, 2.0, None, 4.0, None, 8.0]
    return run("sgd-sphere", seed, looks, [10.0] * 6, [0.5] * 6, **others)


def test_only_moments_of_equal_rank_count():
    """Oracle: by hand. The third look has no task after it; the second has 20 % more
    rank; so the first remains: half the eigenvalue, 4 % more rank, and 3 points more on
    the two tasks up to the next look."""
    looks, ranks = [None, 1.0, None, 4.0, None, 1.0], [99, 10.4, 99, 12.0, 99, 10.0]
    bent = run("sam-sphere", 0, looks, ranks, [0.9, 0.9, 0.52, 0.54, 0.9, 0.9])
    found = pair(bent, flat(0))
    np.testing.assert_array_equal(found.matched, [True, False])
    np.testing.assert_allclose(np.exp(found.sharpness), [0.5, 1.0])
    (row,) = matched_table([bent, flat(0), flat(0, rate=0.01)], "sgd-sphere").rows
    assert row[2:5] == (1, 1, 2)
    np.testing.assert_allclose([one.mean for one in row[5:]], [0.04, -0.5, 0.03])


def test_a_run_against_itself_is_matched_and_equal_everywhere():
    """Oracle: the law that nothing differs from itself; seeds are paired with their own."""
    twins = [flat(seed) | {"arm": "noise-sphere", "run": f"n{seed}"} for seed in (0, 1)]
    (row,) = matched_table([*twins, flat(0), flat(1)], "sgd-sphere").rows
    assert row[2:5] == (2, 4, 4)
    assert [one.mean for one in row[5:]] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("unknown", ["sam-sphere", "sgd-sphere"])
def test_a_look_that_one_of_two_runs_lacks_is_not_matched(unknown):
    """Oracle: by hand, whichever lacks it. The second of two looks remains, with twice
    the eigenvalue and 7 points more on the tasks after it."""
    sharp = [None, 2.0, None, 8.0, None, 8.0]
    runs = [run("sam-sphere", 0, sharp, [10.0] * 6, [0.57] * 6), flat(0)]
    (lacking,) = (one for one in runs if one["arm"] == unknown)
    lacking["measures"]["top_eigenvalue"][1] = None
    (row,) = matched_table(runs, "sgd-sphere").rows
    assert row[2:5] == (1, 1, 2)
    np.testing.assert_allclose([one.mean for one in row[5:]], [0.0, 1.0, 0.07])


def test_other_ranks_or_a_negative_eigenvalue_leave_nothing_to_say():
    """Oracle: no moment is matched, so no number is given. Negative control of the first
    test."""
    far = run("sam-sphere", 0, [None, 2.0] * 3, [20.0] * 6, [0.5] * 6)
    below = run("sam-sphere", 0, [None, -2.0] * 3, [10.0] * 6, [0.5] * 6)
    for bent in (far, below):
        (row,) = matched_table([bent, flat(0)], "sgd-sphere").rows
        assert row[2:] == (0, 0, 2, None, None, None)
