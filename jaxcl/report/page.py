"""One self-contained HTML file: claim, verdict, figures, tables, and settings.

Nothing is fetched: styles, figures and the script are inside. Colours follow the
reader's light or dark preference, tables are sorted by a click or a key, wide ones scroll
within the page, figures have alternative texts, and there is a style for printing. The
page without its contents is ``page.html`` beside this file.
"""

import html
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from jaxcl.report.figures import to_svg
from jaxcl.report.records import Record, split
from jaxcl.report.statistics import Interval
from jaxcl.report.style import COLOURS, FAINT, GRID, INK
from jaxcl.report.tables import Table, is_text_column, show


class Picture(NamedTuple):
    """A figure, the name of its file, its alternative text, and a caption."""

    name: str
    figure: Figure
    alt: str
    caption: str = ""  # the alternative text if empty


class Section(NamedTuple):
    """A heading with paragraphs, then pictures, then tables by the names of their files.

    Paragraphs of ``text`` are separated by empty lines; it is plain text.
    """

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Mapping[str, Table] = {}


def render(
    *,
    title: str,
    claim: str,
    verdict: str | Sequence[str],
    sections: Sequence[Section],
    records: Sequence[Record] = (),
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML text.

    Claim, verdict (a statement or a list of them) and the names of diverged records come
    first, then the sections in order, then settings (``config``), versions and machine
    (``environment``) and how the run ended (``status``, also shown beside the title).
    """
    state = _text((status or {}).get("status", ""))
    badge = f'<span class="badge {state}">{state}</span>' if state else ""
    about = {"Configuration": config, "Environment": environment, "Run": status}
    settings = [_mapping(name, values) for name, values in about.items() if values]
    counter = itertools.count(1)
    body = [
        f"<header><h1>{_text(title)} {badge}</h1>",
        f'<dl class="verdict">{claim and f"<dt>Claim</dt><dd>{_text(claim)}</dd>"}',
        f"<dt>Verdict</dt><dd>{_statements(verdict)}</dd></dl></header>",
        _lost(split(records)[1]),
        *(_section(section, counter) for section in sections),
        "<section><h2>How it was run</h2>" if settings else "",
        *settings,
        "</section>" if settings else "",
    ]
    template = Template(files("jaxcl.report").joinpath("page.html").read_text("utf-8"))
    return template.substitute(title=_text(title), body="\n".join(body))


def _text(value: Any) -> str:
    return html.escape(str(value))


def _statements(verdict: str | Sequence[str]) -> str:
    """One statement as text, several as a list."""
    said = [verdict] if isinstance(verdict, str) else verdict
    if len(said) == 1:
        return _text(said[0])
    return f"<ul>{''.join(f'<li>{_text(one)}</li>' for one in said)}</ul>"


def _lost(records: Sequence[Record]) -> str:
    """The runs that diverged, by name."""
    if not records:
        return ""
    items = ""
    for record in records:
        task = record.get("first_bad_task")
        when = "" if task is None else f", from task {task + 1} on"
        items += f"<li><code>{_text(record['run'])}</code>{when}</li>"
    return (
        f'<details class="lost"><summary>{len(records)} run{"s" * (len(records) > 1)} '
        f"diverged, never averaged in</summary><ul>{items}</ul></details>"
    )


def _section(section: Section, counter: Iterator[int]) -> str:
    parts = [f"<section><h2>{_text(section.title)}</h2>"]
    paragraphs = filter(None, re.split(r"\n\s*\n", section.text.strip()))
    parts += [f"<p>{_text(paragraph)}</p>" for paragraph in paragraphs]
    parts += [_picture(picture, next(counter)) for picture in section.pictures]
    parts += [_table(name, table) for name, table in section.tables.items()]
    return "\n".join([*parts, "</section>"])


def _picture(picture: Picture, number: int) -> str:
    """The figure as SVG in the page, its colours replaced by those of the page."""
    drawing = to_svg(picture.figure)
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    inks = ((INK, "ink"), (FAINT, "faint"), (GRID, "grid"), (COLOURS[0], "blue"))
    for ink, name in inks:
        drawing = drawing.replace(ink, f"var(--{name})")
    # names are unique within one drawing only
    drawing = re.sub(r'\bid="', f'id="f{number}-', drawing)
    drawing = re.sub(r"(href=\"#|url\(#)", rf"\1f{number}-", drawing)
    label = f'<svg role="img" aria-label="{_text(picture.alt)}"'
    drawing = drawing.replace("<svg", label, 1)
    caption = _text(picture.caption or picture.alt)
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _table(name: str, table: Table) -> str:
    """A table that is sorted by a click on a heading."""
    columns, places = table.columns, range(len(table.columns))
    sides = ["" if is_text_column(table, i) else ' class="number"' for i in places]
    heading = lambda column, side: (
        f'<th scope="col"{side}><button type="button">{_text(column.name)}</button></th>'
    )
    cell = lambda value, column, side: (
        f'<td{side} data-key="{_text(_sort_key(value))}">'
        f"{_text(show(value, column))}</td>"
    )
    head = "".join(map(heading, columns, sides))
    rows = ("".join(map(cell, row, columns, sides)) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    notes = "".join(f"<p>{_text(note)}</p>" for note in table.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table {_text(name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<div class="notes">{notes}</div>'
    )


def _sort_key(value: Any) -> Any:
    """What a cell is sorted by; empty if it is not known."""
    value = value.mean if isinstance(value, Interval) else value
    return "" if value is None or value != value else value


def _mapping(name: str, values: Mapping[str, Any]) -> str:
    """Settings as a folded table."""
    rows = ""
    for key, value in values.items():
        is_text = isinstance(value, str)
        shown = value if is_text else json.dumps(value, ensure_ascii=False, default=str)
        rows += f'<tr><th scope="row">{_text(key)}</th><td>{_text(shown)}</td></tr>'
    return (
        f"<details><summary>{_text(name)}</summary>"
        f'<table class="plain"><tbody>{rows}</tbody></table></details>'
    )
