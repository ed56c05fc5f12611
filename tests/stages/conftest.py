"""A run on the CPU. Stages write their reports without drawing the plots, which takes most of a tiny run's time;
tests/reports draws them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.config import RunConfig


@pytest.fixture(scope="module", autouse=True)
def blank_plots() -> Iterator[None]:
    """Every plot is an empty file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reports.page.png", lambda figure: b"")
        yield


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """The configuration of a run without any finished stage."""
    config = RunConfig(run_name="run", runs_folder=str(tmp_path / "runs"))
    config.model.device = "cpu"
    return config


@pytest.fixture
def root(config: RunConfig) -> Path:
    """Its run folder."""
    return Path(config.runs_folder) / config.run_name
