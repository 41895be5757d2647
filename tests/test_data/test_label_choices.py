"""Labels as choices: their tokens are those that training teaches."""

import json

import numpy as np
import pytest

from jaxcl.data import instruct_dataset, instruct_prompts
from jaxcl.data.label_choices import label_choices
from tests.tiny_tokenizers import CHATML, SENTENCES, byte_level

LABELS = ["cat", "dog", "red panda"]
THINKING = CHATML.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}",
)


def plain(**settings):
    tokenizer = byte_level(**settings)
    tokenizer.chat_template = None
    return tokenizer


def thinking():
    tokenizer = byte_level()
    tokenizer.chat_template = THINKING
    return tokenizer


def sentence_pieces():
    """A space is put before every text, as Llama 2 and Mistral do."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    normal = tokenizers.normalizers
    made.normalizer = normal.Sequence([normal.Prepend("▁"), normal.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(
        [*SENTENCES, "1 animal: cat", "a red panda\n"] * 9, trainer
    )
    roles = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **roles)


def pairs(answer):
    return {"prompt": f"{len(answer)} animal:", "answer": answer}


def alpaca(answer):
    return {"instruction": "Which animal?", "input": answer[::-1], "output": answer}


FORMS = {
    "plain": (plain, pairs, {"join": " "}),
    "a beginning": (lambda: plain(begin=True), pairs, {"join": " "}),
    "alpaca": (plain, alpaca, {}),
    "chats": (byte_level, pairs, {"chat": True}),
    "chats that think": (thinking, pairs, {"chat": True}),
    "sentence pieces": (sentence_pieces, pairs, {"join": " "}),
    "cut prompts": (plain, pairs, {"join": " ", "max_length": 14}),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.filterwarnings("ignore:.*lost their beginning", "ignore:.*goes across")
def test_a_label_has_the_tokens_that_training_teaches(tmp_path, name):
    """Oracle: the labels of a training row with that answer, up to the token that ends it;
    the tokens before them."""
    make, record, settings = FORMS[name]
    tokenizer, path = make(), tmp_path / "rows.jsonl"
    lines = [record(answer) for answer in LABELS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"max_length": 60, **settings}
    found = label_choices(path, tokenizer, LABELS, range(3), **settings)
    batch = instruct_dataset(path, tokenizer, **settings).read(np.arange(len(LABELS)))
    prompts = instruct_prompts(path, tokenizer, **settings)
    assert found.choices == [LABELS] * 3
    assert found.right == [0, 1, 2]
    for row, answers in enumerate(found.answers):
        taught = [token for token in np.asarray(batch.y[row]).tolist() if token >= 0]
        taught = taught[: -1 if taught[-1] != answers[row][-1] else None]
        assert answers[row].tolist() == taught
        if name not in ("sentence pieces", "cut prompts"):
            tokens = np.asarray(batch.x["tokens"][row]).tolist()
            head = found.prompts[row].tolist()
            assert tokens[: len(head)] == head == prompts.tokens[row].tolist()
            assert tokens[len(head)] == taught[0]


def test_other_labels_of_a_row_are_those_of_the_rows_that_have_them():
    """Oracle: rows that differ in their answers only have the same choices. Control: the
    choices of a row differ."""
    for make, record, settings in FORMS.values():
        same = {**record("cat")}
        field = "output" if "output" in same else "answer"
        lines = [{**same, field: answer} for answer in LABELS]
        found = label_choices(lines, make(), LABELS, range(3), **settings)
        rows = [[ids.tolist() for ids in answers] for answers in found.answers]
        assert rows[0] == rows[1] == rows[2]
        assert len({*map(tuple, rows[0])}) == 3
