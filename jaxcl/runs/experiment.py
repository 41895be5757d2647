"""An experiment: named settings, and the command line that chooses and changes them.

A package with three modules is an experiment::

    config.py    a frozen dataclass of settings, presets, and EXPERIMENT
    run.py       run(config, folder): does every run that has no line of results yet
    report.py    report(config, folder): tables, figures and a page of what has finished

and its ``__main__.py`` is ``raise SystemExit(main(EXPERIMENT))``. The last two are imported
when the settings are known to be good, so that help and refusals need not wait for JAX.
"""

import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from jaxcl.errors import InputError, MissingFileError, require

OUTPUTS = Path("outputs")  # where folders go without --out; ignored by git
_OUT = (
    "Folder of the run. An unfinished run goes on, a finished one is reported again; "
    f"by default {OUTPUTS}/, experiment, preset and a hash of the settings."
)


class Experiment(NamedTuple):
    """What a command does, for people to read and for ``jaxcl.runs.command.main`` to run.

    Attributes:
      module: the package, as after ``python -m``.
      presets: named configurations, instances of one frozen dataclass.
      default: the preset that is meant where none is named.
      about: what it is, for ``--help``; the first line stands in lists.
      check: refuses settings that could not work, before any compute.
      cosmetic_fields: fields that cannot change a result: a folder may be taken up with
        others.
      path_fields: fields that name a file or folder, of which only the last component
        counts, each with the words that are not paths; ``tfds:`` means all that begin so.
    """

    module: str
    presets: Mapping[str, Any]
    default: str
    about: str
    check: Callable[[Any], None] = lambda config: None
    cosmetic_fields: tuple[str, ...] = ()
    path_fields: Mapping[str, tuple[str, ...]] = {}

    @property
    def name(self) -> str:
        """As in folders, ``plasticity`` for ``experiments.plasticity``."""
        return self.module.removeprefix("experiments.")


class Request(NamedTuple):
    """What a command line asks for."""

    preset: str
    config: Any
    out: Path | None


def parse(experiment: Experiment, argv: Sequence[str]) -> Request:
    """Read a command line: ``[PRESET] [--field value ...] [--out FOLDER]``.

    Tyro exits with code 0 after the help, with 2 for what it does not understand;
    InputError for settings that could not work.
    """
    presets, program = experiment.presets, f"python -m {experiment.module}"
    words = list(argv)
    helps = {"-h", "--help"} & set(words)
    if not words or (words[0].startswith("-") and words[0] not in helps):
        words = [experiment.default, *words]
    flags = (tyro.conf.FlagConversionOff,)  # --by-hand False, not --no-by-hand
    preset = words[0]
    if preset in presets:
        default = _command(presets[preset])
        asked = tyro.cli(
            type(default),
            prog=f"{program} {preset}",
            description=experiment.about,
            args=words[1:],
            default=default,
            config=flags,
        )
    else:  # the help of all presets, or the explanation of a word that is none of them
        named = {
            name: (_differences(experiment, config), _command(config))
            for name, config in presets.items()
        }
        about = (
            f"{experiment.about.rstrip()}\n\nWithout a preset {experiment.default} is "
            f"meant; {program} PRESET --help lists the fields."
        )
        # Without the fields: tyro would look for them among all presets, and name these by
        # the first word of the program.
        words = words if helps else words[:1]
        asked = tyro.extras.overridable_config_cli(
            named, prog=program, description=about, args=words, config=flags
        )
    experiment.check(asked.config)
    return Request(preset, asked.config, asked.out)


def check_paths(experiment: Experiment, config: Any) -> None:
    """Refuse a file or folder that is not there, by the name of the field."""
    for field, words in experiment.path_fields.items():
        value = getattr(config, field)
        begins = tuple(word for word in words if word.endswith(":"))
        if not (value in words or value.startswith(begins) or os.path.exists(value)):
            others = ", ".join(f"{w}NAME" if w in begins else w for w in words)
            msg = f"{field}: expected {others}, or a path that exists, got {value!r}."
            raise MissingFileError(msg)


