"""From a command line to a run: presets, fields, and errors of one line.

Exit codes: 0 also for a run in which something diverged (its status says so and names
it) and after SIGTERM while it ran, 2 for bad input, 1 with a traceback for a bug, 130
after Ctrl-C.
"""

import contextlib
import dataclasses
import io
import re
import shlex
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import tyro

from jaxcl.errors import InputError
from jaxcl.runs.ending import ignore_more, tell_end, terminable
from jaxcl.runs.errors import is_bad_input, one_line
from jaxcl.runs.fields import nearest
from jaxcl.runs.run_folder import (
    CHECKPOINTS,
    RunFolder,
    begin,
    default_path,
    discard,
    examine,
    mark,
    plain,
    read_json,
    read_records,
)
from jaxcl.training.files import lock_folder

OUTPUTS = Path("outputs")  # where folders go without --out; ignored by git
_OUT = (
    "Folder of the run. An unfinished run goes on, a finished one is reported again; "
    f"by default {OUTPUTS}/, experiment, preset and a hash of the settings."
)


class Request(NamedTuple):
    """What a command line asks for."""

    preset: str
    config: Any
    out: Path | None


def main(
    presets: Mapping[str, Any],
    run: Callable[[Any, RunFolder], None],
    doc: str,
    argv: Sequence[str] | None = None,
    *,
    report: Callable[[Any, RunFolder], None] | None = None,
    name: str | None = None,
    cosmetic_fields: tuple[str, ...] = (),
    path_fields: tuple[str, ...] = (),
) -> int:
    """Run an experiment from its command line.

    Args:
      presets: named configurations, instances of one frozen dataclass.
      run: ``(config, folder) -> None``; skips the runs in ``finished(folder)`` and
        ``append``s the others. It should raise ``ValueError`` or ``FileNotFoundError``
        for bad input before any compute; raised by a ``raise`` of ours, they are shown
        as one line and a new folder is not left behind.
      doc: what the experiment is, for ``--help``.
      argv: the command line without the program; ``sys.argv[1:]`` if absent.
      report: ``(config, folder) -> None``, makes tables, figures and page from the
        results; also called alone when a finished run is asked for again.
      name: of the experiment; by default the folder in which the dataclass is defined.
      cosmetic_fields: fields that cannot change a result: a folder may be taken up with
        others.
      path_fields: fields that name a file or folder, of which only the last component
        counts.

    Returns:
      The exit code.
    """
    kind = type(next(iter(presets.values())))
    name = name or kind.__module__.split(".")[1]
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        request = parse(name, presets, doc, argv)
        if request is None:  # the help was shown
            return 0
        asked = RunFolder(
            Path(),
            name,
            request.preset,
            request.config,
            cosmetic_fields=cosmetic_fields,
            path_fields=path_fields,
        )
        path = request.out or default_path(asked, OUTPUTS)
        folder = asked._replace(path=path)
        examine(folder)  # refuses before anything is created
        with lock_folder(path, remedy="choose another --out") as made:
            state = examine(folder)
            if state == "finished":
                print(f"{path} is finished; making its report again.")
                if report is not None:
                    report(folder.config, folder)
                return 0
            words = f"python -m experiments.{name} {shlex.join(argv)}"
            return _run(folder, state, run, report, words, made=made)
    except ValueError as error:
        if is_bad_input(error):
            return _refuse(error)
        raise


def _run(
    folder: RunFolder,
    state: str,
    run: Callable,
    report: Callable | None,
    words: str,
    *,
    made: bool,
) -> int:
    known = len(read_records(folder))  # refuses a damaged file before it is touched
    begin(folder, words)
    if known:
        print(f"{folder.path}: {known} runs are there, going on.")
    with terminable():
        try:
            run(folder.config, folder)
            records = read_records(folder)
            lost = [r["run"] for r in records if r.get("status") == "diverged"]
            ended = "diverged" if lost else "done"
            mark(folder, ended, runs=len(records), diverged=lost)
            if report is not None:
                report(folder.config, folder)  # its page says how the run ended
        except KeyboardInterrupt as error:
            ignore_more()
            mark(folder, "interrupted")
            return tell_end(error, folder.path)
        except Exception as error:
            if is_bad_input(error):
                if state == "new" and not read_records(folder):
                    discard(folder, made=made)
                else:
                    with contextlib.suppress(OSError):  # the disk may be what refuses
                        mark(folder, "failed", error=one_line(error))
                return _refuse(error)
            mark(folder, "failed", error=traceback.format_exc())
            raise
    shutil.rmtree(folder.path / CHECKPOINTS, ignore_errors=True)
    if lost:
        print(
            f"{len(lost)} of {len(records)} runs diverged: {', '.join(lost[:5])}"
            + (", ..." if len(lost) > 5 else "")
        )
    seconds = read_json(folder.path / "status.json")["seconds"]
    print(f"{len(records)} runs in {seconds:.0f} s: {folder.path}")
    return 0


