"""What counts as a record, and how records become groups and curves."""

import numpy as np
import pytest

from jaxcl.report.records import (
    check,
    curves,
    frame,
    group,
    labels,
    measure_names,
    rivals,
    split,
)
from tests.test_report.toy_records import record, runs


def test_two_finished_runs_of_one_group_and_seed_are_refused_by_name():
    """Oracle: both names; controls: another seed, another number, a run that diverged."""
    first, again = record(), {**record(), "run": "again"}
    with pytest.raises(ValueError, match=r"1 \(permuted/sgd.* and record 2 \(again\)"):
        check([first, again])
    for change in (
        {"seed": 1},
        {"hyper": {"learning_rate": 0.2}},
        {"arm": "sam"},
        {"setting": "pairs"},
        {"status": "diverged"},
    ):
        check([first, {**again, **change}])


def test_a_diverged_run_may_hold_nulls_and_is_never_averaged():
    """Oracle: its name in the error."""
    records = [record(seed=0), record(seed=1, accuracy=[None], status="diverged")]
    check(records)
    done, lost = split(records)
    assert [r["seed"] for r in done] == [0]
    assert [r["seed"] for r in lost] == [1]
    assert curves(done).shape == (1, 2)
    with pytest.raises(ValueError, match=r"diverged .*seed=1"):
        curves(records)


def test_groups_differ_in_more_than_the_seed():
    """Oracle: counting by hand."""
    records = [
        *runs("sgd", [(0.5, 0.5)] * 2),
        *runs("sam", [(0.5, 0.5)] * 3, hyper={"learning_rate": 0.1, "rho": 0.1}),
        *runs("sam", [(0.5, 0.5)], hyper={"rho": 0.2, "learning_rate": 0.1}),
    ]
    groups = group(records[::-1])
    sizes = {(key.arm, dict(key.hyper).get("rho")): len(g) for key, g in groups.items()}
    assert sizes == {("sgd", None): 2, ("sam", 0.1): 3, ("sam", 0.2): 1}
    for members in groups.values():
        assert [r["seed"] for r in members] == sorted(r["seed"] for r in members)


def test_labels_show_what_varies_within_an_arm():
    """Oracle: written by hand."""
    hypers = [("sgd", 0.1, None), ("sam", 0.1, 0.05), ("sam", 0.01, 0.05)]
    records = [
        record(arm, hyper={"learning_rate": rate} | ({"rho": rho} if rho else {}))
        for arm, rate, rho in hypers
    ]
    assert list(labels(list(group(records))).values()) == [
        "sgd",
        "sam, lr 0.1",
        "sam, lr 0.01",
    ]


def test_settings_may_be_lists():
    """Oracle: written by hand; control: equal lists are one group."""
    sizes = ([100, 100], [100, 100], [64, [8, 8]], {"depth": [2]})
    records = [
        record("sgd", seed, hyper={"sizes": size}) for seed, size in enumerate(sizes)
    ]
    groups = group(records)
    assert [len(members) for members in groups.values()] == [2, 1, 1]
    assert list(labels(list(groups)).values()) == [
        "sgd, sizes (100, 100)",
        "sgd, sizes (64, (8, 8))",
        "sgd, sizes (('depth', (2,)),)",
    ]


def test_measures_that_are_null_are_none():
    """Oracle: the same record without the field; control: a measure that is there."""
    for measures in (None, {}, {"rank": None}):
        nothing = record(measures=measures)
        check([nothing])
        assert measure_names([nothing]) == []
        with pytest.raises(ValueError, match=r"no 'rank'; it has accuracy, loss\.$"):
            curves([nothing], "rank")
        known = record(seed=1, measures={"rank": [1.0, 2.0]})
        assert measure_names([known]) == ["rank"]
        assert measure_names([known, nothing]) == []


def test_curves_read_measures_and_nulls():
    """Oracle: by hand."""
    records = [record(loss=[1.0, 2.0], measures={"rank": [3.0, None], "only": [0, 0]})]
    np.testing.assert_array_equal(curves(records, "rank"), [[3.0, np.nan]])
    np.testing.assert_array_equal(curves(records, "loss"), [[1.0, 2.0]])
    with pytest.raises(ValueError, match="no 'trace'; it has accuracy, loss, rank"):
        curves(records, "trace")
    other = record(seed=1, measures={"rank": [0.0, 0.0]})
    assert measure_names([*records, other]) == ["rank"]


def test_a_frame_has_a_row_per_run():
    """Oracle: by hand; runs that differ only in the seed have one number as their group."""
    records = [
        *runs("sgd", [(0.5, 0.5)] * 2),
        record("sam", 7, hyper={"learning_rate": 0.1, "rho": 0.5}, status="diverged"),
    ]
    made = frame(records)
    assert list(made.index) == [r["run"] for r in records]
    assert list(made["group"]) == [0, 0, 1]
    assert list(made["method"]) == ["sgd", "sgd", "sam"]
    assert list(made["seed"]) == [0, 1, 7]
    np.testing.assert_array_equal(made["hyper.rho"], [np.nan, np.nan, 0.5])
    assert frame([]).groupby("group").ngroups == 0


def test_a_run_is_compared_with_the_baseline_of_its_seed_and_rate():
    """Oracle: by hand; a seed that the baseline lost, and a setting without one, have no
    counterpart. A number that only one of the two has is ignored."""
    sgd = lambda seed, rate, **more: record(
        "sgd", seed, hyper={"learning_rate": rate}, **more
    )
    sam = lambda seed, rate, **more: record(
        "sam", seed, hyper={"learning_rate": rate, "rho": 0.5}, **more
    )
    base = [sgd(0, 0.1), sgd(0, 0.01), sgd(1, 0.1, status="diverged")]
    others = [sam(0, 0.1), sam(1, 0.1), sam(0, 0.01), sam(0, 0.1, setting="pairs")]
    found = rivals([*base, *others], "sgd")
    assert found[others[0]["run"]] is base[0]
    assert found[others[2]["run"]] is base[1]
    assert found[base[0]["run"]] is base[0]
    assert len(found) == 4
    with pytest.raises(ValueError, match="sam fits 2 groups of sgd"):
        rivals([*base, *others], "sgd", match=())
