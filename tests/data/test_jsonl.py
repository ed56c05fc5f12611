"""JSON Lines: every mistake is told with its place, and nobody ever sees half a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.jsonl import read_records, read_rows, write_records, write_rows
from data.records import Demonstration, Prompt

GOOD = b'{"prompt": "Why?"}\n'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "Why?"\n', "not valid JSON: Expecting ',' delimiter"),
        (b"Why?\n", "not valid JSON: Expecting value at column 1"),
        (b'{"prompt": "Why\xff?"}\n', "not UTF-8 text (byte 15 of the line)"),
        (b'{"prompt": 3}\n', "'prompt' must be a non-empty string"),
        (b"[1]\n", "expected a JSON object, found list"),
        (b'{"promt": "Why?"}', "unknown key 'promt', did you mean 'prompt'?"),
    ],
)
@pytest.mark.parametrize("before", [0, 2])
def test_a_mistake_is_told_with_file_and_line_or_skipped_and_counted(tmp_path: Path, line: bytes, problem: str, before: int) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(GOOD * before + b"\n" + line + (GOOD if line.endswith(b"\n") else b""))
    with pytest.raises(ValueError, match=r".") as caught:
        read_records(file, Prompt)
    assert str(caught.value).startswith(f"{file}:{before + 2}: {problem}"), "blank lines count, as in an editor"

    skipped = ["an earlier file's"]
    if before or line.endswith(b"\n"):
        assert len(read_records(file, Prompt, skipped)) == before + line.endswith(b"\n")
        assert skipped[0] == "an earlier file's"
        assert skipped[1:] == [str(caught.value)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        read_records(tmp_path / "nowhere.jsonl", Prompt)
    with pytest.raises(ValueError, match="no such file"):
        read_records(tmp_path, Prompt)


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
@pytest.mark.parametrize("skipped", [None, [], ["an earlier file's"]])
def test_a_file_without_a_row_is_refused_in_either_mode(tmp_path: Path, content: bytes, skipped: list[str] | None) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"empty\.jsonl: the file has no rows"):
        read_records(file, Prompt, skipped)


def test_a_file_of_nothing_but_bad_rows_is_skipped_whole_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"promt": "Why?"}\nWhy?\n')
    skipped: list[str] = []
    assert read_records(file, Prompt, skipped) == []
    assert len(skipped) == 2


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    records = [Demonstration(prompt="Où est-il ?\n日本", completion='"so" \\ \u2028 on'), Demonstration(prompt="b", completion="c", kind="plain")]
    write_records(tmp_path / "set.jsonl", records)
    assert read_records(tmp_path / "set.jsonl", Demonstration) == records
    assert [file.name for file in tmp_path.iterdir()] == ["set.jsonl"]


def test_a_crash_while_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    write_rows(file, [{"a": 1}, {"a": 2}])
    old = file.read_bytes()

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(10_000):
            yield {"a": number, "padding": "x" * 100}
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        write_rows(file, rows())
    assert file.read_bytes() == old

    with pytest.raises(RuntimeError):
        write_rows(tmp_path / "new.jsonl", rows())
    assert not (tmp_path / "new.jsonl").exists()

    write_rows(file, [{"a": 3}])
    assert [row for _, row in read_rows(file)] == [{"a": 3}]
    assert json.loads(file.read_text()) == {"a": 3}
