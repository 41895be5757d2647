"""Wrong calls of the builders of text data."""

import functools

import numpy as np
import pytest

from jaxcl import data
from tests.test_misuse.table import TASKS, assert_refused, refused
from tests.tiny_tokenizers import byte_level, word_pieces

pytest.importorskip("transformers")

ROWS = [{"text": "Stocks rose.", "label": 1}, {"text": "Madrid won.", "label": 0}]
PAIRS = [{"prompt": "How many apples?", "answer": " three"}]
CHAT = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "three"},
]
SENTENCES = [data.Sentence(("Madrid", "won"), ("B-ORG", "O"), "a.conll", 5)]

encoder = functools.cache(word_pieces)
decoder = functools.cache(byte_level)


def text(rows=ROWS, **given):
    return data.text_dataset(rows, encoder(), **given)


def labelled(label, **given):
    return text([{"text": "a", "label": label}], **given)


def tagged(sentences=SENTENCES, types=("ORG",), **given):
    return data.tagging_dataset(sentences, encoder(), types=types, **given)


def instruct(rows=PAIRS, tokenizer=None, **given):
    return data.instruct_dataset(rows, tokenizer or decoder(), **given)


def messages(*held, **given):
    return instruct([{"messages": list(held) if held else given.pop("of")}], **given)


THINKING = "{% for m in messages %}{{ m.content }}{% endfor %}"
THINKING += "{% if add_generation_prompt %}<think>{% endif %}"


def without(**changes):
    tokenizer = byte_level()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


