"""Metrics of language: answers by likelihood, generated text, tagged entities.

The first is a :class:`RowMetric`, as is :func:`jaxcl.metrics.tokens`. The others are
computed on the host, so they are for the host loop: a metric of generated text takes the
function that generates.
"""

import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxcl.errors import check_size, require, shown
from jaxcl.files import write_text
from jaxcl.losses.outputs import evaluated
from jaxcl.metrics.evaluation import RowMetric, TaskMetric
from jaxcl.metrics.scores import Score, TextRow, needs
from jaxcl.typing import Batch, Outputs

#: Why :func:`answer_log_likelihoods` gives minus infinity.
ABSENT = -jnp.inf

# ------------------------------------------------------------------------- choices


def choices(outputs: Outputs) -> RowMetric:
    r"""Accuracy of the most likely answer among ``k``, in [0, 1], raw and by length.

    ``choice_accuracy`` chooses by the log-likelihood of an answer,
    :math:`\sum_i \log p(y_i | y_{<i}, \text{prompt})` over its tokens (``acc`` of lm-eval);
    ``choice_accuracy_per_token`` by that over its number of tokens. With ``characters`` in
    ``y``, ``choice_accuracy_per_character`` divides by these: lm-eval's ``acc_norm``, which
    takes ``len`` of the answer without the space before it, so characters and not bytes.
    With ``bytes`` of the UTF-8 text ``choice_accuracy_per_byte`` is its ``acc_bytes``.

    Args:
      outputs: ``(params, batch) -> logits [b, n, v]``. It is called with the ``b * k``
        sequences as rows; an evaluation holds their logits at once (``chunk_size``).

    A row is a question: leaves of ``x`` are ``[b, k, n, ...]``, and ``y`` is a dict of

    - ``labels [b, k, n]``: the token that follows each position of an answer, below zero
      for the prompt and padding; an answer without labels is not there, so that questions
      may have fewer than ``k``;
    - ``answer [b]``: the number of the right one;
    - ``characters`` and ``bytes``, both ``[b, k]`` and optional.

    The first of equal answers is chosen. NaN for a logit that is NaN, and for a right
    answer that is not there.
    """
    lengths = {"characters": "per_character", "bytes": "per_byte"}

    def rows(params, frozen, batch):
        del frozen
        likely, counts = answer_log_likelihoods(outputs, params, batch)
        given = {
            word: batch.y[name] for name, word in lengths.items() if name in batch.y
        }
        right, there = batch.y["answer"], counts > 0
        place = jnp.clip(right, 0, there.shape[1] - 1)[:, None]
        known = (place[:, 0] == right) & jnp.take_along_axis(there, place, 1)[:, 0]
        known &= ~jnp.isnan(likely).any(axis=1)

        def accuracy(length):
            scores = jnp.where(there, likely / jnp.maximum(length, 1), ABSENT)
            return jnp.where(known, jnp.argmax(scores, axis=1) == right, jnp.nan)

        found = {"choice_accuracy": accuracy(1)}
        for word, length in {"per_token": counts, **given}.items():
            found[f"choice_accuracy_{word}"] = accuracy(length)
        return found

    return RowMetric(rows)


def answer_log_likelihoods(
    outputs: Outputs, params: PyTree, batch: Batch
) -> tuple[Float[Array, "b k"], Array]:
    """Log-likelihoods of all answers in nats, and their numbers of tokens ``[b, k]``.

    Of a batch as for :func:`choices`; minus infinity for an answer that is not there.
    """
    labels = batch.y["labels"]
    shape = labels.shape
    fits = len(shape) == 3 and jnp.issubdtype(labels.dtype, jnp.integer)
    came = f"got {labels.dtype}{list(shape)}"
    require(fits, "choices", f"labels must be integers [questions, answers, n], {came}")
    merge = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
    every = lambda leaf: jnp.repeat(leaf, shape[1], axis=0)
    rows = Batch(
        x=jax.tree.map(merge, batch.x),
        y=merge(labels),
        weight=every(batch.weight),
        task=every(batch.task),
    )
    logits, counts = evaluated(outputs, params, rows), rows.y >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(counts, rows.y, 0)
    )
    total = jnp.sum(jnp.where(counts, losses, 0), axis=-1, dtype=jnp.float32)
    numbers = jnp.sum(counts, axis=-1).reshape(shape[:2])
    return jnp.where(numbers > 0, -total.reshape(shape[:2]), ABSENT), numbers


# ------------------------------------------------------------------ generated text


