"""What arrives: image sets, and the streams of tasks made of them."""

from jaxcl.streams.classes import class_pairs, class_splits
from jaxcl.streams.files import (
    cifar_folder,
    idx_folder,
    load_images,
    npy_folder,
    npz_file,
)
from jaxcl.streams.rows import (
    Rows,
    Task,
    array_rows,
    jsonl_rows,
    source_rows,
    stream_tasks,
)
from jaxcl.streams.sources import (
    Images,
    as_images,
    digits,
    mean_and_std,
    only_classes,
    padded,
    subset,
)
from jaxcl.streams.stream import from_arrays, stack_plans, take_tasks, validate
from jaxcl.streams.synthetic import prototypes, synthetic_images
from jaxcl.streams.tfds import prepare_mnist, tfds_images
from jaxcl.streams.vision import (
    permuted,
    permuted_labels,
    rotations,
)

__all__ = [
    "Images",
    "Rows",
    "Task",
    "array_rows",
    "as_images",
    "cifar_folder",
    "class_pairs",
    "class_splits",
    "digits",
    "from_arrays",
    "idx_folder",
    "jsonl_rows",
    "load_images",
    "mean_and_std",
    "npy_folder",
    "npz_file",
    "only_classes",
    "padded",
    "permuted",
    "permuted_labels",
    "prepare_mnist",
    "prototypes",
    "rotations",
    "source_rows",
    "stack_plans",
    "stream_tasks",
    "subset",
    "synthetic_images",
    "take_tasks",
    "tfds_images",
    "validate",
]
