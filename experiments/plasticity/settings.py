"""The settings: which tasks arrive, and which outputs they are learned with."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.plasticity.config import Config
from jaxcl.data import (
    Images,
    class_pairs,
    class_splits,
    digits,
    load_images,
    only_classes,
    permuted,
    permuted_labels,
    stack_plans,
    subset,
    tfds_images,
    validate,
)
from jaxcl.errors import require
from jaxcl.losses import heads, single_head
from jaxcl.models import mlp, resnet
from jaxcl.training.device import steps_for
from jaxcl.tree import at, num_rows, num_tasks
from jaxcl.typing import Model, Outputs, Stream

SPLIT_CLASSES = 5  # classes per task of class-splits: 20 tasks of CIFAR-100
LABEL_CLASSES = 10  # of permuted-labels: a hundred cannot be learned in one short task
#: Settings whose tasks come in one order for all seeds: a slope of accuracy is first of
#: all that of the tasks' difficulty. Elsewhere every seed draws its own tasks.
IN_ONE_ORDER = ("pairs-new-head", "pairs-one-head")


class Setting(NamedTuple):
    """Tasks for all seeds, and how a network reads them."""

    name: str
    streams: Stream  # plan leaves [s, T, ...], the pool shared by the seeds
    num_tasks: int
    num_steps: int  # per task
    outputs: Callable[[Callable], Outputs]  # from `apply`
    num_inputs: int
    num_outputs: int


class Kind(NamedTuple):
    """How a setting is made, for one seed, of the images."""

    build: Callable[..., Stream]
    classes_per_task: int | None = None  # where tasks are classes
    own_heads: bool = False  # whether each task has outputs of its own
    some_classes: int | None = None  # of the set, drawn once; all if None


def load(config: Config) -> Images:
    """The images that ``config.data`` names."""
    if config.data == "digits":
        return digits()
    if config.data.startswith("tfds:"):
        folder = Path.home() / "tensorflow_datasets"
        return tfds_images(config.data.removeprefix("tfds:"), folder)
    return load_images(config.data)


def make_setting(name: str, config: Config, images: Images) -> Setting:
    """Build one setting for all seeds; ValueError for data that cannot make it."""
    kind = SETTINGS[name]
    images = _fewer(config, images, kind)
    # These are the keys of the runs, too (`fold_in(key, seed)` in run.py). It does no
    # harm: a stream seeds numpy's generator with the key's data, a run gives the key to
    # jax.random, so the two draw unrelated numbers. Other keys would be other results.
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    flat = not config.resnet_width
    streams = [kind.build(key, config, images, flat=flat) for key in keys]
    validate(streams[0])
    total = num_tasks(streams[0].plan)
    first = jax.eval_shape(streams[0].train, streams[0].pool, at(0, streams[0].plan))
    rows = num_rows(first)
    classes = streams[0].num_classes
    own = lambda apply: heads(apply, classes)  # fresh ones, when each task begins
    return Setting(
        name,
        stack_plans(streams),
        min(total, config.task_limit or total),
        steps_for(rows, batch_size=config.batch_size, num_epochs=config.num_epochs),
        own if kind.own_heads else single_head,
        int(np.prod(images.train_x.shape[1:])),
        classes * (total if kind.own_heads else 1),
    )


def make_model(config: Config, setting: Setting, **options) -> Model:
    """The network of a setting; ``options`` go to :func:`jaxcl.models.mlp`."""
    if config.resnet_width:
        return resnet(setting.num_outputs, width=config.resnet_width, stem_stride=2)
    sizes = (setting.num_inputs, *config.hidden, setting.num_outputs)
    return mlp(sizes, **options)


def _fewer(config: Config, images: Images, kind: Kind) -> Images:
    """Some of the classes, and at most the configured number of images.

    Per class where tasks are classes.
    """
    key = jax.random.key(config.seed)
    if kind.some_classes and kind.some_classes < images.num_classes:
        order = np.asarray(jax.random.permutation(key, images.num_classes))
        images = only_classes(images, order[: kind.some_classes])
    options = {}
    if config.test_examples and not kind.classes_per_task:
        options["num_test"] = min(config.test_examples, len(images.test_y))
    if config.examples_per_task and kind.classes_per_task:
        smallest = int(np.bincount(images.train_y).min())
        share = max(1, config.examples_per_task // kind.classes_per_task)
        options |= {"num_train": min(share, smallest), "per_class": True}
    return subset(images, key=key, **options) if options else images


def _drawn(make: Callable[..., Stream]):
    """As many tasks as are asked for, each of at most so many images."""

    def build(key, config, images, **options):
        count = config.examples_per_task
        options["num_examples"] = count and min(count, len(images.train_y))
        return make(key, images, num_tasks=config.num_tasks, **options)

    return build


def _pairs(key, config, images, **options):
    del key, config  # pairs and order are fixed; seeds differ in start and batches
    return class_pairs(images, **options)


def _class_splits(key, config, images, **options):
    del config
    tasks, left_over = divmod(images.num_classes, SPLIT_CLASSES)
    came = f"got images of {images.num_classes} classes"
    wanted = f"class-splits has {SPLIT_CLASSES} classes per task"
    remedy = "leave the setting out or give other data"
    require(tasks and not left_over, "settings", f"{wanted}, {came}; {remedy}")
    return class_splits(key, images, num_tasks=tasks, **options)


SETTINGS = {
    "permuted": Kind(_drawn(permuted)),
    "pairs-new-head": Kind(_pairs, classes_per_task=2, own_heads=True),
    "pairs-one-head": Kind(_pairs, classes_per_task=2),
    "class-splits": Kind(_class_splits, classes_per_task=SPLIT_CLASSES),
    "permuted-labels": Kind(_drawn(permuted_labels), some_classes=LABEL_CLASSES),
}
