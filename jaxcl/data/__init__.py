"""Datasets, image sets, and streams of tasks made of them."""

from jaxcl.data.boundaries import blurry, gradual, task_free
from jaxcl.data.choices import Choices, read_choices
from jaxcl.data.classes import class_pairs, class_splits, split_sizes
from jaxcl.data.conll import Sentence, entity_types, read_conll, tag_names
from jaxcl.data.dataset import (
    Dataset,
    Task,
    array_dataset,
    jsonl_dataset,
    source_dataset,
    stream_tasks,
)
from jaxcl.data.files import load_images
from jaxcl.data.images import (
    Images,
    as_images,
    digits,
    mean_and_std,
    only_classes,
    padded,
    subset,
)
from jaxcl.data.instruct import Prompts, instruct_dataset, instruct_prompts
from jaxcl.data.numbering import number_tasks
from jaxcl.data.permuted import permuted, permuted_labels, rotations
from jaxcl.data.stream import from_arrays, joint, stack_plans, stack_tasks, take_tasks
from jaxcl.data.subsets import random_row_numbers, random_rows, train_valid_split
from jaxcl.data.synthetic import prototypes, synthetic_images
from jaxcl.data.tables import csv_dataset, csv_tasks, encode_labels
from jaxcl.data.tagging import tagging_dataset
from jaxcl.data.text import label_names, text_dataset
from jaxcl.data.tfds import prepare_mnist, tfds_images
from jaxcl.data.tokens import load_tokenizer
from jaxcl.data.validation import validate
from jaxcl.data.widths import (
    choose_widths,
    padding_fraction,
    row_lengths,
    share_widths,
)

__all__ = [
    "Choices",
    "Dataset",
    "Images",
    "Prompts",
    "Sentence",
    "Task",
    "array_dataset",
    "as_images",
    "blurry",
    "choose_widths",
    "class_pairs",
    "class_splits",
    "csv_dataset",
    "csv_tasks",
    "digits",
    "encode_labels",
    "entity_types",
    "from_arrays",
    "gradual",
    "instruct_dataset",
    "instruct_prompts",
    "joint",
    "jsonl_dataset",
    "label_names",
    "load_images",
    "load_tokenizer",
    "mean_and_std",
    "number_tasks",
    "only_classes",
    "padded",
    "padding_fraction",
    "permuted",
    "permuted_labels",
    "prepare_mnist",
    "prototypes",
    "random_row_numbers",
    "random_rows",
    "read_choices",
    "read_conll",
    "rotations",
    "row_lengths",
    "share_widths",
    "source_dataset",
    "split_sizes",
    "stack_plans",
    "stack_tasks",
    "stream_tasks",
    "subset",
    "synthetic_images",
    "tag_names",
    "tagging_dataset",
    "take_tasks",
    "task_free",
    "text_dataset",
    "tfds_images",
    "train_valid_split",
    "validate",
]
