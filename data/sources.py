"""Where records come from: the seed set written for this project, and anyone's JSON Lines files."""

from collections.abc import Sequence
from pathlib import Path

from data.embedded import wikipedia_articles
from data.jsonl import read_records, read_rows
from data.records import RecordT

SEED_FOLDER = Path(__file__).parent / "seed"


def source_files(source: str) -> list[Path]:
    """The files behind a source's name: `seed` is the embedded set, anything else is a path. Raises ValueError when there is none."""
    files = sorted(SEED_FOLDER.glob("*.jsonl")) if source == "seed" else [Path(source)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
    return files


def read_source(sources: Sequence[str], record_type: type[RecordT], skipped: list[str] | None = None) -> list[RecordT]:
    """All records of the sources, in order. Raises ValueError on a malformed row (see `read_records`)."""
    return [record for source in sources for file in source_files(source) for record in read_records(file, record_type, skipped)]


def read_texts(sources: Sequence[str]) -> list[str]:
    """Documents of plain text: `wikipedia`, .txt or .md files (a document each), or JSONL with a `text` a row.

    Raises ValueError when a file is missing, not UTF-8, or a row has no text.
    """
    texts: list[str] = []
    for source in sources:
        if source == "wikipedia":
            texts += wikipedia_articles()
        elif source.endswith(".jsonl"):
            for place, row in read_rows(Path(source)):
                if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                    raise ValueError(f"{place}: expected an object with a string under 'text'")
                texts.append(row["text"])
        else:
            path = Path(source)
            if not path.is_file():
                raise ValueError(f"{path}: no such file")
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return texts
