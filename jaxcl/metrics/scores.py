"""Scores of generated text: functions ``(row, output) -> float`` in [0, 1].

Each compares an output with the references of a :class:`TextRow`; the best reference
counts. :func:`jaxcl.metrics.generation` takes the mean over the rows of a data set.
"""

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from importlib.util import find_spec
from typing import Any, NamedTuple

from jaxcl.errors import InputError, require, shown


class TextRow(NamedTuple):
    """A prompt, and what is right after it."""

    prompt: Any  # for the function that generates: usually text
    references: Sequence[str]  # one or more right answers
    source: str = ""  # the text to be simplified, for :func:`sari`


#: ``(row, output) -> float`` in [0, 1].
Score = Callable[[TextRow, str], float]


def needs(who: str, package: str) -> None:
    """Refuse the absence of a package of the extra ``text``, without importing it."""
    if find_spec(package) is None:
        msg = f"{who}: needs {package}; install the extra: pip install '.[text]'."
        raise InputError(msg)


# ------------------------------------------------------------------- short answers


def exact_match(*, normalise: bool = False) -> Score:
    """Whether the output is a reference, but for spaces around them.

    Args:
      normalise: compare lower-case words without punctuation and without the articles a,
        an and the, as SQuAD's official evaluation does.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1.
    """
    plain = _normalised if normalise else str.strip
    return lambda row, output: float(plain(output) in map(plain, row.references))


def _normalised(text: str) -> str:
    """Lower-case words without punctuation and articles, one space apart."""
    words = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", words).split())


def first_letter(letters: str = "ABCD") -> Score:
    """Whether the first choice that the output names is that of the reference.

    A choice is one of the ``letters``, upper-case and not inside a word: ``B``, ``(B)`` and
    ``The answer is B.`` all name B. So does the article in ``A guess: B`` name A.
    """
    require(letters, "first_letter", "letters must be some, such as 'ABCD', got ''")
    choice = re.compile(rf"\b[{re.escape(letters)}]\b")
    return _first("first_letter", choice, str)


def first_number() -> Score:
    """Whether the first number of the output equals that of the reference.

    As numbers, exactly: ``1,234.50`` is ``1234.5``. A hyphen after a letter, a digit or a
    bracket is not read as a minus; signs of currency and percent are ignored.
    """
    return _first("first_number", _NUMBER, _as_number)


_NUMBER = re.compile(
    r"(?:(?<![\w)\]])[-\u2212])?"  # minus, as a hyphen or as itself
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"  # thousands; 0.5 or .5
    r"(?:[eE][-+]?\d{1,3}(?!\w))?",
    re.ASCII,
)


def _as_number(text: str) -> Decimal:
    """Exactly, so that digits beyond a float's are compared, too."""
    return Decimal(text.replace(",", "").replace("\u2212", "-"))


def _first(who: str, pattern: re.Pattern, value: Callable[[str], Any]) -> Score:
    """Whether the first matches of output and a reference have equal values."""

    def score(row, output):
        found = pattern.search(output)
        right = []
        for reference in row.references:
            match = pattern.search(reference)
            wanted = f"references must match {pattern.pattern}, got {shown(reference)}"
            require(match, who, wanted)
            right.append(value(match.group()) if match else None)
        return float(found is not None and value(found.group()) in right)

    return score


# -------------------------------------------------------------------- longer answers


def rouge_l(*, stemmer: bool = False, tokenizer: Any = None) -> Score:
    """ROUGE-L: the F measure of the longest common subsequence of words.

    By the package rouge-score, of the best reference. Its words are runs of a to z and 0 to
    9 in lower case: **letters of other alphabets are dropped**, umlauts too, so give a
    ``tokenizer`` for other languages.

    Args:
      stemmer: compare words by their English stems.
      tokenizer: with ``tokenize(text) -> list[str]``, in place of the package's own.

    Source: Lin 2004, aclanthology.org/W04-1013, section 3.
    """
    needs("rouge_l", "rouge_score")
    scorers: list[Any] = []  # made at the first score: the package takes a second

    def score(row, output):
        if not scorers:
            package = importlib.import_module("rouge_score.rouge_scorer")
            options = {"use_stemmer": stemmer, "tokenizer": tokenizer}
            scorers.append(package.RougeScorer(["rougeL"], **options))
        found = scorers[0].score_multi(list(row.references), output)
        return float(found["rougeL"].fmeasure)

    return score


def words_and_signs(text: str) -> list[str]:
    """Lower-case words, and each sign of punctuation by itself."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def sari(
    *,
    original: bool = False,
    tokenize: Callable[[str], list[str]] = words_and_signs,
) -> Score:
    r"""SARI of a simplification: what is added, kept and deleted of ``row.source``.

    .. math:: \text{SARI} = (F_\text{add} + F_\text{keep} + P_\text{del}) / 3

    each a mean over n-grams of 1 to 4 tokens: F measures of the n-grams that output and
    references add to the source or keep of it, and the precision of those that the output
    deletes. With ``r`` references each n-gram of source and output counts ``r`` times, so
    that one which a third of the references keeps is a third right.

    Args:
      original: as the authors' script (github.com/cocoxu/simplification, commit 0210f15)
        has it: there 0/0 is 0, so that a perfect output of fewer than four tokens, or one
        that deletes nothing, scores below 1, and the recall of what is kept is a mean over
        distinct n-grams. Otherwise as Hugging Face's metric ``sari``, which TRACE's results
        use: 0/0 is 1, and that recall is a ratio of counts. Both take precisions as means
        over distinct n-grams, and what is added as sets; the paper's equations 3 to 8 have
        sums of counts.
      tokenize: text to tokens; those metrics split at spaces (the authors'), or by
        sacrebleu's 13a.

    Source: Xu et al. 2016, "Optimizing Statistical Machine Translation for Text
    Simplification", TACL 4, section 3.
    """

    def score(row, output):
        usable = isinstance(row.source, str) and row.source.strip()
        came = f"got {shown(row.source)}; give TextRow(prompt, references, source)"
        require(usable, "sari", f"source must be the text to simplify, {came}")
        texts = [tokenize(text) for text in (row.source, output, *row.references)]
        parts = [_operations(original, n, *texts) for n in (1, 2, 3, 4)]
        return sum(map(sum, parts)) / 12

    return score


def _operations(original: bool, n: int, source, output, *references):
    """``(F_add, F_keep, P_del)`` of the n-grams of one length."""
    grams = lambda tokens: Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    times = len(references)
    scaled = lambda counts: Counter({g: times * c for g, c in counts.items()})
    held: Counter = sum((grams(tokens) for tokens in references), Counter())
    had, has = scaled(grams(source)), scaled(grams(output))
    empty = 0.0 if original else 1.0

    ratio = lambda part, total: part / total if total else empty
    mean_ratio = lambda part, total: ratio(
        sum(part[gram] / total[gram] for gram in part), len(total)
    )
    added, wanted = set(has) - set(had), set(held) - set(had)
    right = len(added & set(held))
    kept, keepable = had & has, had & held
    both = kept & held
    recall = (
        mean_ratio(both, keepable)
        if original
        else ratio(both.total(), keepable.total())
    )
    gone = had - has
    return (
        _harmonic(ratio(right, len(added)), ratio(right, len(wanted))),
        _harmonic(mean_ratio(both, kept), recall),
        mean_ratio(gone - held, gone),
    )


def _harmonic(precision: float, recall: float) -> float:
    """The F measure; 0 where both are."""
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0
