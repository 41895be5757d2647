"""Prompts and answers: tokens, labels of the answers, cut prompts, packed rows."""

import gzip
import json
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import losses
from jaxcl.data import (
    Task,
    instruct_dataset,
    instruct_prompts,
    padding_fraction,
    row_lengths,
    share_widths,
)
from jaxcl.data.packing import first_fit
from jaxcl.errors import InputError
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.models.decoder import DecoderConfig, decoder
from jaxcl.training import Options, learn
from tests.tiny_tokenizers import byte_level, real_tokenizer, word_pieces

PAIRS = [
    {"prompt": "What is the capital of France?", "answer": " Paris is the capital."},
    {"prompt": "How many apples are left?", "answer": " three"},
    {"prompt": "What of stocks? They fell in", "answer": " Tokyo, not in London."},
]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Answer the question."},
            {"role": "user", "content": "How many apples?"},
            {"role": "assistant", "content": "three"},
            {"role": "user", "content": "And the capital?"},
            {"role": "assistant", "content": "Paris\nis the capital."},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Who scored twice?"},
            {"role": "assistant", "content": "The striker"},
        ]
    },
]


def read_all(dataset):
    return dataset.read(np.arange(dataset.count))


def row_of(batch, number):
    """The tokens of a row, and as many of its labels; beyond them nothing counts."""
    real = batch.x["mask"][number] > 0
    assert (np.diff(batch.x["mask"][number]) <= 0).all()  # padding is on the right
    assert (batch.y[number][~real] == -100).all()
    return batch.x["tokens"][number][real].tolist(), batch.y[number][real].tolist()


def shifted(tokens, counts):
    """Labels by a loop: the next token where it counts."""
    labels = []
    for place in range(len(tokens)):
        last = place + 1 == len(tokens)
        labels.append(-100 if last or not counts[place + 1] else tokens[place + 1])
    return labels


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_labels_are_the_next_tokens_of_the_answers(begin, loss_on):
    """Oracle: the tokenizer on prompt and text, masked by the prompt's length, shifted."""
    tokenizer = byte_level(begin=begin)
    dataset = instruct_dataset(PAIRS, tokenizer, loss_on=loss_on, task=4)
    batch = read_all(dataset)
    assert set(batch.x) == {"tokens", "mask"}
    for number, row in enumerate(PAIRS):
        head = tokenizer(row["prompt"]).input_ids
        tokens = tokenizer(row["prompt"] + row["answer"]).input_ids
        tokens = [*tokens, tokenizer.eos_token_id]
        assert tokens[: len(head)] == head
        counts = [loss_on == "all" or i >= len(head) for i in range(len(tokens))]
        assert row_of(batch, number) == (tokens, shifted(tokens, counts))
        counted = sum(counts) - (loss_on == "all")  # nothing is before the first
        assert batch.weight[number] == counted
        if loss_on == "answer":
            labels = [label for label in batch.y[number] if label >= 0]
            assert tokenizer.decode(labels) == row["answer"] + "<|end|>"
    assert batch.y.dtype == batch.x["tokens"].dtype == np.int32
    assert batch.task.tolist() == [4] * 3
    examples = instruct_dataset(PAIRS, tokenizer, mean="examples")
    assert read_all(examples).weight.tolist() == [1] * 3


def masked_by_hand(tokenizer, messages):
    """transformers' ids of a chat, and labels from the prompts before each answer."""
    apply = partial(tokenizer.apply_chat_template, tokenize=True, return_dict=False)
    ids = apply(messages)
    counts = [False] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(apply(messages[:number], add_generation_prompt=True))
            end = len(apply(messages[: number + 1]))
            counts[start:end] = [True] * (end - start)
    return ids, shifted(ids, counts)


