"""Hostile names come out of every output language as the text that they are: judged by parsers of these languages."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.figure import Figure

from foundation.evaluation.quantities import QUANTITIES, by_atoms, rows
from foundation.provenance import StartFacts
from foundation.reports.card import CardFacts, render_card
from foundation.reports.card_of_fine_tuning import method_rows
from foundation.reports.escape import code, figure_text, markdown, printable
from foundation.reports.page import render_page
from tests.foundation.reports.test_card import FACTS
from tests.foundation.reports.test_card_of_fine_tuning import PLAIN

HOSTILE = (
    "x|y\n\n# Heading\n\n<script>alert(1)</script> <img src=x onerror=alert(1)> [a](javascript:alert(1)) "
    "![i](http://e/x) "
    "`` `code` ``` **bold** _emphasis_ ~~gone~~ &lt;b&gt; $x$ https://e.org <http://e> --> ]]> {{ 7 * 7 }} {% raw %} \\"
)
BEGINNINGS = [
    "# x",
    "- x",
    "+ x",
    "* x",
    "1. x",
    "12) x",
    "> x",
    "---",
    "===",
    "```",
    "~~~",
    "    x",
    "| a |",
    "[x]: y",
    "#",
]
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
TEXT = {"inline", "text", "softbreak", "code_inline", "text_special"}


def tokens(text: str) -> list[Token]:
    found = PARSER.parse(text)
    return found + [child for token in found for child in token.children or ()]


def shown(text: str) -> str:
    """Return the text that a reader of Markdown sees."""
    return "".join(token.content for token in tokens(text) if token.type in TEXT - {"inline"})


def one_line(text: str) -> str:
    return " ".join(printable(" ".join(text.split())).split())


@pytest.mark.parametrize("text", [HOSTILE, *BEGINNINGS, *(f"{text}\n{text}" for text in BEGINNINGS)])
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    assert {token.type for token in tokens(markdown(text))} <= TEXT | {"paragraph_open", "paragraph_close"}
    assert shown(markdown(text)).strip() == one_line(text)


@settings(max_examples=300, deadline=None)
@given(text=st.text("ab1. |`\\*_<>[]()#+-=~!&;:$\n\"'/@", min_size=1, max_size=20))
@example(text="_a_ b_c")
def test_any_text_stays_text_in_a_paragraph_and_in_a_cell(text: str) -> None:
    allowed = TEXT | {"paragraph_open", "paragraph_close"}
    if one_line(text):
        assert {token.type for token in tokens(markdown(text))} <= allowed
        assert shown(markdown(text)).strip() == one_line(text)
    for escape in (markdown, code):
        table = tokens(f"| a | b |\n|---|---|\n| {escape(text)} | end |\n")
        assert [token.type for token in table].count("td_open") == 2
        assert {token.type for token in table if token.type not in TEXT} <= {
            f"{part}_{end}" for part in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")
        }
        _, _, inside, end = (token for token in table if token.type == "inline")
        assert end.content == "end"
        assert one_line("".join(child.content for child in inside.children or ())) == one_line(text)


def plain(value: object) -> object:
    """Return facts with a hostile text in place of every text."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(each) for each in value)
    return HOSTILE if isinstance(value, str) else value


def test_no_fact_of_a_card_becomes_markdown() -> None:
    facts, card = plain(FACTS), CardFacts(**{name: HOSTILE for name in CardFacts.__dataclass_fields__})
    assert isinstance(facts, dict)
    usual = render_card(CardFacts(**{name: "x" for name in CardFacts.__dataclass_fields__}), FACTS)
    text = render_card(card, facts | {"theories": (HOSTILE, HOSTILE + "2")})
    found = tokens(text)
    assert not {token.type for token in found} & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "em_open",
        "s_open",
    }
    expected = [token.type for token in tokens(usual)]
    for kind in ("heading_open", "table_open", "tr_open", "td_open", "fence", "bullet_list_open"):
        assert [token.type for token in found].count(kind) == expected.count(kind), kind
    (block,) = (token for token in found if token.type == "fence")
    compile(block.content, "card", "exec")
    assert "{{ 7 * 7 }}" in shown(text)


def test_no_fact_of_a_fine_tuning_becomes_markdown() -> None:
    start = StartFacts(name=HOSTILE, method=HOSTILE, weights_sha256=HOSTILE)
    rows = method_rows(replace(PLAIN, start=start, new_theories=(HOSTILE,)), HOSTILE)
    table = "| a | b |\n|---|---|\n" + "".join(f"| {what} | {how} |\n" for what, how in rows)
    types = [token.type for token in tokens(table)]
    assert types.count("td_open") == 2 * len(rows)
    assert not {"html_inline", "html_block", "link_open", "image", "strong_open", "heading_open"} & set(types)


class Tags(HTMLParser):
    """The tags of a page, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_no_name_becomes_a_tag_of_a_page(tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    figure.write_bytes(b"png")
    frame = {"id": "x", "energy_error": 1.0, "force_mae": None}
    errors = {"num_frames": 1.0, "num_atoms": 1.0, "num_skipped": 0.0, "energy_mae": 1.0, "composition_energy_mae": 2.0}
    values = {
        "dataset": "x", "split": "x", "weights_sha256": "x", "manifest_fingerprint": "x", "worst_frames": [frame],
        "by_element": {"Cu": {"num_atoms": 1, "force_mae": 1.0, "zero_force_mae": 1.0}}, "errors": errors,
    }  # fmt: skip
    of_atoms = {key: QUANTITIES[key] for key in by_atoms()}
    words: dict[str, Any] = {"rows": rows(errors), "notes": [], "quantities": QUANTITIES, "of_atoms": of_atoms}
    words["suite_rows"] = []
    pages = [
        Tags(render_page("evaluation_report.html", figures={"parity": figure}, **each, **words))
        for each in (values, dict(plain(values)))  # pyright: ignore[reportCallIssue, reportArgumentType]
    ]
    assert pages[0].tags == pages[1].tags
    assert pages[1].text.count("<script>alert(1)</script>") >= 3


def test_a_name_is_no_formula_of_a_figure(tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    (line,) = axes.plot(np.arange(3), label=figure_text(r"_$\frac{$ <b>"))
    legend = axes.legend()
    figure.savefig(tmp_path / "figure.png")
    assert [text.get_text() for text in legend.get_texts()] == [line.get_label()] == [r" _\$\frac{\$ <b>"]
