"""Questions with choices: text, tokens of prompts and choices, fields of other names."""

import json
import warnings

import jax
import numpy as np
import pandas as pd
import pytest

from jaxcl.data import read_choices
from jaxcl.errors import InputError
from jaxcl.metrics import choice_results
from jaxcl.models import DecoderConfig, answer_scores, decoder
from tests.tiny_tokenizers import byte_level, real_tokenizer

ROWS = [
    {
        "question": "What is the capital of France?",
        "choices": ["Paris", "London on Monday", "Tokyo"],
        "answer": 0,
    },
    {"question": "How many apples?", "choices": ["three", "twice"], "answer": "twice"},
]


def tokens_of(found):
    """Prompts and answers as lists."""
    answers = [[choice.tolist() for choice in own] for own in found.answers]
    return [prompt.tolist() for prompt in found.prompts], answers


def split_by_hand(tokenizer, rows, prompt_of, join):
    """The tokenizer on prompt and text, cut by the prompt's length."""
    prompts, answers = [], []
    for row in rows:
        ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        head = ids(prompt_of(row))
        full = [ids(prompt_of(row) + join + choice) for choice in row["choices"]]
        assert all(line[: len(head)] == head for line in full)
        prompts.append(head)
        answers.append([line[len(head) :] for line in full])
    return prompts, answers


def plain_prompt(row):
    return f"Question: {row['question']}\nAnswer:"


def test_prompts_and_choices_are_those_of_the_tokenizer():
    """Oracle: the tokenizer of transformers on each text, cut by the prompt's length."""
    tokenizer = byte_level()
    found = read_choices(ROWS, tokenizer)
    assert found.questions == [row["question"] for row in ROWS]
    assert found.choices == [row["choices"] for row in ROWS]
    assert found.right == [0, 1]
    assert tokens_of(found) == split_by_hand(tokenizer, ROWS, plain_prompt, " ")
    assert found.prompts[0].dtype == found.answers[0][0].dtype == np.int32
    texts = [tokenizer.decode(choice) for choice in found.answers[0]]
    assert texts == [" Paris", " London on Monday", " Tokyo"]


def test_special_tokens_before_a_text_are_before_the_prompt():
    """Oracle: what the tokenizer puts before any text; choices are as without it."""
    tokenizer = byte_level(begin=True)
    found, plain = read_choices(ROWS, tokenizer), read_choices(ROWS, byte_level())
    prompts, answers = tokens_of(plain)
    begin = tokenizer.bos_token_id
    assert tokens_of(found) == ([[begin, *prompt] for prompt in prompts], answers)
    assert tokenizer(plain_prompt(ROWS[0])).input_ids == [begin, *prompts[0]]