def test_a_number_as_answer_is_its_digits():
    """Oracle: the same answers as text."""
    tokenizer = byte_level()
    rows = [{"prompt": "How many?", "answer": answer} for answer in (3, -12, 0)]
    texts = [{**row, "answer": str(row["answer"])} for row in rows]
    found, wanted = (
        instruct_dataset(held, tokenizer).read(np.arange(3)) for held in (rows, texts)
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert instruct_prompts(rows, tokenizer).answers == ["3", "-12", "0"]


def test_chats_are_those_of_the_template():
    """Oracle: apply_chat_template of transformers, and labels masked by hand."""
    tokenizer = byte_level()
    batch = read_all(instruct_dataset(CHATS, tokenizer))
    for number, row in enumerate(CHATS):
        want = masked_by_hand(tokenizer, row["messages"])
        assert row_of(batch, number) == want
    labels = [label for label in batch.y[0] if label >= 0]
    assert tokenizer.decode(labels, skip_special_tokens=False) == (
        "three<|im_end|>\nParis\nis the capital.<|im_end|>\n"
    )
    everything = read_all(instruct_dataset(CHATS, tokenizer, loss_on="all"))
    ids = masked_by_hand(tokenizer, CHATS[1]["messages"])[0]
    assert row_of(everything, 1) == (ids, [*ids[1:], -100])


def test_pairs_are_a_chat_of_two_messages_if_asked():
    """Oracle: the same rows written as messages."""
    tokenizer = byte_level()
    batch = read_all(instruct_dataset(PAIRS, tokenizer, chat=True))
    turns = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in PAIRS
    ]
    want = read_all(instruct_dataset(turns, tokenizer))
    np.testing.assert_array_equal(batch.x["tokens"], want.x["tokens"])
    np.testing.assert_array_equal(batch.y, want.y)


def test_a_template_without_an_end_gets_one():
    """Oracle: the template's tokens and the end token, which counts."""
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
        "\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    batch = read_all(instruct_dataset(CHATS, tokenizer))
    ids, labels = masked_by_hand(tokenizer, CHATS[0]["messages"])
    end = tokenizer.eos_token_id
    assert row_of(batch, 0) == ([*ids, end], [*labels[:-1], end, -100])


def test_a_template_that_changes_earlier_messages_is_refused():
    """Oracle: one that leaves out all answers but the last; one answer is fine."""
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] != 'assistant' or loop.last %}"
        "{{ message['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    words = r"records, row 0: the chat template writes earlier messages differently"
    with pytest.raises(InputError, match=words):
        instruct_dataset(CHATS, tokenizer)
    assert instruct_dataset(CHATS[1:], tokenizer).count == 1
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        InputError, match=r"row 0: the chat template refuses it .*alternate"
    ):
        instruct_dataset(CHATS, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="the tokenizer has no chat template; set"):
        instruct_dataset(CHATS, tokenizer)


FORMATS = [
    (
        {"question": "How many?", "reply": " two"},
        {"prompt": "question", "answer": "reply"},
        ("How many?", " two"),
    ),
    (
        {"text": "Madrid won", "label": 1, "place": "{x}"},
        {
            "template": "In {place}, {{topic}} of {text}:",
            "answer": "label",
            "classes": ["money", "sport"],
            "join": " ",
        },
        ("In {x}, {topic} of Madrid won:", " sport"),
    ),
    (
        {"text": "Madrid won", "goals": 2, "label": "sport"},
        {
            "template": "{text} {goals}?",
            "answer": "label",
            "classes": ["money", "sport"],
        },
        ("Madrid won 2?", "sport"),
    ),
    (
        {"instruction": "Count.", "input": "one, two", "output": "three"},
        {},
        ("Count.\n\none, two", "\nthree"),
    ),
    ({"instruction": "Count.", "input": "", "output": "1"}, {}, ("Count.", "\n1")),
    (
        {"instruction": "Count.", "output": "1"},
        {"join": "\n\n### "},
        ("Count.", "\n\n### 1"),
    ),
]


@pytest.mark.parametrize(("record", "given", "want"), FORMATS)
def test_records_of_every_format_are_prompts_and_answers(record, given, want):
    """Oracle: prompt and answer by hand."""
    tokenizer = byte_level()
    batch = read_all(instruct_dataset([record], tokenizer, **given))
    tokens, labels = row_of(batch, 0)
    prompt, answer = want
    assert tokenizer.decode(tokens) == prompt + answer + "<|end|>"
    counted = [label for label in labels if label >= 0]
    assert tokenizer.decode(counted) == answer + "<|end|>"
    prompts = instruct_prompts([record], tokenizer, **given)
    assert tokenizer.decode(prompts.tokens[0]) == prompt
    assert answer.endswith(prompts.answers[0])


def test_numbers_of_classes_in_csv_are_numbers(tmp_path):
    """Oracle: the same rows in memory; a class that is named 7 is that class."""
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": "7"}]
    lines = "".join(f"{row['text']},{row['label']}\n" for row in rows)
    (tmp_path / "rows.csv").write_text("text,label\n" + lines)
    given = {"template": "{text}?", "answer": "label", "classes": ["money", "7"]}
    load = lambda source: read_all(instruct_dataset(source, byte_level(), **given))
    ours, wanted = load(tmp_path / "rows.csv"), load(rows)
    np.testing.assert_array_equal(ours.x["tokens"], wanted.x["tokens"])
    (tmp_path / "rows.csv").write_text("text,label\na,2\n")
    with pytest.raises(InputError, match=r"line 2: .* got 2, of 2 classes; fix it"):
        load(tmp_path / "rows.csv")


