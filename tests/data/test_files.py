"""Files of rows: every mistake is told with its place, nothing fills the memory, and nobody ever sees half a file."""

import csv
import gzip
import json
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.files import is_data_file, read_records, read_rows, write_records, write_rows
from data.lines import BadRows
from data.records import Demonstration, Prompt

GOOD = b'{"prompt": "Why?"}\n'
PARQUET = {"prompt": ["Why?", "How?"], "kind": [None, "plain"]}


def rows(path: Path) -> list[Any]:
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "Why?"\n', "not valid JSON: Expecting ',' delimiter"),
        (b"Why?\n", "not valid JSON: Expecting value at column 1"),
        (b'{"prompt": "Why\xff?"}\n', "not UTF-8 text (byte 15 of the line)"),
        (b'{"prompt": "Why\\ud83d?"}\n', "not text: half of a surrogate pair"),
        (b"[" * 100_000 + b"\n", "not valid JSON: nested too deep"),
        (b'{"prompt": 3}\n', "'prompt' must be a non-empty string"),
        (b"[1]\n", "expected a JSON object, found list"),
        (b'{"promt": "Why?"}', "unknown key 'promt', did you mean 'prompt'?"),
        (
            b'{"prompt": "Wh',
            "not valid JSON: Unterminated string starting at column 12; the file ends in the middle of this row, was "
            "it cut off?",
        ),
    ],
)
@pytest.mark.parametrize("before", [0, 2])
def test_a_mistake_is_told_with_file_and_line_or_skipped_and_counted(
    tmp_path: Path, line: bytes, problem: str, before: int
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(GOOD * before + b"\n" + line + (GOOD if line.endswith(b"\n") else b""))
    with pytest.raises(ValueError, match=r".") as caught:
        read_records(file, Prompt)
    assert str(caught.value).startswith(f"{file}:{before + 2}: {problem}"), "blank lines count, as in an editor"

    bad = BadRows(skip=True)
    bad("an earlier file", "one")
    assert len(read_records(file, Prompt, bad)) == before + line.endswith(b"\n")
    assert bad.count == 2
    assert bad.examples[1:] == [str(caught.value)]


def test_all_bad_rows_are_counted_and_a_few_kept_in_words(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"promt": "Why?"}\nWhy?\n' * 50)
    bad = BadRows(skip=True, keep=3)
    assert read_records(file, Prompt, bad) == []
    assert bad.count == 100
    assert [sentence.split(": ")[0] for sentence in bad.examples] == [f"{file}:{number}" for number in (1, 2, 3)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="no such file"):
        rows(tmp_path)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.jsonl", b"", "the file is empty"),
        ("x.jsonl", b"\n  \n", "the file has no rows"),
        ("x.csv", b"prompt,completion\n", "the file has no rows"),
        ("x.json", b"[]", "the file has no rows"),
        ("x.json", b"{}", "expected an array of rows, found dict"),
        ("x.json", b'[{"prompt": "Wh', "not valid JSON: Unterminated string"),
        ("x.json", b'[{"prompt": "a"},\n{"prompt": "b"},]', "x.json:2: not valid JSON: Expecting value at column 17"),
        ("x.json", b'[{"prompt": "a"}] {"prompt": "b"}', "x.json:1: not valid JSON: Extra data at column 19"),
        ("x.json", b'{"data": [{"prompt": "a"}]}', "expected an array of rows, found dict with the keys 'data'"),
        ("x.arrow", b"ARROW1", "damaged, cut off, or not a .arrow file"),
        ("x.json", b'["\xff"]', "not UTF-8 text (byte 2)"),
        ("x.csv", b'prompt\n"unclosed', "not a table"),
        ("x.csv", b"prompt\nWh\xff\n", "not UTF-8 text"),
        ("x.parquet", b"PAR1", "damaged, cut off, or not a .parquet file"),
        (
            "x.jsonl.gz",
            gzip.compress(GOOD * 1000, mtime=0)[:-20],
            "the compressed file ends too early or is damaged: was its download cut off?",
        ),
        ("x.jsonl.gz", GOOD, "damaged, cut off, or not a .gz file"),
        ("x.txt", b"caf\xe9", "not UTF-8 text (byte 3)"),
        ("x.xlsx", b"PK", "unknown kind of file '.xlsx'; known are .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_refused_in_either_mode(
    tmp_path: Path, name: str, content: bytes, problem: str, skip: bool
) -> None:  # fmt: skip
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r".") as caught:
        list(read_rows(file, BadRows(skip)))
    assert str(caught.value).startswith(str(file))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": [f"Why {number}?" for number in range(5000)]}), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x\.parquet: damaged, cut off, or not a \.parquet file"):
        rows(file)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_line_of_ten_gigabytes_is_refused_before_it_fills_the_memory(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with file.open("wb") as opened:
        opened.write(b'{"prompt": "')
        opened.truncate(10 * 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"{name}:1: the line is longer than 64 MiB"):
        rows(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024, "KiB: far less than the file"


def test_a_json_array_that_memory_cannot_hold_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with file.open("wb") as opened:
        opened.truncate(10 * 2**30)
    with pytest.raises(ValueError, match=r"over 2 GiB must be held in memory whole; write it as \.jsonl"):
        rows(file)


def test_a_text_that_memory_cannot_hold_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    with file.open("wb") as opened:
        opened.truncate(10 * 2**30)
    with pytest.raises(ValueError, match=r"one document of over 2 GiB; write its documents as \.jsonl"):
        rows(file)


def as_jsonl(path: Path) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text('{"prompt": "Why?"}\n{"prompt": "How?", "kind": "plain"}\n')
    return path


def as_ndjson(path: Path) -> Path:
    return as_jsonl(path).rename(path.with_suffix(".ndjson"))


def as_gzip(path: Path) -> Path:
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(as_jsonl(path).read_bytes()))
    return packed


def as_gzip_in_capitals(path: Path) -> Path:
    return as_gzip(path).rename(path.with_suffix(".JSONL.GZ"))


def as_json(path: Path) -> Path:
    path = path.with_suffix(".json")
    path.write_text('[{"prompt": "Why?"}, {"prompt": "How?", "kind": "plain"}]')
    return path


def as_pretty_json(path: Path) -> Path:
    path.with_suffix(".json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(json.loads(as_json(path).read_text()), indent=2).encode()
    )
    return path.with_suffix(".json")


def as_lines_called_json(path: Path) -> Path:
    return as_jsonl(path).rename(path.with_suffix(".JSON"))


def as_windows_lines(path: Path) -> Path:
    file = as_jsonl(path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    return file


def as_array_called_jsonl(path: Path) -> Path:
    return as_json(path).rename(path.with_suffix(".jsonl"))


def as_parquet(path: Path) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.table(PARQUET), path)
    return path


def as_pandas_parquet(path: Path) -> Path:
    path = path.with_suffix(".parquet")
    pandas.DataFrame(PARQUET | {"score": [float("nan")] * 2}, index=[5, 3]).to_parquet(path)
    assert "__index_level_0__" in pq.read_schema(path).names, "or there is nothing to leave out"
    return path


def as_pandas_csv(path: Path) -> Path:
    pandas.DataFrame(PARQUET).to_csv(path.with_suffix(".csv"))
    return path.with_suffix(".csv")


def as_arrow_stream(path: Path) -> Path:
    datasets.Dataset.from_dict(PARQUET).save_to_disk(path)
    (file,) = path.glob("*.arrow")
    return file


def as_arrow_file(path: Path) -> Path:
    path, table = path.with_suffix(".arrow"), pa.table(PARQUET)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


FORMS = [
    as_jsonl, as_ndjson, as_gzip, as_gzip_in_capitals, as_json, as_pretty_json, as_lines_called_json, as_windows_lines,
    as_array_called_jsonl,
        as_parquet, as_pandas_parquet,
    as_pandas_csv, as_arrow_stream, as_arrow_file,
]  # fmt: skip


@pytest.mark.parametrize("write", FORMS)
def test_every_form_gives_the_same_records(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    file = write(tmp_path / "prompts")
    assert is_data_file(file)
    assert read_records(file, Prompt) == [Prompt(prompt="Why?"), Prompt(prompt="How?", kind="plain")]


def test_columns_that_datasets_keeps_as_json_are_decoded(tmp_path: Path) -> None:
    """`datasets` writes a column of strings and lists as JSON text, also within messages."""
    parts = [{"type": "text", "text": "Why?"}]
    rows = [{"messages": [{"role": "user", "content": content}], "n": 1} for content in (parts, "Why?", None)]
    saved = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    saved.to_parquet(tmp_path / "x.parquet")
    saved.save_to_disk(tmp_path)
    for file in (tmp_path / "x.parquet", next(tmp_path.glob("*.arrow"))):
        assert [row for _, row in read_rows(file)] == rows
    broken = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{"]))
    pq.write_table(pa.table({"prompt": broken}), tmp_path / "broken.parquet")
    with pytest.raises(ValueError, match=r"broken\.parquet: row 1: a column of type JSON holds invalid JSON"):
        list(read_rows(tmp_path / "broken.parquet"))


@pytest.mark.parametrize(("name", "comma"), [("x.csv", ","), ("x.tsv", "\t")])
def test_a_table_has_a_header_quotes_and_line_breaks_within_them(tmp_path: Path, name: str, comma: str) -> None:
    file = tmp_path / name
    file.write_bytes(
        f'\ufeffprompt{comma}completion\n"Why,\n""now""?"{comma}So.\n\nHow?{comma}{"x" * 200_000}\n'.encode()
    )
    assert [(place.rsplit(":", 1)[1], row["prompt"], len(row["completion"])) for place, row in read_rows(file)] == [
        ("3", 'Why,\n"now"?', 3),
        ("5", "How?", 200_000),
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert rows(tmp_path / "x.jsonl") == [{"prompt": "Why?"}]
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbf"prompt","kind"\n"Why?","plain"\n')
    assert rows(tmp_path / "x.csv") == [{"prompt": "Why?", "kind": "plain"}]


@pytest.mark.parametrize(
    ("name", "used", "expected"), [("x.csv", ";", ","), ("x.tsv", ",", "\t"), ("y.csv", "\t", ",")]
)
def test_a_separator_that_does_not_match_the_extension_is_reported(
    tmp_path: Path, name: str, used: str, expected: str
) -> None:
    (tmp_path / name).write_text(f"prompt{used}completion\na{used}b\n")
    told = re.escape(f"{name}:1: its columns are separated by {used!r} instead of {expected!r}: save")
    with pytest.raises(ValueError, match=told):
        rows(tmp_path / name)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompt,prompt\na,b\n")
    with pytest.raises(ValueError, match=r"x\.csv:1: two columns have the same name"):
        rows(tmp_path / "x.csv")
    pq.write_table(pa.table([["a"], ["b"]], names=["prompt", "prompt"]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: two columns are called 'prompt'"):
        rows(tmp_path / "x.parquet")


def test_what_is_said_of_a_bad_row_is_short_whatever_the_row_is() -> None:
    bad = BadRows(skip=True)
    bad("x.jsonl:1", "'source' is " + "x" * 1_000_000)
    assert len(bad.examples[0]) < 400


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.jsonl", b'{"n": ' + b"1" * 5000 + b"}\n", "x.jsonl:1: not valid JSON: "),
        ("x.json", b'["\\ud83d"]', "x.json: row 1: not text: half of a surrogate pair"),
        (
            "x.jsonl",
            b'{"a": NaN}',
            "x.jsonl:1: not valid JSON: NaN is not a JSON number; write null for a missing value",
        ),
        ("x.json", b'[{}, {"a": [-Infinity]}]', "x.json: row 2: not valid JSON: -Infinity is not a JSON number"),
        (
            "x.jsonl",
            b'{"a": 1, "b": {"a": 2, "c": 3, "c": 4}}',
            "x.jsonl:1: not valid JSON: duplicate key 'c' in one object",
        ),
        ("x.json", b'[{"a": 1, "a": 2}]', "x.json: row 1: not valid JSON: duplicate key 'a'"),
        ("x.jsonl", b'{"a": 1,}', "x.jsonl:1: not valid JSON: "),
        ("x.jsonl", b'{"a": 1} {"a": 2}', "x.jsonl:1: not valid JSON: Extra data at column 10"),
    ],
)
def test_what_json_can_say_and_nobody_can_hold_is_a_bad_row(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r".") as caught:
        rows(tmp_path / name)
    assert problem in str(caught.value)


def test_a_gzip_body_that_was_damaged_is_one_sentence(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(bytes(range(256)) * 400))
    packed[40:60] = b"\xff" * 20
    (tmp_path / "x.jsonl.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"x\.jsonl\.gz: "):
        rows(tmp_path / "x.jsonl.gz")


def test_a_parquet_date_beyond_pythons_calendar_is_one_sentence(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"prompt": ["Why?"], "day": pa.array([10_000_000], pa.int32()).cast(pa.date32())}),
        tmp_path / "x.parquet",
    )
    with pytest.raises(ValueError, match=r"x\.parquet: a column holds what Python cannot read"):
        rows(tmp_path / "x.parquet")


def test_an_empty_field_of_a_table_is_no_value(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("prompt,kind,user_id\nWhy?,,ann\nHow?,plain,\n")
    assert rows(file) == [{"prompt": "Why?", "user_id": "ann"}, {"prompt": "How?", "kind": "plain"}]


def test_a_table_row_of_another_width_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("prompt,completion\nWhy?\nHow?,So.\n")
    with pytest.raises(ValueError, match=r"x\.csv:2: 1 fields where the header has 2"):
        rows(file)
    bad = BadRows(skip=True)
    assert [row for _, row in read_rows(file, bad)] == [{"prompt": "How?", "completion": "So."}]
    assert bad.count == 1


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("one\n\ntwo\n")
    assert rows(tmp_path / "x.md") == [{"text": "one\n\ntwo\n"}]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    records = [
        Demonstration(prompt="Où est-il ?\n日本", completion='"so" \\ \u2028 on'),
        Demonstration(prompt="b", completion="c", kind="plain"),
    ]
    write_records(tmp_path / "set.jsonl", records)
    assert read_records(tmp_path / "set.jsonl", Demonstration) == records
    assert [file.name for file in tmp_path.iterdir()] == ["set.jsonl"]


def test_a_crash_while_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    write_rows(file, [{"a": 1}, {"a": 2}])
    old = file.read_bytes()

    def crashing() -> Iterator[dict[str, Any]]:
        for number in range(10_000):
            yield {"a": number, "padding": "x" * 100}
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        write_rows(file, crashing())
    assert file.read_bytes() == old

    with pytest.raises(RuntimeError):
        write_rows(tmp_path / "new.jsonl", crashing())
    assert not (tmp_path / "new.jsonl").exists()

    write_rows(file, [{"a": 3}])
    assert rows(file) == [{"a": 3}]
    assert json.loads(file.read_text()) == {"a": 3}


@pytest.mark.parametrize(
    "cell",
    [
        "[{'role': 'user', 'content': 'What is salt good for?'}]",
        '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]',
        "[{'value': 'Hi', 'from': 'human'}]",
        "[{'content': 'Hi', 'role': 'user'}\n {'content': 'Yes?', 'role': 'assistant'}]",  # a NumPy array
    ],
)
@pytest.mark.parametrize("column", ["prompt", "completion", "chosen"])
def test_a_conversation_in_a_cell_of_a_table_is_refused(tmp_path: Path, cell: str, column: str) -> None:
    """As `DataFrame.to_csv` writes trl's conversational form; its source text would be trained on."""
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", column], ["plain", "a [list] of {'role'} words"], ["plain", cell]])
    end = 3 + cell.count("\n")
    with pytest.raises(ValueError, match=rf"csv:{end}: '{column}' is a list of messages written as text: .*JSON Lines"):
        list(read_rows(path))
    skipping = BadRows(skip=True)
    assert [row for _, row in read_rows(path, skipping)] == [{"text": "plain", column: "a [list] of {'role'} words"}]
    assert skipping.count == 1