def _command(config: Any) -> Any:
    """The settings and ``--out`` as one dataclass, which tyro reads."""
    kind = dataclasses.make_dataclass(
        "Command",
        [
            ("config", tyro.conf.OmitArgPrefixes[type(config)]),
            ("out", Annotated[Path | None, tyro.conf.arg(help=_OUT)], None),
        ],
        frozen=True,
        kw_only=True,
    )
    return kind(config=config)


def _differences(experiment: Experiment, config: Any) -> str:
    """How a preset differs from the default one."""
    base = dataclasses.asdict(experiment.presets[experiment.default])
    words = lambda value: " ".join(map(str, value)) if type(value) is tuple else value
    changed = [
        f"{name.replace('_', '-')} {words(value)}"
        for name, value in dataclasses.asdict(config).items()
        if value != base[name]
    ]
    return ", ".join(changed) or "the default"


def expect_no_words(doc: str | None, argv: Sequence[str] | None = None) -> None:
    """For a command that takes no arguments: return without any, exit with some.

    The code is 0 after ``--help``, which shows ``doc``, and 2 after one line for all other
    words of ``argv``, which is ``sys.argv[1:]`` if absent.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words:
        return
    if words[0] in ("-h", "--help"):
        print((doc or "").strip())
        raise SystemExit(0)
    said = f"unexpected {words[0]!r}; this command takes no arguments (see --help)"
    print(f"error: {said}.", file=sys.stderr)
    raise SystemExit(2)


def nearest(word: str, names: Collection[str]) -> str:
    """The end of a refusal: what was meant, or all there is."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    others = f"expected one of {', '.join(names)}."
    return f"; did you mean {close[0]}?" if close else f"; {others}"


def check_names(field: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse a name that is not known; the message has what is nearest to it."""
    for word in given:
        if word not in known:
            msg = f"{field}: unknown {word!r}{nearest(word, known)}"
            raise InputError(msg)


LARGEST_SEED = 2**32 - 1  # JAX cuts a larger one to 32 bits: it would be another seed
LARGEST_COUNT = 2**31 - 1  # steps and rows are counted in int32
MOST_RUNS = 10_000  # of an arm: they are listed before the first one begins


def check_fields(
    config: Any,
    *,
    may_be_zero: Collection[str] = (),
    fractions: Collection[str] = (),
    seeds: Collection[str] = ("seed",),
    runs: Collection[str] = ("seeds",),
) -> None:
    """Refuse numbers that could not work, and lists that are empty or repeat themselves.

    Every number, seeds aside, must be finite and above 0, and every integer below 2^31.
    Only in ``hidden`` equal members mean something.

    Args:
      config: a dataclass.
      may_be_zero: fields in which 0 stands for nothing or none.
      fractions: fields that must be below 1.
      seeds: fields that must be in [0, 2^32).
      runs: fields that count runs, at most 10,000.
    """
    for field, value in dataclasses.asdict(config).items():
        members = value if isinstance(value, tuple) else (value,)
        # Not isinstance: a bool is an int, too.
        numbers = [n for n in members if type(n) in (int, float)]
        zero = field in may_be_zero
        most = MOST_RUNS if field in runs else LARGEST_COUNT
        end = 1 if field in fractions else math.inf
        least = "of at least" if zero else "above"
        below = " and below 1" if field in fractions else ""
        rules = {
            "at least one": members,
            "each one once": field == "hidden" or len({*members}) == len(members),
        }
        if field in seeds:
            fit = all(0 <= n <= LARGEST_SEED for n in numbers)
            rules[f"an integer from 0 to {LARGEST_SEED}"] = fit
        else:
            few = all(n <= most for n in numbers if isinstance(n, int))
            fit = all(0 < n < end or (zero and n == 0) for n in numbers)  # not for NaN
            rules |= {f"at most {most}": few, f"finite numbers {least} 0{below}": fit}
        came = value if members else "none"
        for wanted, holds in rules.items():
            require(holds, field, f"expected {wanted}, got {came}")