REFUSED = [
    # tokenizers
    (
        lambda: data.load_tokenizer("no/such/folder"),
        "load_tokenizer: no folder no/such/folder; give the folder that save_pretrained",
    ),
    (
        lambda: data.load_tokenizer(5),
        "expected a folder, or a fast tokenizer of transformers, got 5; see transf",
    ),
    (
        lambda: data.load_tokenizer("."),
        r"load_tokenizer: . holds no tokenizer \(.*\); save_pretrained writes one",
    ),
    (
        lambda: data.load_tokenizer(encoder(), vocab_size=50),
        "its largest token is 89, the model has 50 rows; give the model's own tokenizer",
    ),
    (
        lambda: data.load_tokenizer(encoder(), vocab_size="all"),
        "vocab_size must be an int of at least 1",
    ),
    # classes
    (lambda: text("no.jsonl"), "text_dataset: no file no.jsonl; give a file of JSON"),
    (lambda: text([]), "text_dataset: expected records, got none; give a file"),
    (lambda: text(5), "text_dataset: expected a path or records, got 5; give a file"),
    (
        lambda: text({"text": "a"}),
        "expected a path or records, got {'text': 'a'}; give",
    ),
    (lambda: text(["a"]), "row 0 must be a dict of fields, got 'a'; give a file"),
    (
        lambda: text([{"text": "a"}]),
        "records, row 0: field 'label' is missing, there are 'text'; name another by la",
    ),
    (
        lambda: text([ROWS[0], {"label": 1}]),
        "row 1: field 'text' is missing, there are 'label'; name another by text=, or fix",
    ),
    (lambda: text([{"text": 5, "label": 1}]), "row 0: expected text in 'text', got 5;"),
    (
        lambda: text([{"text": "\ud800", "label": 1}]),
        r"row 0: 'text' holds half a char",
    ),
    (
        lambda: labelled(0.5),
        "row 0: expected text or an integer in 'label', got 0.5; fix",
    ),
    (lambda: labelled(None), "row 0: expected text or an integer in 'label', got None"),
    (
        lambda: labelled("a"),
        "row 0: label 'a' is not the number of a class; give",
    ),
    (
        lambda: labelled(-1),
        "row 0: label -1 is not the number of a class; give",
    ),
    (
        lambda: labelled(True),
        "row 0: label True is not the number of a class",
    ),
    (lambda: labelled(2**31), "row 0: label 2147483648 is not the number of a class"),
    (
        lambda: labelled("a", classes=["b", "c"]),
        "row 0: label 'a' is none of the 2 classes; add it, or drop the line",
    ),
    (lambda: labelled(1, classes=["1"]), "row 0: label 1 is none of the 1 classes"),
    (
        lambda: text(classes="ab"),
        "classes must be a list of text or integers, .* got 'ab'",
    ),
    (
        lambda: text(classes=[]),
        r"classes must be a list of text or integers, .* got \[\]",
    ),
    (lambda: text(classes=[1, 0, 1]), "classes list 1 twice; list each class once"),
    (lambda: text(text=("text", "more")), "row 0: field 'more' is missing"),
    (lambda: text(text=("a", "b", "c")), "text must be a field or two of them, got"),
    (lambda: text(text=("a", 5)), "text must be a field or two of them, got"),
    (
        lambda: text(label=["y"]),
        r"label must be of type str, got \['y'\]; name a field",
    ),
    (
        lambda: text(max_length=2),
        "max_length must be at least 3, with the special tokens",
    ),
    (lambda: text(max_length=0), "max_length must be an int of at least 1"),
    (lambda: text(task=-1), "task must be an int of at least 0"),
    (lambda: text(widths=()), r"widths must be integers above 0, got \(\); try \(32,"),
    (lambda: text(widths=(8.0,)), r"widths must be integers above 0, got \(8.0,\)"),
    (
        lambda: text(widths=(1, 2)),
        "the longest row has .* tokens, the widest width is 2;",
    ),
    (
        lambda: data.label_names([{"label": 1}, {"label": "a"}]),
        "label_names: records has labels of several kinds, int, str; write all of them as",
    ),
    # tags
    (lambda: tagged("no.conll"), "read_conll: no file no.conll; give a file of words"),
    (
        lambda: tagged([]),
        r"tagging_dataset: expected a file or sentences, got \[\]; see",
    ),
    (
        lambda: tagged([("a", "O")]),
        "sentence 0 must have words and a tag for each, got",
    ),
    (
        lambda: tagged([data.Sentence(("a", "b"), ("O",))]),
        "sentence 0 must have words and a tag for each, got Sentence; see Sentence",
    ),
    (
        lambda: tagged(types=["PER"]),
        "a.conll, line 5: tag 'B-ORG' of 'Madrid' is none of 3; add its type to types",
    ),
    (
        lambda: tagged(types="ORG"),
        "types must be a list of types of entities, got 'ORG'",
    ),
    (lambda: tagged(types=[]), r"types must be a list of types of entities, got \[\]"),
    (
        lambda: tagged(types=["A", "A"]),
        r"types list a type twice, \['A', 'A'\]; list each",
    ),
    (
        lambda: tagged(only=["PER"]),
        r"only must be some of types, got \['PER'\] besides",
    ),
    (lambda: tagged(mean="rows"), "mean must be 'tokens' or 'examples', got 'rows'"),
    (
        lambda: data.read_conll(5),
        "read_conll: expected the path of a file, got 5; give one",
    ),
    (
        lambda: data.read_conll("a", scheme="IOB"),
        "scheme must be one of bio, iob1, bioes,",
    ),
    (
        lambda: data.read_conll("a", word=-1),
        "word and tag must be columns, got -1 and -1",
    ),
    # instructions
    (
        lambda: instruct([{"prompt": "a"}]),
        "row 0: field 'answer' is missing, there are",
    ),
    (
        lambda: instruct([{"question": "a", "answer": "b"}]),
        "row 0: field 'prompt' is missing, there are 'question', 'answer'; name another by",
    ),
    (
        lambda: instruct([{"prompt": "a", "answer": " \n"}]),
        "records, row 0: 'answer' is empty; write an answer or drop it",
    ),
    (
        lambda: instruct([{"prompt": "a", "answer": 0.5}]),
        "expected text in 'answer', got 0.5",
    ),
    (
        lambda: instruct([{"instruction": "a", "input": 5, "output": "b"}]),
        "row 0: expected text in 'input', got 5",
    ),
    (
        lambda: instruct([{"prompt": "a", "answer": 2}], classes=["x", "y"]),
        "row 0: 'answer' must be a class or its number, got 2, of 2 classes; fix it",
    ),
    (
        lambda: instruct([{"prompt": "a", "answer": "z"}], classes=["x", "y"]),
        "row 0: 'answer' must be a class or its number, got 'z'; add it to classes",
    ),
    (
        lambda: instruct(classes=["x", 5]),
        "classes must be a list of names, got .*; give",
    ),
    (
        lambda: instruct(template="Topic?"),
        "template 'Topic.' names no field; name",
    ),
    (lambda: instruct(template="{a.b}"), "template '{a.b}' must name fields only"),
    (lambda: instruct(template="{a!r}"), "template '{a!r}' must name fields only"),
    (lambda: instruct(template="{}"), "template '{}' must name fields only"),
    (lambda: instruct(template="{a"), "template '{a' is not usable .ValueError"),
    (
        lambda: instruct(template="{text}:"),
        "row 0: field 'text' is missing, .* name another by template=, or fix the line",
    ),
    (lambda: instruct(prompt=5), "prompt must be of type str, got 5; name a field"),
    (lambda: instruct(chat="yes"), "chat must be of type bool, got 'yes'; say True or"),
    (
        lambda: instruct(loss_on="prompt"),
        "loss_on must be 'answer' or 'all', got 'prompt'",
    ),
    (
        lambda: instruct(pack=True),
        "pack=True needs max_length, the width of a packed row",
    ),
    (
        lambda: instruct(pack=True, max_length=64, widths=(64,)),
        "packed rows have one width, max_length; leave widths out",
    ),
    (
        lambda: instruct(pack=True, max_length=64, mean="examples"),
        "packed rows are weighted by tokens; leave mean='examples' out",
    ),
    (
        lambda: instruct(tokenizer=encoder()),
        "has no end token, which follows each answer; set tokenizer.eos_token to the one",
    ),
    (
        lambda: instruct(max_length=3),
        "records, row 0: an answer of .* tokens leaves no room for its prompt within max_l",
    ),
    (
        lambda: instruct(max_length=8, truncate=False),
        "records, row 0: .* tokens, over max_length=8; raise it, or cut prompts by trunc",
    ),
    (
        lambda: instruct(chat=True, tokenizer=without(chat_template=None)),
        "the tokenizer has no chat template; set tokenizer.chat_template, or leave chat",
    ),
    (
        lambda: instruct(chat=True, join=" "),
        "join is for prompts without a chat template; leave one of them out",
    ),
    (
        lambda: messages(*CHAT, chat=False),
        "records with messages need their template; leave chat=False out",
    ),
    (lambda: messages(of=[]), r"row 0: expected a list of messages, got \[\]; fix it"),
    (lambda: messages(of="a"), "row 0: expected a list of messages, got 'a'; fix it"),
    (lambda: messages(5, *CHAT), "row 0, message 0: field 'role' is missing"),
    (
        lambda: messages({"role": "user"}),
        "row 0, message 0: field 'content' is missing",
    ),
    (
        lambda: messages(CHAT[0]),
        "messages must begin with a prompt and end with the assistant's answer, got 'us",
    ),
    (
        lambda: messages(CHAT[1]),
        "begin with a prompt .*, got 'assistant to assistant'",
    ),
    (
        lambda: messages(CHAT[0], {"role": "assistant", "content": ""}),
        "row 0, message 1: the answer is empty; write one or drop it",
    ),
    (
        lambda: messages(CHAT[0], CHAT[1] | {"tool_calls": [{"name": "f"}]}),
        "row 0, message 1: 'tool_calls' is not used, and would be lost; write calls of",
    ),
    (
        lambda: instruct([{"messages": list(CHAT), "tools": [{"name": "f"}]}]),
        "records, row 0: 'tools' is not used, and would be lost; write calls of tools as",
    ),
    (
        lambda: messages(
            *CHAT, tokenizer=without(chat_template="{{ messages[0].role }}")
        ),
        "row 0: the chat template leaves the answer out; give another template",
    ),
    (
        lambda: messages(*CHAT, tokenizer=without(chat_template=THINKING)),
        "row 0: the chat template begins an answer unlike it asks for one; give another",
    ),
    (
        lambda: data.instruct_prompts([{"prompt": "a"}], decoder()),
        "instruct_prompts: records, row 0: field 'answer' is missing",
    ),
    # widths
    (
        lambda: data.choose_widths([]),
        "lengths must be integers above 0, one a row, got",
    ),
    (lambda: data.choose_widths([3, 0]), "lengths must be integers above 0, one a row"),
    (lambda: data.choose_widths([3.5]), "lengths must be integers above 0, one a row"),
    (lambda: data.choose_widths([3], most=0), "most must be an int of at least 1"),
    (lambda: data.choose_widths([3], padding=2), "padding must be a number in"),
    (
        lambda: data.choose_widths([9], longest=8),
        "rows of 9 tokens do not fit into longest=8; cut them",
    ),
    (
        lambda: data.padding_fraction(TASKS[0].train),
        "padding_fraction: rows must be tokens with a mask, x = .*; give a dataset of text",
    ),
    (lambda: data.row_lengths(TASKS[0]), "dataset must be of type Dataset, got Task"),
    (
        lambda: data.share_widths([]),
        "share_widths: expected tasks, got none; give a list",
    ),
    (
        lambda: data.share_widths([5]),
        "task must be of type Task, got 5; give a list of",
    ),
    (
        lambda: data.share_widths([data.Task("a", text(), text())], widths=[4]),
        "the longest row has .* tokens, the widest width is 4; add a width, or lower max_l",
    ),
]


@refused(REFUSED)
def test_a_wrong_call_of_text_data_is_refused_in_one_line(call, words):
    """Oracle: the table."""
    assert_refused(call, words)


def test_fields_of_tools_without_a_value_are_passed_over():
    """Oracle: the same chat without them; data sets have a column for all rows."""
    plain = messages(*CHAT).read(np.arange(1))
    none = [message | {"tool_calls": None} for message in CHAT]
    ours = instruct([{"messages": none, "tools": []}]).read(np.arange(1))
    np.testing.assert_array_equal(ours.x["tokens"], plain.x["tokens"])


def test_the_calls_of_the_table_are_right_otherwise():
    """The control: what the wrong calls change is accepted."""
    for made in (text(), text(classes=[1, 0]), tagged(), instruct(), messages(*CHAT)):
        assert made.read(np.arange(made.count)).x["mask"].sum() > 3
    assert instruct(pack=True, max_length=64).count == 1
    assert instruct(template="{prompt}!", join=" ").count == 1
