"""Wrong calls of the builders of images, streams and datasets."""

import jax
import numpy as np
import pandas as pd

from jaxcl import data
from jaxcl.data.draws import generator
from jaxcl.tree import as_batch
from jaxcl.typing import Batch
from tests.test_misuse.table import (
    BATCH,
    IMAGES,
    KEY,
    NAN,
    PAIR,
    STREAM,
    TASKS,
    X,
    Y,
    assert_refused,
    refused,
)


def toy(n, m, classes):
    """A set of ``n`` and ``m`` black images, its classes in turn."""
    x, y = np.zeros((n + m, 6, 5), np.uint8), np.arange(n + m) % classes
    return data.as_images(x[:n], y[:n], x[n:], y[n:], name="toy")


TOY, TOY_3 = toy(20, 9, 4), toy(30, 12, 3)
PIXELS, LABELS = np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 2, 0])
LAST = np.arange(3)[:, None] == 2  # rows of the last task
WEIGHT = np.ones((3, 4), np.float32)


def permuted(key=KEY, images=IMAGES, num_tasks=2, **changes):
    return data.permuted(key, images, num_tasks=num_tasks, **changes)


def pairs(*chosen, **changes):
    return data.class_pairs(TOY._replace(**changes), pairs=chosen)


def split(images=IMAGES, **given):
    return data.class_splits(KEY, images, **given)


def bad_images(train_x=PIXELS, train_y=LABELS, test_x=PIXELS, test_y=LABELS, **given):
    return data.as_images(train_x, train_y, test_x, test_y, name="bad", **given)


def stacks(tasks=3, rows=4, **changes):
    """Tasks of zeros, ``[tasks, rows, ...]``."""
    number = np.repeat(np.arange(tasks, dtype=np.int32)[:, None], rows, 1)
    x, y = np.zeros((tasks, rows, 2), np.float32), np.zeros((tasks, rows), np.int32)
    batch = Batch(x, y, np.ones((tasks, rows), np.float32), number)
    return batch._replace(**changes)


def from_arrays(train, test):
    return data.from_arrays(train, test, num_classes=5, name="made")


def made(**changes):
    return from_arrays(stacks(**changes), stacks(rows=2))


def spoiled(pool, plan):
    """Training rows whose inputs are divided by zero."""
    batch = made().train(pool, plan)
    return batch._replace(x=batch.x / 0)


def short(pool, plan):
    """Test rows with one label too few."""
    batch = made().test(pool, plan)
    return batch._replace(y=batch.y[1:])


def validate(**parts):
    return data.validate(made()._replace(**parts))


def rows_of(task, **changes):
    weight = changes.pop("weight", None)
    x, y = np.zeros((3, 2), np.float32), np.zeros(3, int)
    return as_batch(x, y, weight=weight, task=task)._replace(**changes)


def stacked(tasks):
    return data.stack_tasks(tasks, num_classes=2)


def stacked_with(**changes):
    return stacked([(rows_of(0), rows_of(0)), (rows_of(1, **changes), rows_of(1))])


def parted(rows=BATCH, fraction=0.5, key=KEY, **given):
    return data.train_valid_split(key, rows, valid_fraction=fraction, **given)


FRAME = pd.DataFrame({"a": [1.5, 2.0], "b": [True, False], "kind": ["u", "v"]})
TEXT = np.array(["cat", "dog", "cat"])
PAIR_OF_TASKS = np.ones((3, 4, 2), np.float32), np.zeros((3, 4), int)
WIDER_PAIR = np.ones((3, 4, 3), np.float32), PAIR_OF_TASKS[1]
INTEGER_PAIR = PAIR_OF_TASKS[0].astype(int), PAIR_OF_TASKS[1]


def csv(frame=FRAME, label="b", columns=("a",), classes=None, **changes):
    """A dataset of two rows, with columns of the table changed."""
    if changes and isinstance(frame, pd.DataFrame):
        frame = frame.assign(**changes)
    return data.csv_dataset(frame, label=label, columns=columns, classes=classes)


def by_place(places, table=FRAME, **given):
    frame = pd.concat([table, table])
    frame = frame.assign(place=places[: len(frame)])
    given = {"label": "b", "task": "place", "test_fraction": 0.5, **given}
    return data.csv_tasks(KEY, frame, **given)


