"""Sentences with a tag for each word, in columns as those of the CoNLL shared tasks.

A line has a word, perhaps other columns, and a tag; an empty line ends a sentence::

    U.N.      B-ORG
    official  O
    Ekeus     B-PER

Schemes of tags, all of them read as ``B-`` and ``I-``:

- ``"bio"`` (IOB2): ``B-X`` begins an entity of type ``X``, ``I-X`` continues one.
- ``"iob1"``: ``I-X`` also begins one; ``B-X`` only where it follows another of its type.
- ``"bioes"``: also ``E-X``, the end of an entity, and ``S-X``, an entity of one word.
- ``"types"``: types without a prefix, as in Few-NERD; neighbours of one type are an entity.

Sources: Ramshaw and Marcus 1995, arXiv:cmp-lg/9505040 (IOB1); Tjong Kim Sang and De
Meulder 2003, arXiv:cs/0306050 (CoNLL-2003); Ding et al. 2021, arXiv:2105.07464 (Few-NERD).
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcl.data.files import existing_file
from jaxcl.data.readers import read_text
from jaxcl.errors import is_whole, require, shown

SCHEMES = "bio", "iob1", "bioes", "types"
_REMEDIES = {
    "bio": "write B-X, I-X or O, or give scheme='types' for types without a prefix",
    "iob1": "write B-X, I-X or O, or give scheme='types' for types without a prefix",
    "bioes": "write B-X, I-X, E-X, S-X or O",
    "types": "write a type, or O",
}


class Sentence(NamedTuple):
    """The words of a sentence, and a tag ``B-X``, ``I-X`` or ``O`` for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    source: str = "a sentence"  # its file, for messages
    line: int = 0  # of the first word; 0 outside a file

    def place(self, word: int = 0) -> str:
        """Where a word is, for a message."""
        return f"{self.source}, line {self.line + word}" if self.line else self.source


def read_conll(
    path: str | os.PathLike[str],
    *,
    scheme: str = "bio",
    repair: bool = False,
    word: int = 0,
    tag: int = -1,
) -> list[Sentence]:
    """The sentences of a file of columns, plain or ``.gz``.

    ::

        sentences = read_conll("wikigold.conll.txt", scheme="iob1")

    Columns are separated by tabs, or by spaces where a line has no tab. Lines that begin
    with ``-DOCSTART-`` are skipped.

    Args:
      path: of the file, in UTF-8.
      scheme: of its tags, see :mod:`jaxcl.data.conll`.
      repair: whether ``I-X`` that continues no entity of its type begins one; it is
        refused otherwise.
      word: column of the words, from 0, or from the end below 0.
      tag: column of the tags, likewise.

    Raises:
      InputError: naming file and line: for a line with other columns than the first one,
        or a tag that the scheme does not have.
    """
    who = "read_conll"
    wanted = f"expected the path of a file, got {shown(path)}"
    require(isinstance(path, str | os.PathLike), who, f"{wanted}; give one")
    known = f"scheme must be one of {', '.join(SCHEMES)}, got {shown(scheme)}"
    require(isinstance(scheme, str) and scheme in SCHEMES, who, known)
    columns = f"word and tag must be columns, got {shown(word)} and {shown(tag)}"
    numbered = is_whole(word) and is_whole(tag) and word != tag
    require(numbered, who, f"{columns}; 0 is the first, -1 the last")
    path = existing_file(who, Path(path), "give a file of words and tags in columns")
    sentences = []
    for line, words, tags in _sentences(who, path, word, tag):
        raw = Sentence(tuple(words), tuple(tags), str(path), line)
        sentences.append(raw._replace(tags=_as_bio(who, raw, scheme, repair)))
    require(sentences, who, f"{path} has no sentences; give a file with some")
    return sentences


def _sentences(
    who: str, path: Path, word: int, tag: int
) -> Iterator[tuple[int, list[str], list[str]]]:
    """The first line, the words and the tags of each sentence."""
    expected, begun = None, 0
    words, tags = [], []
    for number, line in enumerate(read_text(who, path).split("\n"), 1):
        fields = _fields(line.rstrip("\r"))
        if fields and fields[0] != "-DOCSTART-":
            if expected is None:
                expected, begun = len(fields), number
                least = max(_least(word), _least(tag), 2)
                few = f"expected at least {least} columns, got {expected}"
                fix = "write a word and its tag, or give word= and tag="
                require(expected >= least, who, f"{path}, line {number}: {few}; {fix}")
            if len(fields) != expected or not fields[word].strip():
                other = f"expected {expected} columns, as in line {begun}, got"
                came = (
                    f"{len(fields)}, some of them empty"
                    if "" in fields
                    else len(fields)
                )
                require(False, who, f"{path}, line {number}: {other} {came}; fix it")
            words.append(fields[word])
            tags.append(fields[tag].strip())
        elif words:
            yield number - len(words), words, tags
            words, tags = [], []
    if words:
        yield number + 1 - len(words), words, tags


def _fields(line: str) -> list[str]:
    """The columns of a line. Other kinds of spaces may be parts of words."""
    if not line.strip(" \t"):
        return []
    if "\t" in line:
        return line.split("\t")
    return [field for field in line.split(" ") if field]


def _least(column: int) -> int:
    """The number of columns that a line needs to have this one."""
    return column + 1 if column >= 0 else -column


def _as_bio(who: str, sentence: Sentence, scheme: str, repair: bool) -> tuple[str, ...]:
    """Tags of a sentence as ``B-X``, ``I-X`` and ``O``."""
    found, before = [], None  # the type of the entity that may be continued
    for word, tag in enumerate(sentence.tags):
        prefix, kind = _split(who, sentence, word, scheme)
        if prefix == "O":
            found.append("O")
            before = None
            continue
        begins = prefix in "BS" or kind != before
        if prefix in "IE" and begins and scheme in ("bio", "bioes") and not repair:
            after = f"after {sentence.tags[word - 1]}" if word else "at the beginning"
            alone = f"{tag} {after} continues no entity"
            remedy = "write B-X, or give repair=True, or scheme='iob1'"
            require(False, who, f"{sentence.place(word)}: {alone}; {remedy}")
        found.append(f"{'B' if begins else 'I'}-{kind}")
        before = None if prefix in "ES" else kind
    return tuple(found)


def _split(who: str, sentence: Sentence, word: int, scheme: str) -> tuple[str, Any]:
    """A tag's prefix, I where the scheme has none, and its type."""
    tag = sentence.tags[word]
    if tag == "O":
        return "O", None
    if scheme == "types" and tag:
        return "I", tag
    prefix, dash, kind = tag.partition("-")
    known = prefix in (("B", "I", "E", "S") if scheme == "bioes" else ("B", "I"))
    if not (known and dash and kind) or scheme == "types":
        wanted = f"expected a tag of scheme {scheme!r}, got {shown(tag)}"
        require(False, who, f"{sentence.place(word)}: {wanted}; {_REMEDIES[scheme]}")
    return prefix, kind


def entity_types(sentences: Sequence[Sentence]) -> list[str]:
    """The types of all entities in sorted order.

    ::

        entity_types(read_conll("train.conll"))                  # ["LOC", "ORG", "PER"]
    """
    tags = {tag for sentence in sentences for tag in sentence.tags}
    return sorted({tag[2:] for tag in tags if tag != "O"})


def tag_names(types: Sequence[str]) -> list[str]:
    """The tags of types in the order of their numbers: a new type adds two at the end.

    ::

        tag_names(["PER", "LOC"])               # ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    """
    return ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
