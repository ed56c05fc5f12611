"""What the docs point at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[`(\w+)`\]\(\.\./([\w/]+\.py)#L(\d+)\)")
LINKS = [match.groups() for match in LINK.finditer((ROOT / "docs" / "details.md").read_text())]


def test_details_are_numbered_without_gaps():
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", (ROOT / "docs" / "details.md").read_text(), re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(LINKS) > 40


@pytest.mark.parametrize(("name", "file", "line"), LINKS)
def test_every_detail_links_to_the_line_that_does_it(name: str, file: str, line: str):
    text = (ROOT / file).read_text().splitlines()[int(line) - 1]
    assert re.match(rf"\s*(def|class) {name}\b", text), (
        f"`python -m tests.relink` mends docs/details.md: line {line} of {file} is {text!r}"
    )
