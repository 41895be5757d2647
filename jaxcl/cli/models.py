"""``jaxcl evaluate``, ``generate``, ``export`` and ``interpolate``: models of runs."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxcl.cli.finetune import plain_warnings
from jaxcl.errors import MissingFileError, require
from jaxcl.finetune.config import SETTINGS, Text
from jaxcl.finetune.words import flag
from jaxcl.runs.command import refusing, tell_end
from jaxcl.signals import ignore_more, terminable

_FLAGS = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)


@refusing
def _act(name: str, kind: type, act: Callable[[Any], None], argv: Sequence[str]) -> int:
    """Parse the words of a command, act, and end as commands do."""
    asked = tyro.cli(kind, prog=f"jaxcl {name}", args=list(argv), config=_FLAGS)
    with plain_warnings(), terminable():
        try:
            act(asked)
        except KeyboardInterrupt as error:
            ignore_more()
            return tell_end(
                error, asked.run if isinstance(asked, Interpolate) else None
            )
    return 0


def _check_source(source: Path) -> None:
    """Refuse what is neither a model nor a run."""
    known = any((source / name).is_file() for name in ("config.json", SETTINGS))
    if not known:
        came = "a folder with neither" if source.is_dir() else "a file"
        came = came if source.exists() else "nothing"
        wanted = "expected the folder of a Hugging Face model or of a run"
        msg = f"{wanted}, got {came} at {source}."
        raise MissingFileError(msg)


def _check_new(out: Path | None) -> None:
    there = f"{out} exists, and nothing is overwritten; give a new folder"
    require(out is None or not out.exists(), "--out", there)


def _check_above_0(asked: Any, *names: str) -> None:
    for name in names:
        value = getattr(asked, name)
        wanted = f"expected a number above 0, got {value}"
        require(value is None or value > 0, flag(name), wanted)


# --------------------------------------------------------------------------- evaluate


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Test a model, or a learner of a run, on files: answers, choices, intervals.

    Without --tasks and --general a run is tested on its own.
    """

    source: tyro.conf.Positional[Path]
    """Folder of a Hugging Face model, or of a run of jaxcl finetune."""
    tasks: tuple[str, ...] = ()
    """Files of prompts and answers; of a folder its test.jsonl, with the labels of its
    train.jsonl. Of a run, flags of their format that are absent are as in it."""
    general: tuple[str, ...] = ()
    """Files of questions with choices."""
    learner: str | None = None
    """Of the run: params, or slow, fast, interpolated; the default one if absent."""
    after: int | None = None
    """Of the run: after so many tasks; the last one if absent."""
    rows: int | None = None
    """Most rows of a file, drawn from it; all of a run's own tests, else 100 if absent."""
    max_new_tokens: int | None = None
    """Longest generated answer; as in the run, else 32 if absent."""
    max_labels: int | None = None
    """A file with at most so many different answers is also tested by choice among these;
    as in the run, else 20 if absent."""
    out: Path | None = None
    """New folder for a file of JSON lines for each test, in answers and general, and the
    table."""
    prompt: str | None = None
    """Field of the prompt, and no template; as in the run, else prompt if absent."""
    answer: str | None = None
    """Field of the answer; as in the run, else answer if absent."""
    template: str | None = None
    """Of the prompt, from any fields: "Topic of: {text}"; as in the run if absent."""
    join: str | None = None
    """Text between prompt and answer, such as a space; as in the run if absent."""
    max_length: int | None = None
    """Tokens at which prompts lose their beginning; as in the run, else 512 if absent."""
    chat: bool | None = None
    """Whether prompts are messages of the chat template; as in the run, or if there is one
    by default."""


def _evaluate(asked: Evaluate) -> None:
    _check_source(asked.source)
    _check_new(asked.out)
    _check_above_0(asked, "rows", "max_new_tokens", "max_length")
    form = [field.name for field in dataclasses.fields(Text)]
    given = " ".join(flag(name) for name in form if getattr(asked, name) is not None)
    needs = f"the format {given} needs files; give some"
    require(asked.tasks or not given, "--tasks", needs)
    some = asked.tasks or asked.general or (asked.source / SETTINGS).is_file()
    require(
        some, "--tasks", "a model has no tests of its own; give files, or --general"
    )
    twice = "--template makes prompts, too; leave one of them out"
    require(asked.prompt is None or asked.template is None, "--prompt", twice)
    from jaxcl.finetune.evaluate import evaluate  # imports JAX

    print(evaluate(asked))


