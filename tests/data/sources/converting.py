"""Published rows through a format's functions, checked as a run checks them."""

from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig, SourceConfig
from data.lines import BadRows
from data.sources import reading
from data.sources.convert import Role
from data.sources.formats import FORMATS


def convert(name: str, role: Role, *rows: Any) -> list[Any]:
    """The records of rows that belong together, in the format with a name."""
    source = reading.Source("", role, SourceConfig(format=name), FORMATS[name])
    return reading.convert(rows, source)


def assert_refused(sentence: str, name: str, role: Role, *rows: Any) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        convert(name, role, *rows)
    assert sentence in str(caught.value)


def read_place(name: str, role: Role, place: Path) -> list[Any]:
    """The records of a file or folder, as a run reads it."""
    config = DataConfig(sources={"it": SourceConfig(format=name, place=str(place))})
    return list(reading.read(reading.find("it", config, role), BadRows()))


def user(*texts: str) -> list[dict[str, str]]:
    """A conversation that the user begins: turns alternate."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
