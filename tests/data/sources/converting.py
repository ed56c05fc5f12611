"""Published rows through an adapter, checked as a run checks them."""

from pathlib import Path
from typing import Any

from data.config import DataConfig, SourceConfig
from data.files import BadRows
from data.sources.adapter import Adapter, Role
from data.sources.reading import Source, find, read, record


def convert(adapter: Adapter, role: Role, *rows: Any) -> list[Any]:
    """The records of rows that belong together."""
    source = Source("", role, SourceConfig(format=adapter.name), adapter, (), None)
    return [record(row, source) for row in adapter.convert[role](rows)]


def read_place(adapter: Adapter, role: Role, place: Path) -> list[Any]:
    """The records of a file or folder, as a run reads it."""
    config = DataConfig(sources={"it": SourceConfig(format=adapter.name, place=str(place))})
    return list(read(find("it", config, role), BadRows()))


def user(*texts: str) -> list[dict[str, str]]:
    """A conversation that the user begins: turns alternate."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