def parse(
    name: str, presets: Mapping[str, Any], doc: str, argv: list[str]
) -> Request | None:
    """Read a command line; None if it asked for help, which is then shown.

    Raises:
      InputError: for anything that is not understood, with the nearest that would be.
    """
    program = f"python -m experiments.{name}"
    if not argv:
        msg = f"say which preset: {', '.join(presets)} (or --help)."
        raise InputError(msg)
    if argv[0] in ("-h", "--help"):
        kind = type(next(iter(presets.values())))
        default = next(iter(presets.values()))
        with contextlib.suppress(TypeError):  # fields without a default
            default = kind()
        print(_help(program, presets, doc, default))
        _tyro(default, ["--help"], f"{program} {{{','.join(presets)}}}")
        return None
    preset, *rest = argv
    if preset not in presets:
        msg = f"unknown preset {preset!r}{nearest(preset, presets)}"
        raise InputError(msg)
    default = presets[preset]
    if "-h" in rest or "--help" in rest:
        print(f"{doc.strip()}\n")
        _tyro(default, ["--help"], f"{program} {preset}")
        return None
    groups = flags(rest)
    names = [option(field.name) for field in dataclasses.fields(default)] + ["--out"]
    # Given twice, the last one counts: a command is given again with another --data.
    for flag, _ in groups:
        if option(flag) not in names:
            msg = f"unknown field {option(flag)}{nearest(option(flag), names)}"
            raise InputError(msg)
    parsed = _tyro(default, rest, program)
    if isinstance(parsed, str):
        raise InputError(_blame(default, groups, program) or parsed)
    return Request(preset, parsed.config, parsed.out)


def expect_no_words(doc: str | None, argv: Sequence[str] | None = None) -> None:
    """For a command that takes no arguments: go on without any, leave with some.

    Args:
      doc: what the command does, for ``--help``.
      argv: the command line without the program; ``sys.argv[1:]`` if absent.

    Raises:
      SystemExit: of code 0 after the help, of 2 after one line for all other words.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words:
        return
    if words[0] in ("-h", "--help"):
        print((doc or "").strip())
        raise SystemExit(0)
    msg = f"unexpected {words[0]!r}; this command takes no arguments (see --help)."
    raise SystemExit(_refuse(InputError(msg)))


def flags(words: list[str]) -> list[tuple[str, list[str]]]:
    """``--field value ...`` by field, hyphens read as underscores."""
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            groups.append((flag.replace("-", "_"), [value] if equals else []))
        elif groups:
            groups[-1][1].append(word)
        else:
            msg = f"unexpected {word!r}; settings are given as --field value."
            raise InputError(msg)
    return groups


def option(field: str) -> str:
    """A field as it is typed: ``--replay-size``."""
    return f"--{field.replace('_', '-')}"


def _blame(default: Any, groups: list[tuple[str, list[str]]], program: str) -> str:
    """Which field alone is already wrong, and what it expects."""
    kinds = {field.name: field.type for field in dataclasses.fields(default)}
    for flag, values in groups:
        if isinstance(_tyro(default, [f"--{flag}", *values], program), str):
            kind = kinds.get(flag, Path)
            simple = isinstance(kind, type) and not get_args(kind)
            expected = getattr(kind, "__name__", kind) if simple else kind
            given = " ".join(values) if values else "nothing"
            return f"{option(flag)}: expected {expected}, got {given!r}."
    return ""


def _tyro(default: Any, words: list[str], program: str) -> Any:
    """The parsed command, or the text of what was wrong with it."""
    kind = dataclasses.make_dataclass(
        "Command",
        [
            ("config", tyro.conf.OmitArgPrefixes[type(default)]),
            ("out", Annotated[Path | None, tyro.conf.arg(help=_OUT)], None),
        ],
        frozen=True,
        kw_only=True,
    )
    kind.__doc__ = ""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=program,
                description="",
                args=words,
                default=kind(config=default),
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit:
        return " ".join(re.sub(r"[^\x20-\x7e]+", " ", said.getvalue()).split())


def _help(program: str, presets: Mapping[str, Any], doc: str, default: Any) -> str:
    """What stands before the options: what it is, its presets, and how to call it."""
    lines = [doc.strip(), "", "presets, and how they differ from the defaults below"]
    width = max(map(len, presets)) + 4
    base = plain(default)
    for preset, config in presets.items():
        changes = ", ".join(
            f"{field} {_words(value)}"
            for field, value in plain(config).items()
            if value != base[field]
        )
        head = f"  {preset}".ljust(width)
        lines += textwrap.wrap(
            changes or "the defaults",
            78,
            initial_indent=head,
            subsequent_indent=" " * width,
        )
    first = next(iter(presets))
    field, value = next(iter(plain(presets[first]).items()))
    lines += [
        "",
        "examples",
        f"  {program} {first}",
        f"  {program} {first} --help    (defaults of this preset)",
        f"  {program} {first} {option(field)} {_words(value)}",
        f"  {program} {first} --out {OUTPUTS}/mine",
        "",
    ]
    return "\n".join(lines)


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _refuse(error: Exception) -> int:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2


__all__ = ["OUTPUTS", "Request", "expect_no_words", "flags", "main", "option", "parse"]
