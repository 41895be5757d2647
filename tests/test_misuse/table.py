"""Correct objects for the tables of wrong calls, and the check of one call."""

import jax
import numpy as np
import optax
import pytest

from jaxcl import data, losses, training
from jaxcl.method import make_method
from jaxcl.models import mlp
from jaxcl.tree import as_batch, at

KEY, SGD = jax.random.key(0), optax.sgd(0.1)
X, Y = np.zeros((4, 1, 3), np.uint8), np.array([0, 1, 0, 1])
IMAGES = data.as_images(X, Y, X, Y)
STREAM = data.permuted(KEY, IMAGES, num_tasks=3)
MODEL = mlp((3, 4, 2))
PARAMS = MODEL.init(KEY)
OUTPUTS = losses.single_head(MODEL.apply)
LOSS = losses.cross_entropy(OUTPUTS)
BATCH = as_batch(np.ones((4, 3), np.float32), Y)
ROW, PAIR = at(0, BATCH), (BATCH.x, BATCH.y)
METHOD = make_method(LOSS, SGD)
STATE = METHOD.init(PARAMS, BATCH)
SIZES = {"num_steps": 1, "batch_size": 2}
OPTIONS = training.Options(**SIZES)
TASKS = data.stream_tasks(STREAM)
NAN = float("nan")


def loss_of(batch, loss=LOSS):
    return losses.mean_loss(loss, PARAMS, batch, KEY)


def refused(table):
    """One test for each ``(call, pattern of the message)``."""
    ids = [words for _, words in table]
    return pytest.mark.parametrize(("call", "words"), table, ids=ids)


def assert_raises(call, words):
    """The call raises an error of Python's, whose message and notes match."""
    with pytest.raises((TypeError, AttributeError, ValueError), match=f"(?s){words}"):
        call()


def assert_refused(call, words):
    """The call raises a ValueError whose message matches and has one line."""
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