# --------------------------------------------------------------------------- generate


@dataclasses.dataclass(frozen=True)
class Generate:
    """Answers of a model, or of a learner of a run, to prompts."""

    source: tyro.conf.Positional[Path]
    """Folder of a Hugging Face model, or of a run of jaxcl finetune."""
    prompt: tuple[str, ...] = ()
    """One or more prompts; without any, each line of the standard input is one."""
    learner: str | None = None
    """Of the run; the default one if absent."""
    after: int | None = None
    """Of the run: after so many tasks; the last one if absent."""
    max_new_tokens: int = 128
    """Longest answer."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Draw from so many tokens."""
    top_p: float = 1.0
    """Draw from the fewest tokens with this probability."""
    seed: int = 0
    """Of the draws."""
    chat: bool | None = None
    """Whether prompts are messages of the chat template; as in the run, or if there is one
    by default."""
    as_json: bool = False
    """A line {"prompt", "output"} for each, in place of text."""


def _generate(asked: Generate) -> None:
    _check_source(asked.source)
    _check_above_0(asked, "max_new_tokens", "top_k")
    prompts = list(asked.prompt) or [line.rstrip("\n") for line in sys.stdin]
    prompts = [prompt for prompt in prompts if prompt.strip()]
    require(
        prompts, "--prompt", "expected text, here or on the standard input, got none"
    )
    from jaxcl.finetune.evaluate import answers_to

    for prompt, output in zip(prompts, answers_to(asked, prompts), strict=True):
        pair = {"prompt": prompt, "output": output}
        one = f"> {prompt}\n{output}\n" if len(prompts) > 1 else output
        print(json.dumps(pair, ensure_ascii=False) if asked.as_json else one)


# --------------------------------------------------------------------- export, interpolate


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a learner of a run for other tools: an adapter of PEFT, or a full model."""

    run: tyro.conf.Positional[Path]
    """Folder of a run of jaxcl finetune."""
    out: Path
    """New folder."""
    to: Literal["peft", "merged"] = "peft"
    """peft: the adapter alone; merged: a Hugging Face model with the adapter in it."""
    learner: str | None = None
    """slow, fast, interpolated, params; the default one if absent."""
    after: int | None = None
    """After so many tasks; the last one if absent."""


def _export(asked: Export) -> None:
    from jaxcl.finetune.config import run_settings

    run_settings(asked.run)
    _check_new(asked.out)
    from jaxcl.finetune.trained import export

    place = export(asked.run, asked.out, asked.to, asked.learner, asked.after)
    print(f"{place.name} is in {asked.out}")


@dataclasses.dataclass(frozen=True)
class Interpolate:
    """WiSE-FT: test the models between the one before and a learner of a run.

    Weights are (1 - alpha) before + alpha after. Results are files in RUN/interpolation,
    and a figure and a table of the page.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run of jaxcl finetune."""
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """From 0, the model before, to 1, the learner."""
    learner: str | None = None
    """slow, fast, params; the default one if absent."""
    after: int | None = None
    """After so many tasks; the last one if absent."""


def _interpolate(asked: Interpolate) -> None:
    from jaxcl.finetune.config import run_settings

    run_settings(asked.run)
    fit = asked.alphas and all(0 <= alpha <= 1 for alpha in asked.alphas)
    require(fit, "--alphas", f"expected numbers from 0 to 1, got {asked.alphas}")
    from jaxcl.finetune.curve import curve_table
    from jaxcl.finetune.interpolate import measure_curve
    from jaxcl.finetune.report import write_page
    from jaxcl.report.tables import to_markdown

    home = measure_curve(asked.run, asked.alphas, asked.learner, asked.after)
    print(to_markdown(curve_table(home)))
    write_page(asked.run)


def evaluate(argv: Sequence[str]) -> int:
    """``jaxcl evaluate``; the exit code."""
    return _act("evaluate", Evaluate, _evaluate, argv)


def generate(argv: Sequence[str]) -> int:
    """``jaxcl generate``; the exit code."""
    return _act("generate", Generate, _generate, argv)


def export(argv: Sequence[str]) -> int:
    """``jaxcl export``; the exit code."""
    return _act("export", Export, _export, argv)


def interpolate(argv: Sequence[str]) -> int:
    """``jaxcl interpolate``; the exit code."""
    return _act("interpolate", Interpolate, _interpolate, argv)
