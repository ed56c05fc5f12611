"""The links of docs/ to functions."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINK = re.compile(r"\[`(\w+)`\]\((\.\./[\w/]+\.py)\)")
LINKS = [(page, *link) for page in sorted(DOCS.glob("*.md")) for link in LINK.findall(page.read_text())]


def test_details_are_numbered_without_gaps() -> None:
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", (DOCS / "details.md").read_text(), re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(LINKS) > 50


@pytest.mark.parametrize(("page", "name", "file"), LINKS, ids=lambda value: getattr(value, "stem", value))
def test_a_link_names_the_file_that_defines_the_function(page: Path, name: str, file: str) -> None:
    text = (page.parent / file).read_text()
    assert re.search(rf"^\s*(def|class) {name}\b|^{name}\b.* = ", text, re.M), f"{page.name}: {file} defines no {name}"
