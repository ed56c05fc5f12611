"""The links of docs/ to functions, and the code that docs/ shows."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.ppo.conftest import Chain, chains  # noqa: F401

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


def test_the_python_quickstart_runs(
    chains: Callable[[str], Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the models of a tiny run in place of `runs/mine`."""
    chain = chains("none")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for name, folder in (("sft", chain.sft), ("reward", chain.reward)):
        (tmp_path / "runs" / "mine" / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    section = (DOCS / "tutorial.md").read_text().split("## The same from Python")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(code, "tutorial.md", "exec"), {})
    assert len((tmp_path / "runs" / "quickstart" / "metrics.jsonl").read_text().splitlines()) == 2
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "quickstart" / "model")
