"""Answers as text, of chat templates that write something before them."""

import numpy as np
import pytest

from jaxcl.data import instruct_dataset
from jaxcl.finetune import measure
from jaxcl.finetune.measure import Words, generated
from tests.test_data.test_label_choices import thinking
from tests.tiny_tokenizers import byte_level


@pytest.mark.parametrize("make", [byte_level, thinking])
def test_what_training_teaches_is_the_answer_as_text(monkeypatch, make):
    """Oracle: the answer of the row, of which all tokens are generated."""
    tokenizer = make()
    rows = [{"prompt": "Which?", "answer": "red panda"}]
    labels = instruct_dataset(rows, tokenizer, chat=True).read(np.arange(1)).y[0]
    taught = np.asarray(labels)[np.asarray(labels) >= 0]
    monkeypatch.setattr(measure, "generate", lambda *given, **more: [taught])
    words = Words(None, tokenizer)  # pyright: ignore
    assert generated(words, {}, [[1]]) == ["red panda"]
