"""Records made by hand for the tests of the report."""


def record(
    arm="sgd",
    seed=0,
    accuracy=(0.5, 0.6),
    *,
    setting="permuted",
    status="done",
    hyper=None,
    **others,
):
    hyper = {"learning_rate": 0.1} if hyper is None else hyper
    return {
        "run": f"{setting}/{arm}/{hyper}/seed={seed}",
        "setting": setting,
        "arm": arm,
        "hyper": hyper,
        "seed": seed,
        "status": status,
        "accuracy": list(accuracy),
        **others,
    }


def runs(arm, rows, **others):
    """One record per row of accuracies."""
    return [record(arm, seed, row, **others) for seed, row in enumerate(rows)]
