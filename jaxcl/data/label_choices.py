"""The answers that a task has, as choices at each of its prompts.

Their tokens are those that training teaches: a label is put into the text of a row where
the row's own answer is, and the text is tokenised as a row of
:func:`jaxcl.data.instruct_dataset`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcl.data.answers import encode_plain, num_equal, special_tokens
from jaxcl.data.choices import Choices
from jaxcl.data.conversations import Conversation, answer_beginning
from jaxcl.data.instruct import instruct_prompts, instruct_texts
from jaxcl.data.records import Source
from jaxcl.data.tokens import Tokenizer, load_tokenizer
from jaxcl.errors import require

_WHO = "label_choices"


def label_choices(
    source: Source,
    tokenizer: Tokenizer,
    labels: Sequence[str],
    rows: Sequence[int] | np.ndarray,
    **settings: Any,
) -> Choices:
    """Prompts of some rows of a source, each with all labels as its choices.

    A choice ends with the token that ends an answer in training: the end of a message
    where prompts are chats, and else the end of a text. Where a token goes across the end
    of a prompt, the prompt ends before it for all choices.

    Args:
      source: as for :func:`jaxcl.data.instruct_prompts`.
      tokenizer: likewise.
      labels: the possible answers; the answer of each row is one of them.
      rows: their numbers.
      **settings: of :func:`jaxcl.data.instruct_prompts`.

    Raises:
      InputError: as :func:`jaxcl.data.instruct_prompts`; for an answer that is not among
        the labels, and for a chat template that changes answers.
    """
    tokenizer = load_tokenizer(tokenizer)
    prompts = instruct_prompts(source, tokenizer, **settings)
    texts = instruct_texts(_WHO, source, tokenizer, **settings)
    texts = [texts[row] for row in rows]
    ends = special_tokens(tokenizer)
    heads = [text.text[: text.answers[-1][0]] for _, text in texts]
    is_chat = texts[0][1].is_chat
    begun = answer_beginning(tokenizer) if is_chat else ""
    full = [_with_answer(*row, begun, label) for row in texts for label in labels]
    pairs = iter(encode_plain(tokenizer, full))
    found = []
    for (_, text), head in zip(texts, encode_plain(tokenizer, heads), strict=True):
        own = [next(pairs) for _ in labels]
        first = min(num_equal(head, ids) for ids in own)
        answers = [_ended(ids[first:], text, ends, tokenizer) for ids in own]
        found.append((len(head) - first, answers))
    held = [prompts.tokens[row] for row in rows]
    return Choices(
        heads,
        [list(labels)] * len(found),
        [list(labels).index(text.reference) for _, text in texts],
        [ids[: len(ids) - n] for ids, (n, _) in zip(held, found, strict=True)],
        [answers for _, answers in found],
    )


def _with_answer(place: str, one: Conversation, begun: str, label: str) -> str:
    """The text of a row with another answer, as its template writes it."""
    head, written = one.text[: one.answers[-1][0]], one.text[one.answers[-1][0] :]
    own = one.reference
    if not one.is_chat:
        return one.text.removesuffix(own) + label
    own = begun + own.strip()  # templates strip answers
    changed = f"{place}: the chat template changes answers; give another template"
    require(written.startswith(own), _WHO, changed)
    return head + begun + label.strip() + written[len(own) :]


def _ended(
    ids: np.ndarray, text: Conversation, ends: Sequence[int], tokenizer: Any
) -> np.ndarray:
    """An answer up to the token that ends it, which is added where none does."""
    special = np.flatnonzero(np.isin(ids, ends)) if text.is_chat else np.array([], int)
    if len(special):
        return ids[: special[0] + 1]
    end = tokenizer.eos_token_id
    return ids if len(ids) and ids[-1] == end else np.append(ids, np.int32(end))