UNNUMBERED = [data.Task(name, *[data.array_dataset(BATCH)] * 2) for name in "ab"]
UNNUMBERED[1] = UNNUMBERED[1]._replace(
    train=data.array_dataset(BATCH._replace(x=0 * BATCH.x))
)


def parse(item):
    return np.ones(1) * item, 0


REFUSED = [
    # images
    (lambda: data.as_images(X, [[0], [1, 2]], X, Y), "lists of equal length"),
    (lambda: data.as_images(X, Y, X, Y, num_classes=2.0), "num_classes must"),
    (lambda: data.subset(IMAGES, num_train=2.0), r"in \[1, 4\], got 2.0"),
    *[
        (
            lambda share=share: data.digits(test_fraction=share),
            "digits: test_fraction must",
        )
        for share in (0.0, 1.0, -1.0, NAN)
    ],
    (
        lambda: data.subset(TOY_3, num_train=31),
        r"subset: toy: .*must lie in \[1, 30\], got 31",
    ),
    *[
        (
            lambda width=width: data.padded(TOY, width),
            f"padded: width must be an int of at least 0, .* got {width}",
        )
        for width in (-1, 0.5, None)
    ],
    (lambda: data.subset(TOY_3, num_train=X), r"must lie in \[1, 30\], got ndarray"),
    (lambda: data.subset(TOY_3, num_train=0), r"must lie in \[1, 30\], got 0"),
    (
        lambda: data.subset(TOY_3, num_test=5, per_class=True),
        r"subset: toy: .*must lie in \[1, 4\], got 5",
    ),
    *[
        (
            lambda classes=classes: data.only_classes(TOY_3, classes),
            f"only_classes: toy: .*{words}",
        )
        for classes, words in (
            ([], "name at least one"),
            ([1, 1], "each once"),
            ([0, 3], r"leave out \[3\]"),
            ([-1], r"leave out \[-1\]"),
            ([0.5], r"leave out \[0.5\]"),
            ([1.0], r"leave out \[1.0\]"),
            (1, "a list of different ones .* got 1; name"),
            (3, r"got 3; leave out \[3\]"),
            ([[1, 2]], r"got \[\[1, 2\]\]; name"),
            ("a", "classes must be an array of numbers, .* got 'a'"),
        )
    ],
    *[
        (
            lambda changes=changes: bad_images(**changes),
            f"as_images: bad: .*{words}",
        )
        for changes, words in (
            ({"train_x": PIXELS * 1.0}, "train pixels must be uint8.*got float64"),
            ({"test_x": PIXELS * NAN}, "test pixels must be uint8.*got float"),
            (
                {"train_y": LABELS[:3]},
                r"one for each image, got int64 \[3\] for \[4, 2, 2",
            ),
            (
                {"train_x": PIXELS[:0], "train_y": LABELS[:0]},
                r"n > 0, got uint8 \[0, 2, 2\]",
            ),
            ({"test_x": PIXELS[:, :1]}, r"same shape, got \[2, 2\] and \[1, 2\]"),
            (
                {"train_x": PIXELS[0], "train_y": LABELS[:2]},
                r"must be uint8 \[n, h, w\]",
            ),
            ({"train_y": LABELS - 1}, r"labels must lie in \[0, 3\), got -1 to 2"),
            ({"num_classes": 2}, r"must lie in \[0, 2\), got 0 to 2"),
            ({"train_y": LABELS / 2}, r"labels must be integers \[n\].* float64"),
            ({"train_y": np.eye(4, dtype=int)}, r"labels must be integers \[n\]"),
        )
    ],
    # streams
    (lambda: permuted(key=0), "one JAX key, got 0"),
    (lambda: permuted(images=(X, Y)), "images must be of type Images, .* by as_images"),
    (lambda: permuted(key=jax.random.split(KEY)), "one JAX key, got"),
    (lambda: permuted(num_tasks="2"), "num_tasks must be"),
    *[
        (
            lambda x=x, y=y: from_arrays((x, y), (x, y)),
            "from_arrays: all leaves of train must start .* stack_tasks",
        )
        for x, y in (
            (np.ones((3, 4, 2)), np.zeros((3, 5), int)),
            (np.ones((2, 6, 2)), np.zeros((3, 4), int)),
            (np.ones(4), np.zeros(4, int)),
        )
    ],
    (lambda: data.take_tasks(STREAM, 1), "permuted-images has tasks 0 to 2, got 1"),
    (lambda: data.take_tasks(STREAM, [True, False, True]), "got .True, False, True"),
    (
        lambda: jax.jit(lambda key: (generator(key), key)[1])(KEY),
        "known before tracing.*stack_plans",
    ),
    (lambda: permuted(num_tasks=0), "permuted: num_tasks must be an int of at"),
    (
        lambda: permuted(images=TOY, num_examples=21),
        r"permuted: num_examples must lie in \[1, 20\].*got 21",
    ),
    (
        lambda: permuted(images=TOY._replace(num_classes=3)),
        r"toy: labels must lie in \[0, 3\), got 0 to 3",
    ),
    (
        lambda: data.permuted_labels(KEY, TOY, num_tasks=1, num_examples=0),
        "permuted_labels: num_examples",
    ),
    (lambda: data.rotations(TOY, []), "rotations: angles must be one finite number"),
    (lambda: data.rotations(TOY, ["a"]), "rotations: angles must be an array of num"),
    (lambda: data.rotations(TOY, [NAN]), r"rotations: angles .* got \[nan\]"),
    (
        lambda: data.rotations(TOY, [0.0], normalise=(0.5, 0.0)),
        "normalise must be finite",
    ),
    *[
        (
            lambda wrong=wrong: data.class_pairs(TOY, normalise=wrong),
            f"toy: normalise must be .*{words}",
        )
        for wrong, words in (
            (3, r"\(mean, std > 0\), .* got 3; mean_and_std"),
            ((0.5,), r"got \(0.5,\); mean_and_std"),
            (("a", "b"), "an array of numbers, .* got 'a'"),
        )
    ],
    (
        lambda: data.rotations(TOY, [0.0], normalise=(np.zeros(3), np.ones(3))),
        r"normalise must be .*\[\] channels",
    ),
    (lambda: pairs((0, 4)), r"classes of 0 to 3, got \(0, 4\)"),
    (lambda: pairs((0, 1), (2, 2)), r"different.*got \(2, 2\)"),
    *[
        (
            lambda wrong=wrong: data.class_pairs(TOY, pairs=wrong),
            f"class_pairs: pairs must .*{words}",
        )
        for wrong, words in (
            ((), r"got \(\); give"),
            ([0, 1], r"0 to 3, got \[0, 1\]; give .*"),
            (3, "got 3; give"),
            ([(0, 1, 2)], r"got \[\(0, 1, 2\)\]; give"),
            ([(0.0, 1.0)], r"got \[\(0.0, 1.0\)\]"),
            ([(0, 1), (1,)], r"lists of equal length, got"),
        )
    ],
    (
        lambda: data.class_pairs(TOY._replace(num_classes=6)),
        "class 4 of toy lacks some",
    ),
    (
        lambda: split(TOY, num_tasks=5),
        r"num_tasks must be an int in \[1, 4\], .* got 5",
    ),
    (
        lambda: data.split_sizes(3, 5),
        r"split_sizes: num_tasks must be an int in \[1, 3\], .* got 5",
    ),
    (lambda: data.split_sizes(2.5, 1), "split_sizes: num_classes must be an int of"),
    (lambda: split(TOY), "either num_tasks or sizes, got None and None"),
    (
        lambda: split(TOY, num_tasks=2, sizes=(2, 2)),
        r"either num_tasks or sizes, got 2 and \(2, 2\)",
    ),
    (lambda: split(TOY, sizes=(3, 2)), r"at most the 4 classes, got \(3, 2\)"),
    (lambda: split(TOY, sizes=(3, 0)), r"above 0 .* got \(3, 0\)"),
    (lambda: split(TOY, sizes=()), r"above 0 .* got \(\)"),
    (
        lambda: split(TOY, num_tasks=0),
        r"num_tasks must be an int in \[1, 4\], .* got 0",
    ),
    (
        lambda: split(TOY._replace(num_classes=5), num_tasks=5),
        "class_splits: every class needs .* class 4",
    ),
    (lambda: split(sizes=[1.0, 1.0]), r"sizes must be .* got \[1.0, 1.0\]; give"),
    (
        lambda: split(num_tasks=1.0),
        r"class_splits: num_tasks must be an int in \[1, 2\], .* got 1.0",
    ),
    (
        lambda: stacked([PAIR]),
        "train of task 0: expected a Batch .* got ArrayImpl|ndarr",
    ),
    (
        lambda: from_arrays(stacks(), stacks(tasks=2)),
        "from_arrays: .*same number of tasks, got 3 and 2",
    ),
    (lambda: from_arrays(stacks(rows=0), stacks()), "from_arrays: .*both above 0"),
    # Weights beside a pair would be dropped, and an array read as two of its tasks.
    (
        lambda: from_arrays((*PAIR_OF_TASKS, np.ones((3, 4))), PAIR_OF_TASKS),
        "train must be .x, y. or a Batch, got tuple; give",
    ),
    (
        lambda: from_arrays(PAIR_OF_TASKS[0], PAIR_OF_TASKS),
        "train must be .x, y. or a Batch, got ndarray; give",
    ),
    (
        lambda: from_arrays(([X[:2], X[:3]], [Y[:2], Y[:3]]), PAIR_OF_TASKS),
        r"from_arrays: all tasks of train .* got \[2, 3\]; take stack_tasks",
    ),
    *[
        (
            lambda task=task: stacked([task]),
            f"stack_tasks: each task must be .train, test. or a Task, got {words}; give",
        )
        for task, words in (((BATCH,), "tuple"), (BATCH, "Batch"), (3, "3"))
    ],
    (lambda: stacked([]), "stack_tasks: expected at least one task, got none"),
    (lambda: data.stack_plans([]), "stack_plans: needs at least one stream, got none"),
    (
        lambda: data.validate(from_arrays(PAIR_OF_TASKS, WIDER_PAIR)),
        r"train and test inputs must have one format, got .*\[2\].*\[3\]",
    ),
    (
        lambda: data.validate(from_arrays(PAIR_OF_TASKS, INTEGER_PAIR)),
        "train and test inputs must have one format, got .*float.*int",
    ),
    (
        lambda: data.validate(made(y=np.full((3, 4), 2**32 - 1, np.uint32))),
        r"labels in the train set of task 0 must lie in \[0, 5\), got 4294967295",
    ),
    (
        lambda: from_arrays(stacks(y=np.zeros((3, 5), int)), stacks()),
        "from_arrays: .*leaves of train must",
    ),
    (
        lambda: from_arrays(*[Batch(*[np.ones(3, np.float32)] * 4)] * 2),
        r"from_arrays: .* \[tasks, rows\]",
    ),
    *[
        (
            lambda tasks=tasks: data.take_tasks(STREAM, tasks),
            f"take_tasks: permuted-images has tasks 0 to 2, got {words}",
        )
        for tasks, words in (
            (slice(3, 3), "none"),
            ([], "none"),
            ([3], r"\[3\]"),
            ([-4], r"\[-4\]"),
            (np.array([False, True, True]), r"\[False, True, True\]"),
            (np.array([0.0, 1.0]), r"\[0.0, 1.0\]"),
            (np.array([[0, 1]]), r"\[\[0, 1\]\]"),
            (np.array(2), "2"),
        )
    ],
    *[
        (lambda streams=streams: data.stack_plans(streams()), f"stack_plans: .*{words}")
        for streams, words in (
            (lambda: [permuted(), permuted(num_tasks=3)], "another .* plan shapes"),
            (
                lambda: [permuted(), permuted(images=IMAGES._replace(test_x=255 - X))],
                "another .* or pool",
            ),
            (lambda: [permuted(), data.class_pairs(IMAGES)], "another name"),
        )
    ],
    *[
        (
            lambda changes=changes: data.validate(made(**changes)),
            f"validate: made: .*{words}",
        )
        for changes, words in (
            (
                {"x": np.full((3, 4, 2), np.nan, np.float32)},
                "pool must hold finite numbers only",
            ),
            (
                {"y": np.where(LAST, 5, np.zeros((3, 4), np.int32))},
                r"task 2 must lie in \[0, 5\), got 5 to 5",
            ),
            (
                {"y": np.where(LAST, -1, np.zeros((3, 4), np.int32))},
                r"train set of task 2 .* got -1 to -1",
            ),
            (
                {"weight": WEIGHT * ~LAST},
                "weights in the train set of task 2 must be .* some above 0",
            ),
            (
                {"weight": WEIGHT - 2 * LAST},
                "weights in the train set of task 2 must be",
            ),
            (
                {"weight": WEIGHT[..., None]},
                r"all leaves of a train batch must start with \[rows\]",
            ),
        )
    ],
    (
        lambda: validate(train=spoiled),
        "train inputs of task 0 must hold finite",
    ),
    (
        lambda: validate(test=short),
        "all leaves of a test batch must start with",
    ),
    *[
        (
            lambda changes=changes: stacked_with(**changes),
            f"stack_tasks: .*{words}",
        )
        for changes, words in (
            (
                {"x": np.ones((3, 4), np.float32)},
                r"train rows of task 1 must be like those of task 0, x float32\[2\] and "
                r"y int32\[\], got x float32\[4\] and y int32\[\]; pad or cast",
            ),
            ({"x": np.ones((3, 2), np.int8)}, r"got x int8\[2\] and y"),
            (
                {"x": {"a": np.ones((3, 2), np.float32)}},
                r"got x {'a': 'float32\[2\]'} and y",
            ),
            (
                {"weight": np.zeros(3)},
                "train of task 1 must have rows of weight abo",
            ),
            ({"y": np.zeros(2, int)}, "train of task 1: expected a Batch"),
        )
    ],
    # datasets and subsets
    (
        lambda: data.array_dataset(PAIR),
        "array_dataset: expected a Batch .* got tuple",
    ),
    (lambda: parted(PAIR), "train_valid_split: expected a Batch .* got tuple"),
    (lambda: parted(BATCH, key=0), "train_valid_split: key must be one JAX"),
    (lambda: data.random_rows(0, BATCH, 2), "random_rows: key must be one JAX key"),
    (lambda: data.random_rows(KEY, BATCH, 0), "random_rows: count must be an int"),
    (
        lambda: data.random_row_numbers(KEY, 0, 2),
        "random_row_numbers: num_rows must be an int of at least 1, .* got 0",
    ),
    *[
        (
            lambda task=task: data.jsonl_dataset("a.jsonl", parse, task=task),
            f"jsonl_dataset: task must be an int .* got {task!r}",
        )
        for task in (-1, "0", None)
    ],
    *[
        (
            lambda task=task: data.source_dataset([1.0], parse, task=task),
            f"source_dataset: task must be an int .* got {task!r}",
        )
        for task in (-1, "0", None)
    ],
    (
        lambda: data.source_dataset([], parse, task=0),
        "source_dataset: expected items, got none; drop the task",
    ),
    (
        lambda: data.source_dataset(iter([1.0]), parse, task=0),
        "source_dataset: source must be of type Source, got list_iterator; give a list",
    ),
    (
        lambda: data.array_dataset(BATCH._replace(weight=0 * BATCH.weight)),
        "array_dataset: expected rows with a weight above 0",
    ),
    *[
        (
            lambda wrong=wrong, call=call: call(wrong),
            rf"{name} must be a number in \(0, 1\), got {wrong!r}",
        )
        for wrong in ("0.1", None, True, 1)
        for name, call in (
            ("train_valid_split: valid_fraction", lambda f: parted(fraction=f)),
            (
                "csv_tasks: test_fraction",
                lambda f: by_place([1, 1, 2, 2], test_fraction=f),
            ),
        )
    ],
    (lambda: parted(fraction=0.0), r"a number in \(0, 1\), got 0"),
    (lambda: parted(fraction=1.0), r"a number in \(0, 1\), got 1"),
    (lambda: parted(fraction=NAN), "valid_fraction must be .* got nan"),
    (
        lambda: parted(as_batch(np.ones((1, 2)), [0])),
        "train_valid_split: needs at least two rows .* got 1",
    ),
    (
        lambda: parted(BATCH._replace(weight=0 * BATCH.weight)),
        "train_valid_split: needs at least two rows .* got 0",
    ),
    (
        lambda: parted(as_batch(np.ones((3, 2)), np.ones((3, 2))), stratify=True),
        r"y must be class numbers \[n\], got float32\[3, 2\]",
    ),
    (
        lambda: data.synthetic_images(KEY, num_train=0),
        "synthetic_images: num_train must be an int of at least 1",
    ),
    (
        lambda: data.prototypes(KEY, num_train=0),
        "prototypes: num_train must be an int",
    ),
    (lambda: data.prototypes(KEY, num_features="a"), "num_features must be an int"),
    (lambda: data.prototypes(KEY, noise="a"), "prototypes: noise must be a finite num"),
    (
        lambda: data.synthetic_images(KEY, noise=10**400),
        "synthetic_images: noise must be a finite number .* got int",
    ),
    (lambda: data.load_images(None), "load_images: expected a path, got None; give"),
    (
        lambda: data.jsonl_dataset(None, parse, task=0),
        "jsonl_dataset: expected a path, got None; give",
    ),
]

