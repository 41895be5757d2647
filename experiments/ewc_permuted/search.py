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


@functools.cache
def stage_of(config: Config, name: str) -> Stage:
    """The search or the test, on images that are padded."""
    images = images_of(config)
    return Stage(config, images) if name == "test" else _search(config, images)


@functools.lru_cache(maxsize=1)
def images_of(config: Config) -> Images:
    """The images, padded."""
    images = digits() if config.data == "digits" else load_images(config.data)
    return padded(images, config.padding)


def _search(config: Config, images: Images) -> Stage:
    """Shorter runs that learn on all but the last training rows and test on those."""
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
        made |= {"strength": strength}
    return made | ({"decay": config.decay} if arm == "online-ewc" else {})


def choose(records: list[dict]) -> dict[str, float]:
    """For every arm searched, the strength with the best mean accuracy on held-out rows.

    ValueError if every run of an arm's search diverged.
    """
    searched = [record for record in records if record["setting"] == "search"]
    chosen = {}
    for arm in dict.fromkeys(record["arm"] for record in searched):
        found = {
            record["hyper"]["strength"]: np.mean(record["final"])
            for record in searched
            if record["arm"] == arm and record["status"] == "done"
        }
        lost = f"all runs of {arm}'s search diverged; give smaller ones"
        require(found, "strengths", lost)
        # Of equals the smallest.
        chosen[arm] = max(sorted(found), key=found.__getitem__)
    return chosen
