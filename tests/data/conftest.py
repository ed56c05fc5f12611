"""Curation of a few prompts, for whoever needs it curated."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.build import Built, build
from data.config import DataConfig
from tests.data.building import Sets, annotator, rows


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "text.md").write_text("one two three " * 50)
    return DataConfig(
        demonstrations=[rows(tmp_path / "demonstrations.jsonl", 60, completion="Here you are.")],
        prompts=[rows(tmp_path / "prompts.jsonl", 60, start=60)],
        rankings=[rows(tmp_path / "rankings.jsonl", 40, start=200, completions=["a", "b"], ranks=[1, 2])],
        pretraining=[str(tmp_path / "text.md")],
        valid_fraction=0.2,
        test_fraction=0.2,
    )


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[DataConfig], Built]:
    return lambda config: build(annotator(config), tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def sets(made: Callable[[DataConfig], Built], tmp_path_factory: pytest.TempPathFactory) -> Callable[[DataConfig], Sets]:
    return lambda config: Sets(made(config), tmp_path_factory.mktemp("sets"))
