"""Curves drawn from records, read back from the axes."""

from jaxcl.report.curves import measure_curves


def test_a_measure_taken_now_and_then_is_drawn_where_it_was_taken():
    """Oracle: the numbers themselves; a moving mean over gaps would draw nothing."""
    values = [None, 2.0, None, 4.0, None, 6.0]
    runs = [
        {
            "run": f"s/sgd/seed={seed}",
            "setting": "s",
            "arm": "sgd",
            "hyper": {},
            "seed": seed,
            "status": "done",
            "first_bad_task": None,
            "accuracy": [0.5] * 6,
            "loss": [1.0] * 6,
            "measures": {"sharpness": values},
        }
        for seed in range(2)
    ]
    (line,) = measure_curves(runs, ["sharpness"], window=3).axes[0].get_lines()
    assert list(line.get_xdata()) == [2, 4, 6]
    assert list(line.get_ydata()) == [2.0, 4.0, 6.0]
