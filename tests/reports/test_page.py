"""The report kit: formats of numbers, and every macro as HTML and as Markdown."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from importlib.util import find_spec

import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from reports.formats import between, counted, duration, measured, number, percent, share
from reports.page import TEMPLATES, Page, Table, fenced, listing, markdown_cell, render, side_by_side


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
    assert [duration(v) for v in (59.6, 7260.0, 12.0)] == ["1 min 0 s", "2 h 1 min", "12 s"]
    assert between({"mean": 0.5, "low": 0.4, "high": 0.6}, percent) == "40.0% to 60.0%"
    assert measured({"mean": 0.5, "low": 0.4, "high": 0.6}, percent) == ("50.0%", "40.0% to 60.0%")
    assert measured(None, percent) == "–"
    assert markdown_cell(("a|b", "<i>")) == "a\\|b (&lt;i>)"
    assert fenced("a ``` b").startswith("````text")


TEMPLATE = """
{% from kit import box, bullets, checks, columns, details, heading, headline, link, note, picture, quote, search,
   table, text, tiles with context %}
{{ headline("It <works>.", "better") }}
{{ box("Warnings", items=["one | two"], tone="worse") }}
{{ tiles([("Rate", "5%", "4% to 6%")]) }}
{{ heading("First part") }}
{% call text() %}
See {{ link("that",
"other.html") }}
{% endcall %}
{{ note("An id of <script>") }}
{{ table(rows) }}
{{ table(nothing) }}
{% call picture("one") %}One{% endcall %}
{% call picture("two", empty="No plot.") %}Two{% endcall %}
{{ checks([{"mark": "holds", "claim": "It holds", "numbers": "5%"}]) }}
{{ bullets(["a row"]) }}
{{ search("rows", {"Kind": ["a<b", "c"]}) }}
{% call details("More", true, ["a<b", 'say "c"']) %}
{{ quote("``` <i>", note="said") }}
{{ columns([("sft", "SFT", "x", "3 tokens")]) }}
{% endcall %}
"""


def test_a_page_is_written_as_html_and_as_markdown(tmp_path, monkeypatch):
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    (tmp_path / "templates" / "test.j2").write_text(TEMPLATE)
    monkeypatch.setattr("reports.page.TEMPLATES", tmp_path / "templates")
    rows = Table(
        ["Name", "Words", "Count", "Paper"], [["<b>", "a|b", ("1", "one", "worse"), "2"]], quiet=(3,), words=(1,)
    )
    figures = {"one": Figure(figsize=(1, 1)), "two": None}
    page = Page("test.j2", "page.html", "page.md", "pictures")
    page.write(tmp_path, "r<u>n", figures, rows=rows, nothing=Table([], [], empty="Nothing."))
    html, markdown = (tmp_path / "page.html").read_text(), (tmp_path / "page.md").read_text()
    row = (
        '<td>&lt;b&gt;</td><td class="words">a|b</td><td>1<small class="worse">one</small></td><td class="quiet">2</td>'
    )
    assert f"<tr>{row}</tr>" in html
    assert "<title>r&lt;u&gt;n</title>" in html
    assert re.findall(r'<img src="data:image/png;base64,[\w+/=]+" alt="(\w+)">', html) == ["One"]
    assert '<p class="quiet">Nothing.</p>' in html
    assert '<a href="#first-part">First part</a>' in html
    assert '<h2 id="first-part">' in html
    assert '<p>See <a href="other.html">that</a></p>' in re.sub(r"\s*(</?p>)\s*", r"\1", html)
    assert "It &lt;works&gt;." in html
    assert '<select><option value="">all</option><option>a&lt;b</option><option>c</option></select>' in html
    found = re.findall(r'<details open data-tags="([^"]*)"><summary>More<', html)
    assert [json.loads(unescape(tags)) for tags in found] == [["a<b", 'say "c"']]
    assert "<details open><summary>More</summary>" in markdown
    assert "<select" not in markdown
    assert "<pre>``` &lt;i&gt;</pre>" in html
    assert "\n**It &lt;works>.**\n" in markdown
    assert "\n- one \\| two\n" in markdown
    assert (
        "\n\n| Name | Words | Count | Paper |\n| --- | --- | ---: | ---: |\n| &lt;b> | a\\|b | 1 (one) | 2 |\n"
        in markdown
    )
    assert "| Number | Value | Detail |\n| --- | ---: | --- |\n| Rate | 5% | 4% to 6% |\n" in markdown
    assert "See [that](other.html)" in markdown
    assert "An id of &lt;script>" in markdown
    assert "\nNothing.\n" in markdown
    assert "\n- **holds**: It holds. 5%\n" in markdown
    assert "\nNo plot.\n" in markdown
    assert "\n````text\n``` <i>\n````\n\nsaid\n" in markdown
    assert "\nSFT: 3 tokens\n\n```text\nx\n```\n" in markdown
    assert re.findall(r"!\[(\w+)\]\((.*)\)", markdown) == [("One", "pictures/one.png")]
    assert (tmp_path / "pictures" / "one.png").read_bytes().startswith(b"\x89PNG")


def test_tables_are_described_by_titles_paths_and_formats():
    rows = [{"n": 1, "rate": {"mean": 0.5, "low": 0.4, "high": 0.6}}, {"n": 2}]
    columns = [("N", "n", number), ("Rate", "rate", percent), ("Low", "rate.low", percent)]
    assert listing(rows, columns).rows == [["1", ("50.0%", "40.0% to 60.0%"), "40.0%"], ["2", "–", "–"]]
    found = side_by_side("Of", {"one": rows[0], "two": rows[1]}, [("Number", "all", "n", number)])
    assert (found.columns, found.rows) == (["Of", "one", "two"], [[("Number", "all"), "1", "2"]])


def test_an_undefined_variable_is_an_error():
    with pytest.raises(UndefinedError, match="body"):
        render("page.html.j2", "html.j2", title="no body")


@pytest.mark.skipif(find_spec("matplotlib_inline") is not None, reason="the backend is installed")
def test_a_command_started_in_a_notebook_does_without_the_notebooks_backend() -> None:
    kernel = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    subprocess.run([sys.executable, "-c", "import reports.plots"], env=kernel, check=True)
