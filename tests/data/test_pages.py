"""What every report is made of: forms of numbers, tables that hold whatever text, and both pages."""

import math
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from data.pages import (
    Table,
    between,
    counted,
    duration,
    environment,
    fenced,
    markdown_cell,
    measured,
    number,
    percent,
    share,
    write_pages,
)


def test_forms():
    assert [number(v) for v in (0.1234, 1.234, 12.34, 1234.5, 7, None, math.nan)] == [
        "0.123",
        "1.23",
        "12.3",
        "1,234",
        "7",
        "–",
        "–",
    ]
    assert [percent(v) for v in (0.1234, None)] == ["12.3%", "–"]
    assert [share(1, 8), share(0, 0)] == ["12.5%", "–"]
    assert [counted(1, "user"), counted(2000, "user")] == ["1 user", "2,000 users"]
    assert [duration(v) for v in (59.6, 7260.0, 12.0, None)] == ["1 min 0 s", "2 h 1 min", "12 s", "–"]
    assert between({"mean": 0.5, "low": 0.4, "high": 0.6}, percent) == "40.0% to 60.0%"
    assert measured({"mean": 0.5, "low": 0.4, "high": 0.6}, percent) == ("50.0%", "40.0% to 60.0%")
    assert measured(None, percent) == "–"
    assert markdown_cell(("a|b", "<i>")) == "a\\|b (&lt;i>)"
    assert fenced("a ``` b").startswith("````text")


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    (tmp_path / "page.html.j2").write_text(
        '{% extends "base.html.j2" %}{% from "macros.html.j2" import show, picture with context %}'
        '{% block body %}{{ show(table) }}{{ show(empty, "Nothing.") }}{{ picture("one", "One") }}{{ picture("two", '
        '"Two") }}{% endblock %}'
    )
    (tmp_path / "page.md.j2").write_text(
        '{% from "macros.md.j2" import show, picture with context %}{{ show(table) }}\n{{ show(empty) }}\n'
        '{{ picture("one", "One") }}{{ picture("two", "Two") }}'
    )
    return tmp_path


def test_both_pages(templates, tmp_path):
    table = Table(["Name", "Words", "Count", "Paper"], [["<b>", "a|b", ("1", "one"), "2"]], quiet=(3,), words=(1,))
    write_pages(
        tmp_path,
        templates,
        "page.html",
        {"run_name": "r<u>n", "table": table, "empty": Table([], [])},
        {"one": Figure(figsize=(1, 1))},
        "pictures",
    )
    html, markdown = (tmp_path / "page.html").read_text(), (tmp_path / "report.md").read_text()
    row = '<td>&lt;b&gt;</td><td class="words">a|b</td><td>1<small>one</small></td><td class="quiet">2</td>'
    assert f"<tr>{row}</tr>" in html
    assert "<title>r&lt;u&gt;n: rlhf-ptx report</title>" in html
    assert re.findall(r'<img src="data:image/png;base64,[\w+/=]+" alt="(\w+)">', html) == ["One"]
    assert '<p class="quiet">Nothing.</p>' in html
    assert (
        "| Name | Words | Count | Paper |\n| --- | --- | ---: | ---: |\n| &lt;b> | a\\|b | 1 (one) | 2 |\n" in markdown
    )
    assert "Not measured in this run." in markdown
    assert re.findall(r"!\[(\w+)\]\((.*)\)", markdown) == [("One", "pictures/one.png")]
    assert (tmp_path / "pictures" / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_name_that_nobody_gave_is_an_error(templates):
    with pytest.raises(UndefinedError, match="table"):
        environment(templates).get_template("page.html.j2").render(run_name="r", pictures={})
