"""One self-contained HTML file: claim, verdict, figures, tables, and settings.

Nothing is fetched: styles, figures and the script are inside. Colours follow the
reader's light or dark preference, tables are sorted by a click or a key, figures have
alternative texts, and there is a style for printing.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from jaxcl.report.figures import to_svg
from jaxcl.report.records import Record, split
from jaxcl.report.statistics import Interval
from jaxcl.report.style import COLOURS, FAINT, GRID, INK
from jaxcl.report.tables import Table, is_text_column, show


class Picture(NamedTuple):
    """A figure, its alternative text, and a caption."""

    figure: Figure
    alt: str
    caption: str = ""


class Section(NamedTuple):
    """A heading with paragraphs, then pictures, then tables.

    Paragraphs of ``text`` are separated by empty lines; it is plain text.
    """

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def render(
    *,
    title: str,
    claim: str,
    verdict: str,
    sections: Sequence[Section],
    records: Sequence[Record] = (),
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML text.

    Args:
      title: of the page.
      claim: what was to be tested, in one sentence.
      verdict: what was found, in a few sentences.
      sections: of the page, in order.
      records: named below the verdict if they diverged.
      config: settings of the run.
      environment: versions and machine.
      status: how the run ended; its ``status`` is shown beside the title.
    """
    state = str((status or {}).get("status", ""))
    badge = f'<span class="badge {_text(state)}">{_text(state)}</span>' if state else ""
    _, lost = split(records)
    about = [("Configuration", config), ("Environment", environment), ("Run", status)]
    counter = iter(range(1, 10_000))
    body = [
        f"<header><h1>{_text(title)} {badge}</h1>",
        f'<dl class="verdict"><dt>Claim</dt><dd>{_text(claim)}</dd>',
        f"<dt>Verdict</dt><dd>{_text(verdict)}</dd></dl></header>",
        _lost(lost),
        *(_section(section, counter) for section in sections),
        "<section><h2>How it was run</h2>",
        *(_mapping(name, values) for name, values in about if values),
        "</section>",
    ]
    return _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(body))


def _text(value: Any) -> str:
    return html.escape(str(value))


def _lost(records: Sequence[Record]) -> str:
    if not records:
        return ""
    when = lambda r: r.get("first_bad_task")
    items = "".join(
        f"<li><code>{_text(r['run'])}</code>"
        + (f", from task {when(r) + 1} on" if when(r) is not None else "")
        + "</li>"
        for r in records
    )
    return (
        f'<details class="lost"><summary>{len(records)} run{"s" * (len(records) > 1)} '
        f"diverged, never averaged in</summary><ul>{items}</ul></details>"
    )


def _section(section: Section, counter) -> str:
    parts = [f"<section><h2>{_text(section.title)}</h2>"]
    paragraphs = filter(None, re.split(r"\n\s*\n", section.text.strip()))
    parts += [f"<p>{_text(paragraph)}</p>" for paragraph in paragraphs]
    parts += [_picture(picture, next(counter)) for picture in section.pictures]
    parts += [_table(table) for table in section.tables]
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
    caption = picture.caption and f"<figcaption>{_text(picture.caption)}</figcaption>"
    return f"<figure>{drawing}{caption}</figure>"


def _table(table: Table) -> str:
    left = [is_text_column(table, i) for i in range(len(table.columns))]
    side = lambda i: "" if left[i] else ' class="number"'
    head = "".join(
        f'<th scope="col"{side(i)}><button type="button">{_text(column.name)}</button></th>'
        for i, column in enumerate(table.columns)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td{side(i)} data-key="{_text(_sort_key(value))}">'
            f"{_text(show(value, table.columns[i]))}</td>"
            for i, value in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<p>{_text(note)}</p>" for note in table.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<div class="notes">{notes}</div>'
    )


def _sort_key(value: Any) -> Any:
    if isinstance(value, Interval):
        value = value.mean
    return "" if value is None or value != value else value


def _mapping(name: str, values: Mapping[str, Any]) -> str:
    show_value = lambda v: (
        v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str)
    )
    rows = "".join(
        f'<tr><th scope="row">{_text(key)}</th><td>{_text(show_value(value))}</td></tr>'
        for key, value in values.items()
    )
    return (
        f"<details><summary>{_text(name)}</summary>"
        f'<table class="plain"><tbody>{rows}</tbody></table></details>'
    )


_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --faint: #8c959f; --grid: #d8dee4;
  --paper: #ffffff; --panel: #f6f8fa; --good: #1a7f37; --bad: #bc4c00; --busy: #0969da;
  --blue: #0072b2 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #7d8590;
  --grid: #30363d; --paper: #0d1117; --panel: #161b22; --good: #3fb950;
  --bad: #f0883e; --busy: #58a6ff; --blue: #3d9fd8 } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem }
p { max-width: 46rem }
code { font-size: .9em }
.badge { font-size: .8rem; font-weight: 600; vertical-align: middle; padding: .15rem .6rem;
  border: 1px solid; border-radius: 1rem; color: var(--busy) }
.badge.done { color: var(--good) }
.badge.diverged, .badge.failed { color: var(--bad) }
.verdict { background: var(--panel); border-left: 4px solid var(--busy); margin: 0;
  border-radius: 0 .4rem .4rem 0; padding: 1rem 1.25rem }
.verdict dt { font-size: .75rem; font-weight: 600; letter-spacing: .06em;
  text-transform: uppercase; color: var(--faint) }
.verdict dd { margin: 0 0 .6rem; max-width: 46rem }
.verdict dd:last-child { margin: 0; font-weight: 600 }
figure { margin: 1.2rem 0 }
figure svg { display: block; max-width: 100%; height: auto }
figcaption, .notes { font-size: .87rem; opacity: .8 }
.notes p { margin: .4rem 0 }
.scroll { overflow-x: auto; margin-top: 1.2rem }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid var(--grid) }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--faint); padding: 0 }
td { white-space: nowrap }
.number { text-align: right }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: .35rem .7rem; width: 100%; text-align: inherit; cursor: pointer;
  white-space: normal }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
tbody tr:hover { background: var(--panel) }
.plain th { font-weight: 600; white-space: nowrap; vertical-align: top }
.plain td { overflow-wrap: anywhere; white-space: pre-wrap }
details { margin: .6rem 0 }
summary { cursor: pointer; font-weight: 600 }
.lost summary { color: var(--bad) }
@media print { body { max-width: none } details { display: none } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
for (const button of document.querySelectorAll("thead button"))
  button.addEventListener("click", () => {{
    const head = button.parentElement, row = head.parentElement;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of row.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = row.closest("table").tBodies[0];
    const key = line => line.cells[head.cellIndex].dataset.key;
    const order = (a, b) => a - b || a.localeCompare(b);
    const lines = [...body.rows].sort((a, b) => {{
      const x = key(a), y = key(b);  // the unknown comes last either way
      return (x === "") - (y === "") || (up ? 1 : -1) * order(x, y);
    }});
    body.append(...lines);
  }});
</script>
</body>
</html>
"""


__all__ = ["Picture", "Section", "render"]
