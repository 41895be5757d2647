"""Which choices are the most likely, from scores of answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxcl.errors import as_numbers, require, shown


class ChoiceResults(NamedTuple):
    """What is chosen for each question, and whether it is right.

    By the log-likelihood of an answer, and by that over its number of characters; see
    :func:`jaxcl.metrics.choices`.
    """

    choice: Int[np.ndarray, " n"]  # -1 where a score is NaN
    choice_per_character: Int[np.ndarray, " n"]
    choice_accuracy: Float[np.ndarray, " n"]  # 0 or 1; NaN where a score is NaN
    choice_accuracy_per_character: Float[np.ndarray, " n"]


def choice_results(
    scores: Sequence[Sequence[float] | np.ndarray],
    choices: Sequence[Sequence[str]],
    right: Sequence[int],
) -> ChoiceResults:
    """The most likely choice of each question, raw and per character.

    The means of both accuracies are ``acc`` and ``acc_norm`` of lm-eval, as those of the
    metric :func:`jaxcl.metrics.choices`. The first of equal choices is chosen.

    Args:
      scores: for each question the log-likelihoods of its choices, as of
        :func:`jaxcl.models.answer_scores`.
      choices: their texts, without the space before them.
      right: the number of the right one, from 0.

    Raises:
      ValueError: for lists of different lengths, and for a right one that is not there.
    """
    who = "choice_results"
    counts = len(scores), len(choices), len(right)
    wanted = "scores, choices and right must be of the same questions, got"
    require(len(set(counts)) == 1, who, f"{wanted} {', '.join(map(str, counts))}")
    found = []
    for number, (given, texts, place) in enumerate(
        zip(scores, choices, right, strict=True)
    ):
        likely = as_numbers(who, f"scores of question {number}", given)
        _check(who, number, likely, texts, place)
        lengths = np.array([max(len(text), 1) for text in texts])
        known = not np.isnan(likely).any()
        found.append([_first(known, likely), _first(known, likely / lengths)])
    chosen = np.array(found, int).reshape(-1, 2).T
    hit = np.where(chosen < 0, np.nan, chosen == np.array(right, int))
    return ChoiceResults(*chosen, *hit)


def _first(known: bool, likely: np.ndarray) -> int:
    """The first of the most likely choices."""
    return int(np.argmax(likely)) if known else -1


def _check(who: str, number: int, likely: np.ndarray, texts, place) -> None:
    """Refuse scores and texts of different choices."""
    listed = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not listed or not all(isinstance(text, str) for text in texts):
        wanted = f"choices of question {number} must be texts, got {shown(texts)}"
        require(False, who, f"{wanted}; give a list of them")
    if not len(texts) or likely.shape != (len(texts),):
        wanted = f"question {number} must have one score for each of its choices"
        came = f"got scores {list(likely.shape)} and {len(texts)} choices"
        require(False, who, f"{wanted}, {came}; give those of one file")
    fits = isinstance(place, int | np.integer) and not isinstance(place, bool)
    if not fits or not 0 <= place < len(texts):
        wanted = f"right of question {number} must be from 0 to {len(texts) - 1}"
        require(False, who, f"{wanted}, got {shown(place)}; give its number")