def test_an_answer_that_ends_with_the_end_token_has_one():
    """Oracle: by hand."""
    rows = [{"prompt": "a", "answer": " b<|end|>"}]
    batch = read_all(instruct_dataset(rows, byte_level()))
    tokens, _ = row_of(batch, 0)
    assert tokens.count(byte_level().eos_token_id) == 1


def test_a_token_across_the_end_of_the_prompt_is_counted():
    """Oracle: the tokens of the prompt alone, of which the last is not in the text.

    The control: the space belongs to the answer.
    """
    tokenizer = byte_level()
    rows = [{"prompt": "The capital is ", "answer": "the capital"}, PAIRS[1]]
    words = "in 1 of 2 rows a token goes across the end of the prompt; let prompts end"
    with pytest.warns(UserWarning, match=words):
        batch = read_all(instruct_dataset(rows, tokenizer))
    labels = [label for label in batch.y[0] if label >= 0]
    assert tokenizer.decode(labels) == " the capital<|end|>"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows[0]["prompt"] = "The capital is"
        instruct_dataset(rows[:1], tokenizer, join=" ")


# ------------------------------------------------------------------------------- length


@pytest.mark.parametrize("begin", [False, True])
def test_prompts_that_are_too_long_lose_their_beginning(tmp_path, begin):
    """Oracle: tokens and labels without a limit, cut by hand after what begins a text."""
    tokenizer = byte_level(begin=begin)
    full = read_all(instruct_dataset(PAIRS, tokenizer))
    lengths = full.x["mask"].sum(axis=1)
    most = int(sorted(lengths)[1])
    load = partial(instruct_dataset, PAIRS, tokenizer, cache_folder=tmp_path)
    words = (
        f"1 of 3 prompts lost their beginning: up to {lengths.max()} tokens with max_"
    )
    for _ in range(2):  # the second time from a file
        with pytest.warns(UserWarning, match=words):
            batch = read_all(load(max_length=most))
    for number in range(3):
        tokens, labels = row_of(full, number)
        over = max(len(tokens) - most, 0)
        kept = int(begin)
        want = (
            tokens[:kept] + tokens[kept + over :],
            labels[:kept] + labels[kept + over :],
        )
        assert row_of(batch, number) == want
    np.testing.assert_array_equal(batch.weight, full.weight)  # answers are never cut
    long = int(lengths.argmax())
    words = (
        f"row {long}: {lengths[long]} tokens, over max_length={most}; raise it, or cut"
    )
    with pytest.raises(InputError, match=words):
        load(max_length=most, truncate=False)


def test_an_answer_that_does_not_fit_is_refused_or_skipped():
    """Oracle: the tokens of the answers; one token of the prompt must fit as well."""
    tokenizer = byte_level()
    count = [len(tokenizer(row["answer"]).input_ids) + 1 for row in PAIRS]
    most = max(count)
    row = count.index(most)
    words = f"row {row}: an answer of {most} tokens leaves no room for its prompt"
    with pytest.raises(InputError, match=words):
        instruct_dataset(PAIRS, tokenizer, max_length=most)
    with pytest.warns(UserWarning, match="of 3 prompts lost their beginning"):
        fits = instruct_dataset(PAIRS, tokenizer, max_length=most + 1)
    full = row_lengths(instruct_dataset(PAIRS, tokenizer))
    assert row_lengths(fits).tolist() == np.minimum(full, most + 1).tolist()
    load = partial(instruct_dataset, skip_bad_rows=True, tokenizer=tokenizer)
    with (
        pytest.warns(
            UserWarning, match=f"skipped 1 rows, the first of them: .*{words}"
        ),
        pytest.warns(UserWarning, match="of 2 prompts lost"),
    ):
        some = load(PAIRS, max_length=most)
    assert some.count == 2
    rows = [{"prompt": "a", "answer": " "}, *PAIRS, {"prompt": 5, "answer": "a"}]
    with pytest.warns(UserWarning, match="skipped 2 rows, .*row 0: 'answer' is empty"):
        assert load(rows).count == 3
    with pytest.raises(
        InputError, match="none of the rows can be used, the first is bad"
    ):
        load(rows[:1])


