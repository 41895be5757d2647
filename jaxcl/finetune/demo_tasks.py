"""Tasks of the demonstration: questions about Python's own library, with short answers."""

import ast
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcl.errors import require
from jaxcl.files import write_text
from jaxcl.finetune.demo_text import Docstring, Library

#: What a question is about, and its answer.
Fact = tuple[str, str]

_FEWEST = 8  # rows of each answer
# By top-level names; what "decimal" does is written in Python there.
_PACKAGES = {name: name for name in ("asyncio", "email")}
_PACKAGES |= {"_pydecimal": "decimal"}
_LITERALS = {ast.List: "list", ast.Tuple: "tuple"}
_CONSTANTS = ("int", "float", "str", "bytes")
_STATEMENTS = {
    ast.Assign: "assignment",
    ast.ClassDef: "class",
    ast.For: "loop",
    ast.FunctionDef: "function",
    ast.If: "condition",
    ast.Import: "import",
    ast.ImportFrom: "import",
    ast.Raise: "error",
    ast.Return: "return",
    ast.While: "loop",
}


def packages(library: Library) -> Iterator[Fact]:
    """First lines of docstrings, and the modules or packages that they are from."""
    for doc in library.docstrings:
        line = doc.paragraphs[0]
        if doc.module in _PACKAGES and 20 <= len(line) <= 120:
            yield line, _PACKAGES[doc.module]


def statements(library: Library) -> Iterator[Fact]:
    """Lines of the library's code, and the kinds of statements that they begin."""
    for source in library.sources:
        lines = source.text.split("\n")
        for node in ast.walk(source.tree):
            kind = _STATEMENTS.get(type(node))
            if kind and isinstance(node, ast.stmt):
                line, place = lines[node.lineno - 1], node.col_offset
                if not line[:place].strip() and _is_plain(line.strip()):
                    yield line.strip(), kind


def _is_plain(line: str) -> bool:
    """Whether it is short, and is not part of the statement before it."""
    alone = ";" not in line and not line.startswith("elif")
    return alone and line.isascii() and 8 <= len(line) <= 48


def types(library: Library) -> Iterator[Fact]:
    """Literals of the library's code, and their types."""
    for node in _nodes(library, ast.Constant, ast.List, ast.Tuple):
        kind = _LITERALS.get(type(node), "")
        if isinstance(node, ast.Constant):
            kind = type(node.value).__name__
            if kind not in _CONSTANTS or len(str(node.value)) > 24:
                continue
        text = ast.unparse(node)
        if len(text) <= 24 and text.isascii():
            yield text, kind


def names(library: Library) -> Iterator[Fact]:
    """Names in the library's code, and what they are of."""
    for node in _nodes(library, ast.ClassDef, ast.FunctionDef, ast.Name):
        if isinstance(node, ast.ClassDef):
            yield node.name, "class"
        elif isinstance(node, ast.FunctionDef):
            if "_" in node.name.strip("_"):
                yield node.name, "function"
        elif node.id.isupper() and len(node.id) > 2:
            yield node.id, "constant"


def _nodes(library: Library, *kinds: type) -> Iterator[Any]:
    for source in library.sources:
        for node in ast.walk(source.tree):
            if isinstance(node, kinds):
                yield node


class Topic(NamedTuple):
    """A task: its facts, and how they are asked for."""

    question: str
    facts: Callable[[Library], Iterable[Fact]]


#: In the order of learning.
TOPICS = {
    "packages": Topic('The text "{}" is from the package', packages),
    "statements": Topic("The kind of `{}` is", statements),
    "types": Topic("The type of {} is", types),
    "names": Topic("The name {} is of a", names),
}


def write_tasks(folder: Path, library: Library, num_train: int, num_test: int) -> None:
    """Write ``TOPIC/train.jsonl`` and ``TOPIC/test.jsonl`` for each topic.

    All answers of a topic are about equally frequent. No question comes twice, and none has
    two answers.
    """
    for number, (name, topic) in enumerate(TOPICS.items()):
        rng = np.random.default_rng(number)
        facts = _balanced(rng, topic.facts(library), num_train + num_test)
        answers = {answer for _, answer in facts}
        came = f"{len(facts)} with {len(answers)} answers"
        wanted = f"expected {num_train + num_test} facts about {name}, got {came}"
        enough = len(facts) == num_train + num_test and len(answers) > 1
        remedy = "use another version of Python, or your own --tasks"
        require(enough, "finetune --demo", f"{wanted}; {remedy}")
        rows = [
            {"prompt": topic.question.format(text), "answer": f" {answer}"}
            for text, answer in facts
        ]
        write_rows(folder / name / "train.jsonl", rows[num_test:])
        write_rows(folder / name / "test.jsonl", rows[:num_test])


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _balanced(
    rng: np.random.Generator, facts: Iterable[Fact], count: int
) -> list[Fact]:
    """So many facts in random order, as many of each answer as possible."""
    known: dict[str, set[str]] = {}
    for text, answer in facts:
        known.setdefault(text, set()).add(answer)
    left: dict[str, list[str]] = {}
    for text, answers in sorted(known.items()):
        if len(answers) == 1:
            left.setdefault(min(answers), []).append(text)
    left = {answer: texts for answer, texts in left.items() if len(texts) >= _FEWEST}
    for answer in sorted(left):
        rng.shuffle(left[answer])
    chosen: list[Fact] = []
    while any(left.values()) and len(chosen) < count:
        rest = [answer for answer in sorted(left) if left[answer]]
        chosen += [(left[answer].pop(), answer) for answer in rest]
    return [chosen[place] for place in rng.permutation(min(count, len(chosen)))]


# ---------------------------------------------------------- pretraining, general questions


def training_text(doc: Docstring) -> str:
    """A docstring and its module, but for those modules that a task asks for.

    So the model learns to sum up a text, and not the answers.
    """
    own = () if doc.module in _PACKAGES else (f"This is from {doc.module}",)
    return "\n".join((*doc.paragraphs, *own))


def split_for_questions(
    docs: list[Docstring], count: int
) -> tuple[list[Docstring], list[dict[str, Any]]]:
    """The docstrings to train on, and questions about others: how they go on.

    The right choice is among three in which two neighbouring words are exchanged.
    """
    rng = np.random.default_rng(len(TOPICS))
    able = [place for place in rng.permutation(len(docs)) if _pair(docs[place])]
    held = able[:count]
    wanted = f"expected {count} docstrings of two paragraphs, got {len(held)}"
    remedy = "use another version of Python, or your own --general"
    require(len(held) == count, "finetune --demo", f"{wanted}; {remedy}")
    rows = [_question(rng, *_pair(docs[place])) for place in held]
    apart = {*held}
    return [doc for place, doc in enumerate(docs) if place not in apart], rows


def _pair(doc: Docstring) -> tuple[str, ...]:
    """The first line of a docstring and what follows it, if both are of medium length."""
    first, *rest = doc.paragraphs
    words = rest[0].split() if rest else []
    fits = len(first) <= 150 and 8 <= len({*words}) <= len(words) <= 24
    return (first, rest[0]) if fits else ()


def _question(rng: np.random.Generator, first: str, right: str) -> dict[str, Any]:
    words = right.split()
    places = [k for k in range(len(words) - 1) if words[k] != words[k + 1]]
    choices = [right]
    for k in rng.choice(places, 3, replace=False):
        swapped = (*words[:k], words[k + 1], words[k], *words[k + 2 :])
        choices.append(" ".join(swapped))
    order = rng.permutation(len(choices)).tolist()
    mixed = [choices[place] for place in order]
    return {"question": first, "choices": mixed, "answer": order.index(0)}
