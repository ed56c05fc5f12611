"""Fixtures of the tests of loading."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny llama's folder to spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))