CLASSES = "number the classes with jaxcl.data.encode_labels"
REFUSED += [
    # text and objects
    *[
        (
            lambda y=y: as_batch(np.zeros((len(y), 2)), y),
            f"as_batch: y .*'cat'.*{CLASSES}",
        )
        for y in (TEXT, TEXT.tolist(), TEXT[:2].astype(object))
    ],
    (lambda: as_batch(np.zeros((121, 2)), ["cat"] * 121), f"y must .*'cat'; {CLASSES}"),
    (lambda: as_batch(np.zeros((3, 2)), pd.Series(TEXT)), f"got Series; {CLASSES}"),
    (
        lambda: as_batch(np.zeros((3, 2), object), [0, 1, 0]),
        "as_batch: x must hold num",
    ),
    (
        lambda: as_batch(FRAME, [0, 1]),
        "x must .* text or objects in column 'kind'; enc",
    ),
    (
        lambda: as_batch([1, 2], pd.Series([1, None], dtype="Int64")),
        "as_batch: expected a table of numbers, none missing",
    ),
    (
        lambda: data.array_dataset(BATCH._replace(x=np.zeros((4, 3), object))),
        "array_dataset: x must hold numbers, got ndarray",
    ),
    (lambda: stacked_with(y=TEXT), f"train of task 1: y must .*{CLASSES}"),
    (lambda: made(y=np.full((3, 4), "cat")), f"from_arrays: train: y .*{CLASSES}"),
    *[
        (
            lambda y=y: from_arrays((X, y), (X, y)),
            f"from_arrays: train: y must .*{CLASSES}",
        )
        for y in ([["cat"] * 3] * 4, np.full((4, 3), "cat"))
    ],
    # classes
    *[
        (lambda given=given: data.encode_labels(*given), f"encode_labels: {words}")
        for given, words in (
            ((["cat", None],), "label 1, None, is none of the 1 classes"),
            (([0.0, NAN],), "label 1, nan, is none of the 1 classes"),
            (
                (["cat", "cow"], ["cat"]),
                "label 1, 'cow', is none of the 1 classes; add",
            ),
            ((["cat"], ["cat", "cat"]), r"classes \['cat'\] are listed twice"),
            (
                (["a", 1],),
                "expected labels that can be sorted, .*TypeError.*; give clas",
            ),
            ((["a"], 3), "expected .* a list of classes .*TypeError: .* 3 "),
            (
                ([["a"], ["b", "c"]],),
                "expected labels that can be sorted, .*unhashable",
            ),
        )
    ],
    # boundaries
    *[
        (lambda wrong=wrong: data.blurry(KEY, TASKS, minor_fraction=wrong), words)
        for wrong, words in (
            (1.0, r"blurry: minor_fraction must be a number in \[0, 1\), got 1.0"),
            (-0.1, r"blurry: minor_fraction must .* got -0.1"),
            (NAN, r"blurry: minor_fraction must .* got nan"),
            (None, r"blurry: minor_fraction must .* got None"),
            ("0.1", r"blurry: minor_fraction must .* got '0.1'"),
        )
    ],
    (
        lambda: data.gradual(KEY, TASKS, overlap=1.1),
        r"overlap must be .*\[0, 1\], got 1.1",
    ),
    (
        lambda: data.gradual(KEY, TASKS[:1], overlap=1),
        "expected at least 2 tasks, got 1",
    ),
    (lambda: data.gradual(0, TASKS, overlap=1), "key must be one JAX key, got 0"),
    (lambda: data.task_free([]), "task_free: expected at least 1 tasks, got 0"),
    *[
        (
            lambda mix=mix: mix([TASKS[1], *UNNUMBERED]),
            f"{name}: tasks 1, 2 all have number 0, the default, and others have more",
        )
        for name, mix in (
            ("blurry", lambda tasks: data.blurry(KEY, tasks, minor_fraction=0.1)),
            ("gradual", lambda tasks: data.gradual(KEY, tasks, overlap=0.1)),
            ("task_free", data.task_free),
            ("number_tasks", data.number_tasks),
        )
    ],
    (lambda: data.task_free(STREAM), "task_free: task must be of type Task, got"),
    (
        lambda: data.number_tasks([TASKS[0]._replace(train=data.Dataset(0, None))]),
        "number_tasks: task .* has no rows to learn from; drop the task",
    ),
    # tables
    *[
        (lambda given=given: csv(**given), f"csv_dataset: {words}")
        for given, words in (
            ({"frame": "no.csv"}, "no file no.csv; give the path"),
            ({"frame": FRAME[:0]}, "expected rows, got none; give a table"),
            ({"columns": ()}, r"expected a list of columns, got \(\); name"),
            ({"columns": "a"}, "expected a list of columns, got 'a'"),
            ({"columns": 3}, "expected a list of columns, got 3"),
            ({"frame": 3}, "expected a path, got 3; give the path of a CSV file"),
            (
                {"columns": ["z"]},
                "column 'z' is missing among 'a', 'b', 'kind'; name another",
            ),
            ({"frame": FRAME[["a", "a", "b"]]}, "column 'a' is there 2 times among"),
            ({"columns": None}, "column 'kind' holds no numbers, but 'u'; encode it"),
            ({"a": ["?", 1]}, "column 'a' holds no numbers, but '[?]'; encode it"),
            (
                {"a": [1, None]},
                "column 'a' has missing values.* .1., the first in row 1: nan; fi",
            ),
            (
                {"a": [1, 1e39]},
                r"column 'a' has .*numbers that float32 cannot .* in row 1: 1e\+39; fill",
            ),
            ({"a": [1, -np.inf]}, "column 'a' has .*numbers .* in row 1: -inf"),
            (
                {"label": "kind"},
                r"column 'kind' holds 2 labels, .* give classes=\['u', 'v",
            ),
            (
                {"b": [0, 2**31]},
                "column 'b' has numbers .* in row 1: 2147483648; encode",
            ),
            ({"b": [0, -1]}, "column 'b' has numbers .* in row 1: -1; encode"),
            (
                {"label": "kind", "classes": ["u"]},
                r"column 'kind' has labels that are none of .* in row 1: 'v'; add them",
            ),
            ({"label": "kind", "classes": 3}, "expected .* a list of classes"),
            (
                {"label": "kind", "classes": ["u", "u"]},
                r"classes \['u'\] are listed twice",
            ),
            (
                {"b": [0.5, None]},
                r"column 'b' has missing values.* .1.*drop .*\(frame.dropna\(subset",
            ),
            (
                {"b": [3, 0], "classes": ["u", "v"]},
                r"column 'b' holds numbers, classes are text; leave .* classes=\[3, 0\]",
            ),
            (
                {"frame": FRAME.rename(columns={"a": "Unnamed: 0"}), "columns": None},
                r"column 'Unnamed: 0' is an index that was saved; .* to_csv\(index=False",
            ),
        )
    ],
    (
        lambda: by_place(["x", "x", None, "y"], columns=["a"]),
        "'place' has missing values .1., the first in row 0",  # the index repeats
    ),
    (
        lambda: by_place(["x", "x", "x", "y"], columns=["a"]),
        "'place' has too few rows of 'y', 1; a task needs",
    ),
    (
        lambda: by_place([1, 1, 2, 2], table=FRAME[:0]),
        "csv_tasks: expected rows, got none",
    ),
    (
        lambda: data.csv_tasks(0, FRAME, label="b", task="kind", test_fraction=0.5),
        "csv_tasks: key must be one JAX key, got 0; make it by jax.random.key",
    ),
    (
        lambda: by_place([1, 1, 2, 2], FRAME.rename(columns={"a": "Unnamed: 0"})),
        "csv_tasks: column 'Unnamed: 0' is an index that was saved",
    ),
    (
        lambda: by_place([1, 1, 2, 2]),
        "csv_tasks: column 'kind' holds no numbers",
    ),
    *[
        (lambda given=given: by_place([1, 1, 2, 2], **given), f"csv_tasks: {words}")
        for given, words in (
            ({"task": "zz"}, "column 'zz' is missing among 'a', 'b'"),
            ({"label": "zz", "columns": ["a"]}, "column 'zz' is missing among"),
            ({"columns": ["b"]}, r"expected a list of columns, got \['b'\]; name"),
        )
    ],
]


@refused(REFUSED)
def test_the_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the message says who, what was expected and what it was."""
    assert_refused(call, words)