def test_a_chat_is_cut_anywhere_but_in_its_last_answer():
    """Oracle: the full row without its first tokens."""
    tokenizer = byte_level()
    tokens, labels = row_of(read_all(instruct_dataset(CHATS[:1], tokenizer)), 0)
    last = tokenizer("Paris\nis the capital.<|im_end|>\n").input_ids
    for most in (len(tokens) - 1, len(last) + 1):
        with pytest.warns(UserWarning, match="1 of 1 prompts lost their beginning"):
            batch = read_all(instruct_dataset(CHATS[:1], tokenizer, max_length=most))
        assert row_of(batch, 0) == (tokens[-most:], labels[-most:])
    with pytest.raises(
        InputError, match=f"an answer of {len(last)} tokens leaves no room"
    ):
        instruct_dataset(CHATS[:1], tokenizer, max_length=len(last))


def test_prompts_are_the_beginnings_of_the_rows():
    """Law: the tokens of each prompt are those before the row's last counted span."""
    for rows, given in ((PAIRS, {}), (PAIRS, {"chat": True}), (CHATS, {})):
        tokenizer = byte_level(begin=True)
        batch = read_all(instruct_dataset(rows, tokenizer, **given))
        prompts = instruct_prompts(rows, tokenizer, **given)
        for number, tokens in enumerate(prompts.tokens):
            found, labels = row_of(batch, number)
            assert found[: len(tokens)] == tokens.tolist()
            assert labels[len(tokens) - 1] == found[len(tokens)]
            assert tokens.dtype == np.int32
            # From there on all but the last one count.
            assert (np.array(labels[len(tokens) - 1 : -1]) >= 0).all()
        answers = [row.get("answer") or row["messages"][-1]["content"] for row in rows]
        assert prompts.answers == answers
    with pytest.warns(UserWarning, match="3 of 3 prompts lost their beginning: up to"):
        short = instruct_prompts(PAIRS, tokenizer, max_length=3)
    full = instruct_prompts(PAIRS, tokenizer)
    for cut, tokens in zip(short.tokens, full.tokens, strict=True):
        assert cut.tolist() == [tokens[0], *tokens[-2:]]


# ------------------------------------------------------------------------------ packing