def test_a_choice_begins_the_assistants_message():
    """Oracle: apply_chat_template of transformers, and the text of each choice after it."""
    tokenizer = byte_level()
    asked = lambda row: tokenizer.apply_chat_template(
        [{"role": "user", "content": row["question"]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    found = read_choices(ROWS, tokenizer, chat=True)
    assert tokens_of(found) == split_by_hand(tokenizer, ROWS, asked, "")
    assert asked(ROWS[0]).endswith("<|im_start|>assistant\n")
    template = "Question: {question}\nAnswer:"
    long = read_choices(ROWS, tokenizer, chat=True, template=template)
    assert plain_prompt(ROWS[0]) in tokenizer.decode(long.prompts[0])


def test_templates_join_and_context():
    """Oracle: the texts by hand, of a record with a context and of one without."""
    tokenizer = byte_level()
    rows = [{**ROWS[0], "context": "Paris is in France."}, {**ROWS[1], "context": None}]
    texts = lambda **given: [
        tokenizer.decode(prompt) + "|" + tokenizer.decode(own[0])
        for prompt, own in zip(*read_choices(rows, tokenizer, **given)[3:], strict=True)
    ]
    first, second = ROWS[0]["question"], ROWS[1]["question"]
    assert texts() == [
        f"Paris is in France.\nQuestion: {first}\nAnswer:| Paris",
        f"Question: {second}\nAnswer:| three",
    ]
    assert texts(template="{question}", join="\n") == [
        f"Paris is in France.\n{first}|\nParis",
        f"{second}|\nthree",
    ]
    rows[1]["context"] = "Three are left."
    assert texts(template="{question} {context}")[1] == (
        f"{second} Three are left.| three"
    )
    assert texts(context="none")[1] == f"Question: {second}\nAnswer:| three"


@pytest.mark.parametrize(
    ("rename", "given"),
    [
        ({"question": "prompt", "answer": "label"}, {}),
        (
            {"question": "goal", "choices": "options", "answer": "gold"},
            {"question": "goal", "choices": "options", "answer": "gold"},
        ),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "frame"])
def test_files_and_fields_of_other_names(tmp_path, rename, given, kind):
    """Oracle: the same records in memory under their first names; answers as numbers."""
    numbered = [
        {**row, "answer": right} for row, right in zip(ROWS, (0, 1), strict=True)
    ]
    renamed = [{rename.get(k, k): v for k, v in row.items()} for row in numbered]
    source = tmp_path / f"questions.{kind}"
    if kind == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    elif kind == "json":
        source.write_text(json.dumps(renamed))
    elif kind == "parquet":
        pytest.importorskip("pyarrow")
        pd.DataFrame(renamed).to_parquet(source)
    else:
        source = pd.DataFrame(renamed)
        source[rename["answer"]] = source[rename["answer"]].astype(np.int64)
    found, wanted = (
        read_choices(source, byte_level(), **given),
        read_choices(ROWS, byte_level()),
    )
    assert found[:3] == wanted[:3]
    assert tokens_of(found) == tokens_of(wanted)


def test_messages_name_file_and_line(tmp_path):
    """Oracle: the line counted by hand, an empty one before it."""
    file = tmp_path / "questions.jsonl"
    good = json.dumps({**ROWS[0], "answer": 1}) + "\n"
    file.write_text(good + "\n" + good.replace(": 1}", ": 5}"))
    words = (
        rf"^read_choices: {file}, line 3: 'answer' must be a number .*, got 5; fix it"
    )
    with pytest.raises(InputError, match=words):
        read_choices(file, byte_level())


def test_a_token_across_the_end_is_left_to_all_choices():
    """Oracle: each text's own tokens, of which prompt and choice are the two parts; the
    space before a word is a part of its token, and of no token of the prompt."""
    tokenizer = byte_level()
    asked = ["What is the capital?\n", "How many are "]
    choices = [["three", "two"], ["three", "Paris"]]  # of which " Paris" is not crossed
    rows = [
        {"question": text, "choices": own, "answer": 0}
        for text, own in zip(asked, choices, strict=True)
    ]
    with pytest.warns(UserWarning, match=r"in 1 of 2 questions a token goes acr.*"):
        found = read_choices(rows, tokenizer, template="{question}", join="")
    for row, text in enumerate(asked):
        for answer, choice in zip(found.answers[row], choices[row], strict=True):
            ids = tokenizer(text + choice, add_special_tokens=False).input_ids
            assert [*found.prompts[row], *answer] == ids
    assert tokenizer.decode(found.prompts[0]) == asked[0]
    assert tokenizer.decode(found.prompts[1]) == asked[1].rstrip()


def test_long_prompts_lose_their_beginning():
    """Oracle: the uncut tokens; the longest choice and the prompt fill the limit."""
    tokenizer = byte_level(begin=True)
    full = read_choices(ROWS, tokenizer)
    longest = max(map(len, full.answers[0]))
    limit = longest + 6
    with pytest.warns(UserWarning, match=r"2 of 2 prompts lost their beginning: .*"):
        found = read_choices(ROWS, tokenizer, max_length=limit)
    prompt = full.prompts[0].tolist()
    assert found.prompts[0].tolist() == [prompt[0], *prompt[-5:]]
    assert tokens_of(found)[1] == tokens_of(full)[1]
    with pytest.raises(
        InputError, match=r"row 0: a choice of \d+ tokens leaves no room"
    ):
        read_choices(ROWS, tokenizer, max_length=longest)


def test_scores_of_a_file_are_made_in_three_lines():
    """Oracle: full passes over each text; the most likely choice by hand."""
    tokenizer = byte_level()
    found = read_choices(ROWS, tokenizer)
    config = DecoderConfig(len(tokenizer), 16, 24, 2, 2, initializer_range=0.3)
    model = decoder(config)
    params = model.init(jax.random.key(0))
    scores = answer_scores(config, params, found.prompts, found.answers, quiet=True)
    results = choice_results(scores, found.choices, found.right)
    for row, (prompt, own) in enumerate(zip(*found[3:], strict=True)):
        wanted = []
        for answer in own:
            text = np.concatenate([prompt, answer])
            logs = jax.nn.log_softmax(model.apply(params, text[None])[0])
            places = np.arange(len(prompt) - 1, len(text) - 1)
            wanted.append(float(logs[places, answer].sum()))
        np.testing.assert_allclose(scores[row], wanted, rtol=1e-5, atol=5e-5)
        assert results.choice[row] == np.argmax(wanted)


@pytest.mark.realdata
def test_a_real_tokenizer_has_no_token_across():
    """Oracle: no warning, and the decoded texts."""
    tokenizer = real_tokenizer("smollm2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for chat in (False, True):
            found = read_choices(ROWS, tokenizer, chat=chat)
            choices = [tokenizer.decode(choice).strip() for choice in found.answers[0]]
            assert choices == ROWS[0]["choices"]
