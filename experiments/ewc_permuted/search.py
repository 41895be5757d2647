"""The search for the strength: shorter runs that are tested on held-out training rows."""

import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from experiments.ewc_permuted.config import PENALIZED, Config
from jaxcl.data import Images, digits, load_images, padded
from jaxcl.errors import require
from jaxcl.runs.trials import Trial


class Stage(NamedTuple):
    """Where runs take place: the search on held-out rows, or the test."""

    config: Config
    images: Images


@functools.lru_cache(maxsize=1)
def images_of(config: Config) -> Images:
    """The images, padded."""
    images = digits() if config.data == "digits" else load_images(config.data)
    return padded(images, config.padding)


@functools.cache
def stage_of(config: Config, name: str) -> Stage:
    """The test, or the search: shorter runs, tested on the last training rows."""
    images = images_of(config)
    if name == "test":
        return Stage(config, images)
    rows = len(images.train_y) - config.search_rows
    total = f"the {len(images.train_y)} training rows, got {config.search_rows}"
    wanted = f"must leave a batch of {config.batch_size} of {total}"
    require(rows >= config.batch_size, "search_rows", wanted)
    # The test images are not looked at before the strength is chosen.
    held_out = images._replace(
        train_x=images.train_x[:rows],
        train_y=images.train_y[:rows],
        test_x=images.train_x[rows:],
        test_y=images.train_y[rows:],
    )
    shorter = replace(
        config,
        num_tasks=config.search_tasks,
        iterations=config.search_iterations,
        fisher_examples=config.search_fisher_examples,
    )
    return Stage(shorter, held_out)


def search_trials(config: Config) -> list[Trial]:
    """Every arm with a penalty at every strength of the grid; none if it is given."""
    if config.strength is not None:
        return []
    return [
        Trial("search", arm, numbers(config, arm, value), config.search_seed)
        for arm in config.arms
        if arm in PENALIZED
        for value in config.strengths
    ]


def numbers(config: Config, arm: str, strength: float | None) -> dict[str, float]:
    """The numbers that make an arm what it is."""
    made = {"learning_rate": config.learning_rate}
    if strength is not None:
        made["strength"] = strength
    return made | ({"decay": config.decay} if arm == "online-ewc" else {})


def choose(records: list[dict]) -> dict[str, float]:
    """For every arm searched, the strength with the best mean accuracy on held-out rows.

    ValueError if every run of an arm's search diverged.
    """
    found: dict[str, dict[float, float]] = {}
    for record in records:
        if record["setting"] == "search":
            means = found.setdefault(record["arm"], {})
            if record["status"] == "done":
                means[record["hyper"]["strength"]] = float(np.mean(record["final"]))
    for arm, means in found.items():
        lost = f"all runs of {arm}'s search diverged; give smaller ones"
        require(means, "strengths", lost)
    best = lambda means: max(
        sorted(means), key=means.__getitem__
    )  # of equals the least
    return {arm: best(means) for arm, means in found.items()}
