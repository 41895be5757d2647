"""Metrics of the accuracy matrix."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import metrics
from jaxcl.metrics import Metric, summary

# Three tasks, worked by hand: the second is forgotten, the first recovers at the end.
HAND = np.array([[0.9, 0.2, 0.1], [0.5, 0.8, 0.3], [0.7, 0.4, 0.6]])
UNTRAINED = np.array([0.1, 0.1, 0.2])
JOINT = np.array([0.9, 0.9, 0.75])
BY_HAND = {
    "average_accuracy": (0.7 + 0.4 + 0.6) / 3,
    "average_incremental_accuracy": (0.9 + 0.65 + 1.7 / 3) / 3,
    "learning_accuracy": (0.9 + 0.8 + 0.6) / 3,
    "backward_transfer": (-0.2 - 0.4) / 2,
    "forward_transfer": (0.1 + 0.1) / 2,
    "forgetting": (0.2 + 0.4) / 2,
    "forgetting_from_initial": (0.2 + 0.4) / 2,
    "intransigence": (0 + 0.1 + 0.15) / 3,
    "minimum_accuracy": (0.5 + 0.4) / 2,
    "worst_case_accuracy": 0.6 / 3 + 2 / 3 * 0.45,
}
OF_MATRIX = sorted(set(BY_HAND) - {"forward_transfer", "intransigence"})


def evaluate(matrix, untrained, joint):
    """Every formula by name."""
    values = {name: getattr(metrics, name)(matrix) for name in OF_MATRIX}
    return values | {
        "forward_transfer": metrics.forward_transfer(matrix, untrained),
        "intransigence": metrics.intransigence(matrix, joint),
    }


def by_loops(r, b, joint):
    """The formulas as the papers print them: tasks from 1, one loop for each sum."""
    tasks = len(r)
    R = lambda i, j: float(r[i - 1, j - 1])
    mean = lambda values: sum(values) / len(values)
    old, every = range(1, tasks), range(1, tasks + 1)
    lowest = mean([min(R(n, j) for n in range(j + 1, tasks + 1)) for j in old])
    return {
        "average_accuracy": mean([R(tasks, j) for j in every]),
        "average_incremental_accuracy": mean(
            [mean([R(k, j) for j in range(1, k + 1)]) for k in every]
        ),
        "learning_accuracy": mean([R(j, j) for j in every]),
        "backward_transfer": mean([R(tasks, j) - R(j, j) for j in old]),
        "forward_transfer": mean([R(j - 1, j) - b[j - 1] for j in range(2, tasks + 1)]),
        "forgetting": mean([max(R(n, j) for n in old) - R(tasks, j) for j in old]),
        "forgetting_from_initial": mean([R(j, j) - R(tasks, j) for j in old]),
        "intransigence": mean([joint[k - 1] - R(k, k) for k in every]),
        "minimum_accuracy": lowest,
        "worst_case_accuracy": R(tasks, tasks) / tasks + (1 - 1 / tasks) * lowest,
    }


def random_case(tasks, seed=0, lead=()):
    generator = np.random.default_rng(seed)
    return tuple(
        generator.uniform(size=lead + shape)
        for shape in ((tasks, tasks), (tasks,), (tasks,))
    )


def assert_equal_values(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


def test_a_matrix_worked_by_hand():
    """Oracle: pencil and paper."""
    assert_equal_values(evaluate(HAND, UNTRAINED, JOINT), BY_HAND, rtol=1e-12)
    report = summary(HAND, untrained=UNTRAINED, joint=JOINT)
    assert all(metric.reason is None for metric in report.values())
    values = {name: metric.value for name, metric in report.items()}
    assert_equal_values(values, BY_HAND, rtol=1e-12)


@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_formulas_equal_loops(tasks):
    """Oracle: double loops over the printed formulas."""
    case = random_case(tasks)
    assert_equal_values(evaluate(*case), by_loops(*case), rtol=1e-12)


def test_stacks_jit_and_vmap_give_what_single_matrices_give():
    """Law: leading axes are independent; JAX agrees with NumPy up to float32."""
    case = random_case(4, lead=(2, 3))
    found = evaluate(*case)
    traced = jax.jit(jax.vmap(evaluate))(*(jnp.asarray(part) for part in case))
    for i, j in np.ndindex(2, 3):
        single = evaluate(*(part[i, j] for part in case))
        pick = lambda values, at=(i, j): {name: v[at] for name, v in values.items()}
        assert_equal_values(pick(found), single, rtol=1e-12)
        assert_equal_values(pick(traced), single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tasks", [2, 3, 9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_identities_between_metrics_hold(tasks, seed):
    """Laws: ACC = LA + (T-1)/T BWT; F >= -BWT, with equality for two tasks."""
    v = evaluate(*random_case(tasks, seed))
    np.testing.assert_allclose(
        v["average_accuracy"],
        v["learning_accuracy"] + (tasks - 1) / tasks * v["backward_transfer"],
    )
    np.testing.assert_allclose(v["forgetting_from_initial"], -v["backward_transfer"])
    if tasks == 2:
        np.testing.assert_allclose(v["forgetting"], -v["backward_transfer"])
    assert v["forgetting"] >= -v["backward_transfer"] - 1e-12
    if tasks == 9:  # the control: the maximum matters
        assert v["forgetting"] > -v["backward_transfer"] + 1e-3
    assert v["worst_case_accuracy"] <= v["average_accuracy"] + 1e-12


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_constant_matrix_neither_forgets_nor_transfers(level):
    """Oracle: every accuracy is the level, every change zero."""
    row = np.full(4, level)
    changes = ("transfer", "forgetting", "intransigence")
    for name, value in evaluate(np.full((4, 4), level), row, row).items():
        expected = 0.0 if any(word in name for word in changes) else level
        np.testing.assert_allclose(value, expected, atol=1e-12, err_msg=name)


def test_forgetting_counts_luck_before_learning_and_can_be_negative():
    """Oracle: by hand; task 2 was best before it was learnt, then all got better."""
    lucky = np.array([[0.5, 0.9, 0.0], [0.5, 0.4, 0.0], [0.5, 0.4, 0.5]])
    np.testing.assert_allclose(metrics.forgetting(lucky), 0.25)
    np.testing.assert_allclose(metrics.forgetting_from_initial(lucky), 0.0)
    np.testing.assert_allclose(metrics.forgetting(np.array([[0.5, 0], [0.7, 1]])), -0.2)


def test_the_learning_curve_area_is_the_mean_height():
    """Oracle: by hand, two tasks and three points each."""
    curves = np.array([[0.0, 0.5, 1.0], [0.0, 0.0, 0.3]])
    np.testing.assert_allclose(metrics.learning_curve_area(curves), 0.3)
    np.testing.assert_allclose(metrics.learning_curve_area(np.stack([curves] * 2)), 0.3)
    with pytest.raises(ValueError, match="axis -2 is out of bounds"):
        metrics.learning_curve_area(curves[0])


def test_a_single_task_has_reasons_where_there_are_no_numbers():
    """Oracle: what the formulas divide by."""
    report = summary([[0.8]], untrained=[0.1], joint=[0.9])
    defined = {name: m.value for name, m in report.items() if m.reason is None}
    expected = dict.fromkeys(
        (
            "average_accuracy",
            "average_incremental_accuracy",
            "learning_accuracy",
            "worst_case_accuracy",
        ),
        0.8,
    )
    assert_equal_values(defined, expected | {"intransigence": 0.1})
    for name in report.keys() - defined.keys():
        assert report[name] == Metric(None, "needs 2 or more tasks, got 1")


def test_missing_rows_are_reasons_and_not_zeros():
    """Oracle: the reasons, by hand."""
    report = summary(HAND)
    reason = "needs the untrained accuracies: pass untrained="
    assert report["forward_transfer"] == Metric(None, reason)
    assert report["intransigence"] == Metric(
        None, "needs the joint accuracies: pass joint="
    )
    assert sum(metric.value is None for metric in report.values()) == 2


# Which entries of a 4 x 4 matrix each formula reads, drawn from the definitions.
READS = {
    "average_accuracy": ".... .... .... xxxx",
    "average_incremental_accuracy": "x... xx.. xxx. xxxx",
    "learning_accuracy": "x... .x.. ..x. ...x",
    "backward_transfer": "x... .x.. ..x. xxx.",
    "forward_transfer": ".x.. ..x. ...x ....",
    "forgetting": "xxx. xxx. xxx. xxx.",
    "forgetting_from_initial": "x... .x.. ..x. xxx.",
    "intransigence": "x... .x.. ..x. ...x",
    "minimum_accuracy": ".... x... xx.. xxx.",
    "worst_case_accuracy": ".... x... xx.. xxxx",
}


def test_an_entry_that_was_not_measured_spoils_only_what_reads_it():
    """Oracle: the map of entries above; every other metric keeps its value."""
    matrix, untrained, joint = random_case(4)
    full = summary(matrix, untrained=untrained, joint=joint)
    for i, j in np.ndindex(4, 4):
        holed = matrix.copy()
        holed[i, j] = np.nan
        report = summary(holed, untrained=untrained, joint=joint)
        for name, drawing in READS.items():
            if drawing.split()[i][j] == "x":
                expected = Metric(None, f"R[{i}, {j}] was not measured")
                assert report[name] == expected, name
            else:
                assert report[name] == full[name], name


LEVELS = {name for name in BY_HAND if name.endswith("accuracy")}


@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_errors_are_read_with_their_sign_changed(tasks):
    """Oracle: loops over the negated matrix; levels come back as errors."""
    case = [10 * part for part in random_case(tasks)]
    matrix, untrained, joint = case
    found = summary(matrix, untrained=untrained, joint=joint, lower_is_better=True)
    expected = by_loops(*(-part for part in case))
    expected |= {name: -expected[name] for name in LEVELS}
    assert_equal_values({k: m.value for k, m in found.items()}, expected, rtol=1e-12)


def test_an_error_that_grows_is_forgotten_and_one_that_falls_is_gained():
    """Oracle: by hand, squared errors of two tasks; accuracies 1 - E are the control."""
    errors = np.array([[2.0, 9.0], [5.0, 1.0]])
    given = {"untrained": [8.0, 10.0], "joint": [1.5, 0.5]}
    found = summary(errors, **given, lower_is_better=True)
    by_hand = {
        "average_accuracy": 3.0,
        "average_incremental_accuracy": 2.5,
        "learning_accuracy": 1.5,
        "backward_transfer": -3.0,
        "forgetting": 3.0,
        "forgetting_from_initial": 3.0,
        "minimum_accuracy": 5.0,
        "worst_case_accuracy": 3.0,
        "forward_transfer": 1.0,
        "intransigence": 0.5,
    }
    assert_equal_values({k: m.value for k, m in found.items()}, by_hand, rtol=1e-12)
    shares = {name: 1 - np.array(row) / 10 for name, row in given.items()}
    control = summary(1 - errors / 10, **shares)
    for name in set(by_hand) - LEVELS:
        np.testing.assert_allclose(control[name].value, by_hand[name] / 10)


def test_errors_of_zero_and_gaps_keep_their_meaning():
    """Oracle: no minus zero in a report, and the reasons of a matrix of accuracies."""
    report = summary(np.zeros((2, 2)), lower_is_better=True)
    for name in LEVELS:
        assert not np.signbit(report[name].value)
    lower = np.where(np.tri(3), 9 * HAND, np.nan)
    found, shares = (
        {name: metric.reason for name, metric in summary(matrix, **options).items()}
        for matrix, options in (
            (lower, {"lower_is_better": True, "joint": [9.0, np.nan, 7.0]}),
            (lower / 9, {"joint": [0.9, np.nan, 0.7]}),
        )
    )
    assert found == shares
    assert found["forgetting"] == "R[0, 1] was not measured"


def test_the_first_of_many_gaps_is_named_and_gaps_in_rows_are_found():
    """Oracle: by hand, on a matrix that knows seen tasks only."""
    lower = np.where(np.tri(3), HAND, np.nan)
    report = summary(lower, untrained=UNTRAINED, joint=[0.9, np.nan, 0.75])
    assert report["forgetting"].reason == "R[0, 1] was not measured"
    assert report["forward_transfer"].reason == "R[0, 1] was not measured"
    assert report["intransigence"].reason == "an entry of joint was not measured"
    for name in set(OF_MATRIX) - {"forgetting"}:
        np.testing.assert_allclose(report[name].value, BY_HAND[name])
    # The first entry of the untrained row is not used.
    report = summary(HAND, untrained=[np.nan, 0.1, 0.2])
    np.testing.assert_allclose(report["forward_transfer"].value, 0.1)
    report = summary(HAND, untrained=[0.1, np.nan, 0.2])
    assert report["forward_transfer"].reason == "an entry of untrained was not measured"


def test_a_summary_is_json():
    """Oracle: a round trip through text that refuses NaN; JAX arrays are welcome."""
    found = summary(jnp.asarray(HAND), joint=jnp.asarray(JOINT))
    report = {name: metric._asdict() for name, metric in found.items()}
    read = json.loads(json.dumps(report, allow_nan=False))
    assert read == report
    assert read["forward_transfer"]["value"] is None
    np.testing.assert_allclose(read["forgetting"]["value"], 0.3, rtol=1e-6)
    assert read["forgetting"]["reason"] is None


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_formulas_refuse_what_is_no_matrix_or_too_short(name):
    """Oracle: the message; a single task where a formula divides by T - 1."""
    rows = {"forward_transfer": 1, "intransigence": 1}.get(name, 0)
    formula = getattr(metrics, name)
    with pytest.raises(
        ValueError, match=rf"{name}: the accuracy matrix must have shape"
    ):
        formula(np.ones((2, 3)), *[np.ones(3)] * rows)
    if summary([[0.8]], untrained=[0.1], joint=[0.9])[name].reason:
        with pytest.raises(
            ValueError, match=rf"^{name}: .* of 2 or more tasks, got \(1"
        ):
            formula(np.ones((1, 1)), *[np.ones(1)] * rows)


@pytest.mark.parametrize("library", [np, jnp])
def test_whole_numbers_are_shares_too(library):
    """Oracle: loops over the same numbers; the average by hand."""
    case = [[1, 0, 0], [1, 1, 0], [0, 1, 1]], [0, 0, 1], [1, 1, 0]
    found = evaluate(*(library.asarray(part) for part in case))
    assert_equal_values(found, by_loops(*map(np.array, case)), rtol=1e-6)
    np.testing.assert_allclose(found["average_incremental_accuracy"], 8 / 9, rtol=1e-6)
