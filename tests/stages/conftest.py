"""Stages write their reports without drawing the plots, most of a tiny run's time; tests/reports draws them."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def blank_plots() -> Iterator[None]:
    """Every plot is an empty file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reports.page.png", lambda figure: b"")
        yield