def generation(
    generate: Callable[[PyTree, list[Any]], Sequence[str]],
    rows: Callable[[Any], Iterable[TextRow]],
    scores: Mapping[str, Score],
    *,
    answers: str | Path | None = None,
) -> TaskMetric:
    """Mean scores of the text that is generated from the prompts of a data set.

    All scores are of one text per prompt: it is generated once. ``TaskMetric.of_data`` is
    called for every learner and data set that is evaluated. With a decoder of this library
    and a tokenizer of Hugging Face::

        def answer(params, prompts):
            asked = tokenizer(prompts, add_special_tokens=False)["input_ids"]
            stop = [tokenizer.eos_token_id]
            new = generate(key, config, params, asked, max_new_tokens=32, stop=stop)
            return tokenizer.batch_decode(new, skip_special_tokens=True)

        metric = generation(answer, text_rows(tokenizer.decode), {"rouge_l": rouge_l()})

    Args:
      generate: ``(params, prompts) -> outputs``, one text for each prompt and without it.
        With frozen weights: ``metrics.with_frozen(lambda frozen: generation(...))``.
      rows: ``(dataset) -> TextRows``; :func:`text_rows` decodes token sequences.
      scores: by the names of the metrics, such as ``{"rouge_l": rouge_l()}``.
      answers: a folder in which every evaluation writes a file ``1.jsonl``, ``2.jsonl``,
        ... after those that are there, in the order of evaluation: a line per row with
        prompt, output, references and scores.

    Raises:
      InputError: for no rows, another number of outputs, or an output that is not text.
    """
    who = "generation"
    require(
        scores, who, "scores must be some, such as {'rouge_l': rouge_l()}, got none"
    )
    folder = None if answers is None else Path(answers)
    fits = folder is None or folder.is_dir() or not folder.exists()
    require(fits, who, f"answers must be a folder, got the file {folder}; name another")

    def of_data(key, params, frozen, dataset):
        del key, frozen
        asked = list(rows(dataset))
        require(asked, who, "expected rows, got none; drop the task")
        _check_references(who, asked)
        outputs = list(generate(params, [row.prompt for row in asked]))
        came = f"{len(asked)} texts, one for each prompt, got {len(outputs)}"
        require(len(outputs) == len(asked), who, f"generate must return {came}")
        for output in outputs:
            if not isinstance(output, str):
                require(False, who, f"generate must return texts, got {shown(output)}")
        pairs = list(zip(asked, outputs, strict=True))
        found = {
            name: [score(*pair) for pair in pairs] for name, score in scores.items()
        }
        if folder is not None and jax.process_index() == 0:
            _write_answers(folder, pairs, found)
        return {name: float(np.mean(values)) for name, values in found.items()}

    return TaskMetric(tuple(scores), of_data)


def _check_references(who: str, rows: list[Any]) -> None:
    """Refuse a text in place of a list, of which each letter would be a reference."""
    for number, row in enumerate(rows):
        held: Any = getattr(row, "references", None)
        listed = isinstance(held, Sequence) and not isinstance(held, str) and len(held)
        if not listed or not all(isinstance(text, str) for text in held):
            wanted = (
                f"row {number} must have a list of right answers, got {shown(held)}"
            )
            require(False, who, f"{wanted}; give TextRow(prompt, [answer])")


def _write_answers(folder: Path, pairs: list[Any], found: Mapping[str, list]) -> None:
    """The next file of a folder, one line per row."""
    taken = [int(p.stem) for p in folder.glob("*.jsonl") if p.stem.isdecimal()]
    lines = []
    for number, (row, output) in enumerate(pairs):
        line = {"prompt": row.prompt, "output": output}
        line["references"] = list(row.references)
        line |= {"source": row.source} if row.source else {}
        line |= {name: values[number] for name, values in found.items()}
        lines.append(json.dumps(line, ensure_ascii=False, default=np.ndarray.tolist))
    write_text(folder / f"{max(taken, default=0) + 1}.jsonl", "\n".join(lines) + "\n")


def text_rows(
    decode: Callable[..., str], *, batch_size: int = 256
) -> Callable[[Any], list[TextRow]]:
    """Text of token sequences: the last answer, and the prompt before it.

    An answer is labels without a gap; a conversation has several. Packed rows are refused.

    Args:
      decode: ``(numbers, skip_special_tokens=...) -> text``, as of a tokenizer of Hugging
        Face. Special tokens stay in the prompt, so that one tokenizer reads it again
        without adding any; the answer has none.
      batch_size: rows read at once.

    Returns:
      A function of a data set, for :func:`generation`. Rows without a label are refused.
    """
    check_size("text_rows", batch_size=batch_size)

    def rows(dataset):
        found = []
        for first in range(0, dataset.count, batch_size):
            last = min(first + batch_size, dataset.count)
            batch = dataset.read(np.arange(first, last))
            x = batch.x if isinstance(batch.x, Mapping) else {"tokens": batch.x}
            several = (
                "rows must not be packed (x has segments), as their prompts are lost"
            )
            require("segments" not in x, "text_rows", f"{several}; leave pack=True out")
            masks = x.get("mask", np.ones_like(x["tokens"]))
            for tokens, mask, labels in zip(x["tokens"], masks, batch.y, strict=True):
                found.append(_decoded(decode, tokens, mask, labels))
        return found

    return rows


