"""Tables as text: what is rounded, what is aligned, what is exact."""

import csv
import io

import numpy as np
import pytest

from jaxcl.report.statistics import Interval, mean_interval
from jaxcl.report.summaries import summarize
from jaxcl.report.tables import (
    Column,
    Table,
    interval_table,
    measure_table,
    show,
    summary_table,
    table_of,
    to_csv,
    to_markdown,
)
from tests.test_report.test_summaries import noisy
from tests.test_report.toy_records import record, runs

TABLE = Table(
    columns=(
        Column("method"),
        Column("accuracy, %", 1, 100.0),
        Column("p", is_p_value=True),
    ),
    rows=(
        ("sgd | plain", Interval(0.9123, 0.9, 0.9246, 5), None),
        ("sam", Interval(0.5, float("nan"), float("nan"), 1), 0.0004),
    ),
    notes=("Two methods.",),
)


def test_markdown_is_aligned_and_escaped():
    """Oracle: written by hand."""
    assert to_markdown(TABLE) == (
        "| method       | accuracy, % |       p |\n"
        "| ------------ | ----------: | ------: |\n"
        "| sgd \\| plain |  91.2 ± 1.2 |       – |\n"
        "| sam          |        50.0 | < 0.001 |\n"
        "\nTwo methods.\n"
    )


def test_rows_of_named_columns_become_a_table():
    """Oracle: the table written out; no rows give no columns."""
    names = TABLE.columns
    rows = (dict(zip(names, row, strict=True)) for row in TABLE.rows)
    assert table_of(rows, "Two methods.") == TABLE
    assert table_of([]) == Table((), ())


def test_csv_keeps_all_digits_in_columns_of_their_own():
    """Oracle: the csv module, reading it back."""
    header, first, second = csv.reader(io.StringIO(to_csv(TABLE)))
    assert header == [
        "method",
        "accuracy, %",
        "accuracy, % low",
        "accuracy, % high",
        "accuracy, % runs",
        "p",
    ]
    assert first[0] == "sgd | plain"
    np.testing.assert_allclose([float(cell) for cell in first[1:4]], [91.23, 90, 92.46])
    assert first[4:] == ["5", ""]
    assert second == ["sam", "50", "", "", "1", "0.0004"]


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (-0.5, Column("x", 2), "\N{MINUS SIGN}0.50"),
        (3, Column("x", 0), "3"),
        (float("nan"), Column("x"), "–"),
        (0.0312, Column("p", is_p_value=True), "0.031"),
        (1e-9, Column("p", is_p_value=True), "< 0.001"),
        ("diverged", Column("x"), "diverged"),
    ],
)
def test_values_are_shown_as_people_write_them(value, column, text):
    """Oracle: written by hand."""
    assert show(value, column) == text


def test_the_summary_table_names_diverged_runs_and_never_counts_them():
    """Oracle: the numbers that went in."""
    lost = [record("sam", 9, [None] * 10, status="diverged")]
    records = [*noisy("sgd", 0), *noisy("sam", 0.01), *lost]
    text = to_markdown(summary_table(summarize(records, baseline="sgd")))
    row = next(line for line in text.splitlines() if "sam " in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["permuted", "sam", "6", "1"]
    assert cells[-1] == "better"
    assert "Diverged, never averaged in: sam, permuted (1 of 7)." in text
    # Six differences of one sign: 2 of 2**6 equally likely patterns are as far from zero.
    assert "With 6 seeds the sign-flip test cannot fall below 0.031" in text
    assert cells[-3:-1] == ["< 0.001", "0.031"]
    mean = 100 * np.mean([r["accuracy"] for r in records if r["arm"] == "sam"][:-1])
    assert cells[4].startswith(f"{mean:.2f} ±")


def test_a_table_of_slopes_shows_both_halves_and_no_level():
    """Oracle: curves made by hand: up 2 points a task, then down 1 point a task."""
    rise = [0.3 + 0.02 * t for t in range(6)] + [0.4 - 0.01 * t for t in range(6)]
    flat = [0.5] * 12
    records = [*runs("sgd", [flat] * 2), *runs("sam", [rise] * 2)]
    found = summarize(records, baseline="sgd", quantity="late slope")
    text = to_markdown(summary_table(found, quantity="late slope"))
    row = next(line for line in text.splitlines() if "| sam " in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    whole = 1e4 * np.polyfit(range(12), rise, 1)[0]
    minus = "\N{MINUS SIGN}"
    assert cells[4] == f"{whole:.2f} ± 0.00".replace("-", minus)
    assert cells[5:7] == [f"{minus}100.00 ± 0.00"] * 2
    assert "accuracy" not in text


def test_a_stated_margin_has_its_column():
    """Oracle: the margin in points, and no such column without one."""
    records = [*noisy("sgd", 0), *noisy("sam", 0.0)]
    found = summarize(records, baseline="sgd", margin=0.01)
    text = to_markdown(summary_table(found, margin=0.01))
    assert "p (equal within 1, Holm)" in text
    assert "equal within the margin" in text
    assert "p (equal" not in to_markdown(summary_table(found))


def test_measures_are_means_over_the_tasks_that_have_them():
    """Oracle: by hand."""
    rows = [(0.5, 0.5)] * 2
    records = runs("sgd", rows, measures={"effective_rank": [1.0, 8.0]})
    table = measure_table(records)
    assert [column.name for column in table.columns][2:] == ["effective rank"]
    assert table.rows[0][2] == Interval(4.5, 4.5, 4.5, 2)
    now_and_then = runs("sgd", rows, measures={"eigenvalue": [None, 3.0]})
    for some, mean in ((records, 4.5), (now_and_then, 3.0)):
        whole = measure_table(some)
        assert whole.rows[0][2].mean == mean
        assert "Mean over the stream" in whole.notes[0]
    assert "4.500 ± 0.000" in to_markdown(table)
    large = runs("sgd", [(0.5, 0.5)], measures={"rank": [0.0, 2098.26]})
    assert "| 1049 |" in to_markdown(measure_table(large))


def test_one_run_each_has_no_interval_and_the_notes_say_so():
    """Oracle: the words; with a second run of one arm there is an interval again."""
    one, two = record("sgd", 0), record("sgd", 1)
    for records, told in (([one], False), ([one, two], True), ([], True)):
        notes = [measure_table(records, []).notes[0]]
        if records:
            notes.append(summary_table(summarize(records, baseline="sgd")).notes[0])
        for note in notes:
            assert ("95 % t-interval" in note) == told
            assert ("ne run each: no interval" in note) != told


def test_an_interval_table_has_a_row_per_group():
    """Oracle: the intervals of the same numbers; what a run lacks is left out, a total is
    a sum, and a run that diverged is not counted."""
    records = [
        *runs("sgd", [(0.5, 0.5)] * 3),
        record("sgd", 3, status="diverged"),
        record("sam"),
    ]
    numbers = {
        Column("gap"): [1.0, np.nan, 2.0, np.nan, np.nan],
        Column("minutes", is_total=True): [1.0, 2.0, 3.0, 4.0, 5.0],
    }
    made = interval_table(records, numbers, ["So: {interval}."])
    assert [column.name for column in made.columns][:3] == ["setting", "method", "runs"]
    first, second = made.rows
    assert first == ("permuted", "sgd", 3, mean_interval(np.array([1.0, 2.0])), 10.0)
    assert second == ("permuted", "sam", 1, None, 5.0)
    assert made.notes == ("So: mean and 95 % t-interval over seeds.",)
    assert interval_table(records, {}, heads=["method"]).rows == (("sgd",), ("sam",))
