"""Results inside a README, so that no number in it is typed by hand."""

from pathlib import Path
from typing import Any

from jaxcl.errors import require
from jaxcl.files import write_text


def fill(path: Path, text: str, name: str = "results") -> None:
    """Replace what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->``.

    The marks stay, a blank line apart from the Markdown text. Filling twice changes
    nothing more, and a file that would not change is not written.

    Raises:
      InputError: unless each mark stands there once, the first one first.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    held = path.read_text(encoding="utf-8")
    once = held.count(begin) == held.count(end) == 1
    ordered = once and held.index(begin) < held.index(end)
    wanted = f"expected the marks {begin} and {end}, once each, in this order"
    require(ordered, str(path), wanted)
    before, after = held.split(begin)[0], held.split(end)[1]
    made = f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"
    if made != held:
        write_text(path, made)


def made_on(environment: dict[str, Any]) -> str:
    """Machine, version and commit of a committed folder, from its ``environment.json``."""
    commit, _, changes = (environment["commit"] or "unknown").partition(" ")
    return (
        f"{environment['cpu']}, {environment['devices']}; jax "
        f"{environment['versions']['jax']}; commit {f'{commit[:9]} {changes}'.strip()}"
    )