def _decoded(decode: Callable[..., str], tokens, mask, labels) -> TextRow:
    """One row: ``labels[i]`` is the token after position ``i``."""
    counts = np.flatnonzero(labels >= 0)
    require(len(counts), "text_rows", "expected a label in every row, got one without")
    counts = counts[np.append(0, np.flatnonzero(np.diff(counts) > 1) + 1)[-1] :]
    asked = slice(0, counts[0] + 1)
    prompt = np.asarray(tokens[asked])[np.asarray(mask[asked]) > 0].tolist()
    answer = np.asarray(labels)[counts].tolist()
    return TextRow(
        decode(prompt, skip_special_tokens=False),
        (decode(answer, skip_special_tokens=True),),
    )


# ----------------------------------------------------------------------- entities


def entity_f1(
    outputs: Outputs, tags: Sequence[str], *, batch_size: int = 32
) -> TaskMetric:
    """``entity_f1``, ``entity_precision`` and ``entity_recall`` of a tagger, in [0, 1].

    By the package seqeval in its strict mode: an entity is a ``B-`` tag and the ``I-`` tags
    of its kind after it, and right if its first and last word and its kind are. An ``I-``
    tag after anything else is left out, where conlleval's lenient rule begins one. Counts
    are over the entities of all kinds and sentences (micro); a score without entities is
    0, as conlleval's. All are NaN where a logit is.

    Args:
      outputs: ``(params, batch) -> logits [b, n, c]``; it is compiled.
      tags: the names of the classes in IOB2, such as ``("O", "B-PER", "I-PER")``. Labels
        ``[b, n]`` below zero are left out: special tokens, and all but the first of a word.
      batch_size: rows read at once; the last ones are filled up.

    Source: Tjong Kim Sang and De Meulder 2003, aclanthology.org/W03-0419.
    """
    needs("entity_f1", "seqeval")
    check_size("entity_f1", batch_size=batch_size)
    names = "entity_precision", "entity_recall", "entity_f1"
    for tag in tags:
        fits = tag == "O" or (tag[:2] in ("B-", "I-") and tag[2:])
        require(fits, "entity_f1", f"tags must be O, B-KIND or I-KIND, got {tag!r}")
    logits_of = jax.jit(partial(evaluated, outputs))

    def of_data(key, params, frozen, dataset) -> dict[str, float]:
        del key, frozen
        require(dataset.count, "entity_f1", "expected rows, got none; drop the task")
        true, said, known = [], [], True
        for first in range(0, dataset.count, batch_size):
            numbers = np.arange(first, min(first + batch_size, dataset.count))
            batch = dataset.read(np.resize(numbers, batch_size))
            logits = np.asarray(logits_of(params, batch))[: len(numbers)]
            labels = np.asarray(batch.y)[: len(numbers)]
            _check_tags(tags, logits, labels)
            counts = labels >= 0
            known &= not np.isnan(logits[counts]).any()
            answers = logits.argmax(axis=-1)
            for row, own, answer in zip(counts, labels, answers, strict=True):
                true.append([tags[number] for number in own[row]])
                said.append([tags[number] for number in answer[row]])
        values = _strict_scores(true, said) if known else (np.nan,) * 3
        return dict(zip(names, map(float, values), strict=True))

    return TaskMetric(names, of_data)


def _check_tags(tags: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> None:
    """Refuse outputs and labels that have none of the tags."""
    shapes = f"[rows, tokens, {len(tags)}] as tags say, got {list(logits.shape)}"
    fits = logits.shape == (*labels.shape, len(tags))
    require(fits, "entity_f1", f"outputs must be {shapes}, labels {list(labels.shape)}")
    most = labels.max(initial=-1)
    wanted = f"labels must be below the number of tags, {len(tags)}, got {most}"
    require(most < len(tags), "entity_f1", wanted)


def _strict_scores(true: list, said: list) -> tuple[float, float, float]:
    """Precision, recall and F1 of entities; sentences without words have none."""
    package = importlib.import_module("seqeval.metrics.v1")
    scheme = importlib.import_module("seqeval.scheme").IOB2
    options = {"average": "micro", "scheme": scheme, "zero_division": 0}
    return package.precision_recall_fscore_support(true, said, **options)[:3]
