"""The page: complete, closed, free of the network, and safe to read."""

import re
from html.parser import HTMLParser
from pathlib import PurePosixPath

import pytest

from jaxcl import report as figures
from jaxcl.report.page import Picture, Section, render
from jaxcl.report.style import FAINT, GRID, INK
from jaxcl.report.summaries import summarize
from jaxcl.report.tables import summary_table
from tests.test_report.test_summaries import noisy
from tests.test_report.toy_records import record

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Oracle: checks that tags close in order, and collects what there is."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.refs, self.words, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                self.refs.append(value)
            self.refs += re.findall(r"url\((.*?)\)", value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


@pytest.fixture(scope="module")
def page():
    lost = [record("sam", 9, [None] * 10, status="diverged", first_bad_task=4)]
    records = [*noisy("sgd", 0), *noisy("sam", 0.01), *lost]
    picture = lambda: Picture(
        "curves", figures.learning_curves(records), 'two "curves"', "Below."
    )
    table = summary_table(summarize(records, baseline="sgd"))
    return render(
        title="Sharpness & plasticity",
        claim="SAM <keeps> plasticity.",
        verdict=["It does not.", "Runs were <few>."],
        sections=[
            Section("Curves", "First.\n\nSecond.", [picture(), picture()]),
            Section("Table", tables={"accuracy": table}),
        ],
        records=records,
        config={"rates": [0.1, 0.01], "name": "<b>"},
        environment={"jax": "1.2.3"},
        status={"status": "diverged", "seconds": 3.5},
    )


@pytest.fixture
def reader(page):
    parsed = Reader()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    return parsed


def test_the_page_opens_with_claim_and_verdict(reader):
    """Oracle: the order of the words; markup in them is text."""
    text = " ".join(reader.words)
    parts = [
        "Sharpness & plasticity",
        "SAM <keeps> plasticity.",
        "It does not.",
        "Curves",
    ]
    places = [text.index(part, 30 if part == parts[0] else 0) for part in parts]
    assert places == sorted(places)
    assert not any(tag in ("keeps", "b") for tag, _ in reader.tags)


def test_the_page_holds_tables_settings_environment_and_lost_runs(reader):
    """Oracle: what was put in."""
    text = " ".join(reader.words)
    for part in (
        "verdict",
        "better",
        "[0.1, 0.01]",
        "<b>",
        "1.2.3",
        "seconds",
        "Below.",
    ):
        assert part in text
    assert "1 runs diverged" not in text
    assert "1 run diverged" in text
    assert "from task 5 on" in text
    assert ("span", {"class": "badge diverged"}) in reader.tags


def test_a_verdict_is_a_list_with_an_item_for_each_statement(page):
    """Oracle: by hand; control: a single statement makes no list."""
    items = re.findall(r"<li>(.*?)</li>", page[: page.index("</header>")])
    assert items == ["It does not.", "Runs were &lt;few&gt;."]
    assert "<ul>" not in render(title="T", claim="C.", verdict="V.", sections=[])


def test_a_wide_table_scrolls_within_the_page_and_by_the_keyboard(reader):
    """Oracle: the element around each table: it takes the focus and has its name."""
    around = [attrs for tag, attrs in reader.tags if attrs.get("class") == "scroll"]
    assert [attrs["aria-label"] for attrs in around] == ["table accuracy"]
    assert all(attrs["tabindex"] == "0" for attrs in around)


def test_the_page_asks_the_network_for_nothing(reader, page):
    """Oracle: every reference is to a name within the page, and it exists."""
    assert reader.refs
    for reference in reader.refs:
        assert reference.strip("\"'").startswith("#")
        assert reference.strip("\"'#") in reader.ids
    loading = re.findall(r"@import|<link|<img|src=|fetch\(|XMLHttp", page)
    assert loading == []


def test_names_are_unique_though_figures_repeat(reader):
    """Oracle: counting."""
    assert len(reader.ids) == len(set(reader.ids))


def test_figures_can_be_read_without_eyes_and_in_the_dark(reader, page):
    """Oracle: a label on each figure; no ink that stays dark on a dark page."""
    drawings = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert len(drawings) == 2
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert drawing["aria-label"] == 'two "curves"'
    body = page[page.index("<body>") :]
    for ink in (INK, FAINT, GRID):
        assert ink not in body
    assert "var(--ink)" in body
    assert "prefers-color-scheme: dark" in page


def test_a_page_of_nothing_but_words_is_fine():
    """Oracle: the parser."""
    text = render(title="T", claim="C.", verdict="V.", sections=[])
    parsed = Reader()
    parsed.feed(text)
    assert parsed.open == []
    assert "{" not in "".join(parsed.words)


def test_settings_that_json_cannot_hold_are_shown_as_text():
    """Oracle: their own words."""
    config = {"folder": PurePosixPath("runs/a")}
    text = render(title="T", claim="C.", verdict="V.", sections=[], config=config)
    assert "runs/a" in text