def first_fit_by_hand(lengths, size):
    """Each row into the first bin with room, by a loop over all bins."""
    bins, found = [], []
    for length in lengths:
        for number, held in enumerate(bins):
            if held + length <= size:
                bins[number] += length
                found.append(number)
                break
        else:
            found.append(len(bins))
            bins.append(length)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_rows_go_into_the_first_bin_with_room(seed):
    """Oracle: a loop over all bins."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, [10, 33, 64, 65][seed], 300)
    assert first_fit(lengths, 64).tolist() == first_fit_by_hand(lengths.tolist(), 64)


def test_packed_rows_hold_every_row_once_and_no_label_crosses():
    """Law: the segments of the packed rows are the rows, with their own labels."""
    tokenizer = byte_level()
    rows = PAIRS * 5
    alone = read_all(instruct_dataset(rows, tokenizer))
    dataset = instruct_dataset(rows, tokenizer, pack=True, max_length=100)
    batch = read_all(dataset)
    assert set(batch.x) == {"tokens", "mask", "segments"}
    assert batch.x["tokens"].shape == (dataset.count, 100)
    assert dataset.count < len(rows) / 2
    assert (batch.x["segments"][batch.x["mask"] == 0] == 0).all()
    found = []
    for number in range(dataset.count):
        segments = batch.x["segments"][number]
        assert segments[0] == 1
        assert set(np.diff(segments[batch.x["mask"][number] > 0])) <= {0, 1}
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            labels = batch.y[number][here].tolist()
            assert labels[-1] == -100
            found.append((batch.x["tokens"][number][here].tolist(), labels))
        assert batch.weight[number] == (batch.y[number] >= 0).sum()
    assert sorted(found) == sorted(row_of(alone, number) for number in range(len(rows)))
    assert padding_fraction(dataset) < padding_fraction(
        instruct_dataset(rows, tokenizer, widths=[100])
    )


def test_the_loss_of_packed_rows_is_that_of_the_rows(key):
    """Oracle: the mean over tokens of rows of their own, by the library's decoder.

    The control: without segments rows see those before them, and the loss differs.
    """
    tokenizer = byte_level()
    config = DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = decoder(config)
    params = jax.tree.map(lambda leaf: 10 * leaf, model.init(key))
    loss = losses.token_cross_entropy(losses.single_head(model.apply))

    def mean(dataset, *without):
        batch = read_all(dataset)
        x = {name: batch.x[name] for name in batch.x if name not in without}
        batch = jax.tree.map(jnp.asarray, batch._replace(x=x))
        values = loss(params, batch, None)
        return float(jnp.sum(values * batch.weight) / jnp.sum(batch.weight))

    alone = mean(instruct_dataset(PAIRS, tokenizer))
    pack = instruct_dataset(PAIRS, tokenizer, pack=True, max_length=200)
    assert pack.count == 1
    assert mean(pack) == pytest.approx(alone, rel=1e-5)
    assert abs(mean(pack, "segments") - alone) > 1e-3


def test_a_decoder_learns_two_tasks_of_several_widths(key):
    """Law: the loss on the answers of both tasks falls below a tenth of a nat.

    The rows of a task alone have other widths; all of them are learned by one call.
    """
    tokenizer = byte_level()
    config = DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = decoder(config)
    pairs, chats = (instruct_dataset(rows, tokenizer) for rows in (PAIRS, CHATS))
    tasks = [Task("pairs", pairs, pairs), Task("chats", chats, chats)]
    tasks = share_widths(tasks)
    assert len({int(group) for task in tasks for group in task.train.groups}) > 2
    loss = losses.token_cross_entropy(losses.single_head(model.apply))
    method = make_method(loss, optax.adam(0.02), memory=reservoir(8, sample_size=5))
    learned = learn(
        key,
        lambda frozen: method,
        model.init(key),
        tasks,
        Options(num_steps=60, batch_size=2),
        folder=None,
    )
    for task in tasks:
        batch = jax.tree.map(jnp.asarray, read_all(task.test))
        values = loss(next(iter(learned.learners.values())), batch, None)
        assert float(jnp.max(values)) < 0.1


def test_a_tokenizer_without_an_end_token_is_refused():
    """Oracle: the message, with the remedy."""
    words = (
        "no end token, which follows each answer; set tokenizer.eos_token to the one"
    )
    with pytest.raises(InputError, match=words):
        instruct_dataset(PAIRS, word_pieces())


# --------------------------------------------------------------------------------- real


@pytest.mark.realdata
@pytest.mark.parametrize("chat", [False, True])
def test_real_instructions_have_the_tokens_of_transformers(realdata, chat):
    """Oracle: transformers' own tokens of each row, and labels masked by hand."""
    tokenizer = real_tokenizer("smollm2")
    path = realdata / "instruct" / "gsm8k_test.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    given = {"prompt": "question", "chat": chat, **({} if chat else {"join": " "})}
    dataset = instruct_dataset(path, tokenizer, **given)
    assert dataset.count == len(lines) == 1319
    for number in range(0, 1319, 40):
        row = json.loads(lines[number])
        found = row_of(dataset.read(np.array([number])), 0)
        if chat:
            messages = [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
            assert found == masked_by_hand(tokenizer, messages)
        else:
            head = tokenizer(row["question"]).input_ids
            ids = tokenizer(f"{row['question']} {row['answer']}").input_ids
            ids = [*ids, tokenizer.eos_token_id]
            counts = [place >= len(head) for place in range(len(ids))]
            assert found == (ids, shifted(ids, counts))
    assert padding_fraction(dataset) < 0.2


@pytest.mark.realdata
def test_less_than_a_fifth_of_alpaca_is_padding(realdata):
    """Oracle: the empty answers of the file, by a plain loop; packed, a tenth at most."""
    path = realdata / "instruct" / "alpaca_5000.json.gz"
    rows = json.loads(gzip.decompress(path.read_bytes()))
    empty = [number for number, row in enumerate(rows) if not row["output"].strip()]
    tokenizer = real_tokenizer("smollm2")
    words = (
        rf"line 1 \(item {empty[0]}\): 'output' is empty; write an answer or drop it"
    )
    with pytest.raises(InputError, match=words):
        instruct_dataset(path, tokenizer)
    load = partial(instruct_dataset, path, tokenizer, skip_bad_rows=True)
    with pytest.warns(UserWarning, match=f"skipped {len(empty)} rows, the first"):
        dataset = load()
    assert dataset.count == len(rows) - len(empty)
    assert len(np.unique(dataset.groups)) <= 8
    assert padding_fraction(dataset) < 0.2
    with pytest.warns(UserWarning, match="skipped"):
        pack = load(pack=True, max_length=512)
    assert padding_fraction(pack) < 0.1
    assert pack.count < dataset.count / 5
