"""Folders as places: written by `datasets`, copies of Hub data sets, and the split that is read."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from data.config import DataConfig, SourceConfig
from data.lines import BadRows
from data.sources.folders import by_split
from data.sources.reading import Source, all_sources, find, read

ROWS = [{"prompt": f"Why {number}?", "user_id": f"u{number}"} for number in range(7)]
OTHER = [{"prompt": "Other?", "user_id": "u"}]


def source(place: Path, **settings: Any) -> Source:
    return find("x", DataConfig(sources={"x": SourceConfig(place=str(place), **settings)}, prompts=["x"]), "prompts")


def prompts(place: Path, **settings: Any) -> list[str]:
    return [record.prompt for record in read(source(place, **settings), BadRows())]


def asked(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt"] for row in rows]


def saved(place: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(place, num_shards=3)
    return place


def saved_dict(place: Path) -> Path:
    splits = {"train": ROWS, "test": OTHER}
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(place)
    return place


def snapshot(place: Path) -> Path:
    (place / "data").mkdir(parents=True)
    for name, rows in {
        "train-00000-of-00002": ROWS[:4],
        "train-00001-of-00002": ROWS[4:],
        "test-00000-of-00001": OTHER,
    }.items():
        datasets.Dataset.from_list(rows).to_parquet(place / "data" / f"{name}.parquet")
    (place / "README.md").write_text("About these data.")
    (place / "dataset_infos.json").write_text('{"default": {}}')
    return place


def lines(place: Path) -> Path:
    place.mkdir()
    for name, rows in {"train": ROWS, "test": OTHER}.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "dataset_info.json").write_text("{}")
    (place / "README.TXT").write_text("About these data.")
    return place


def test_a_saved_dataset_gives_its_rows_in_order_and_its_files_for_the_digest(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    assert prompts(folder) == asked(list(datasets.load_from_disk(str(folder)))) == asked(ROWS)
    assert [file.name for file in source(folder).files] == [f"data-0000{number}-of-00003.arrow" for number in range(3)]


def cached(place: Path) -> Path:
    """Files as in the cache of `datasets`, which are named after the data set and a split."""
    lines(place)
    for name in ("train", "test"):
        (place / f"{name}.jsonl").rename(place / f"tldr-{name}.jsonl")
    (place / "cache-0123456789abcdef.arrow").write_text("the result of a map")
    (place / "cache-0123456789abcdef_00000_of_00004.arrow").write_text("of several processes")
    return place


@pytest.mark.parametrize("made", [saved_dict, snapshot, lines, cached])
def test_the_named_split_is_read_of_several(tmp_path: Path, made: Any) -> None:
    folder = made(tmp_path / "it")
    assert prompts(folder, split="train") == asked(ROWS)
    assert prompts(folder, split="test") == asked(OTHER)
    assert source(folder, split="test").place.endswith(", split test"), "the report and the dry run say which"
    assert all(file.suffix != ".json" for split in ("train", "test") for file in source(folder, split=split).files)
    with pytest.raises(
        ValueError, match=r"has several splits: set `split` of its entry under data\.sources to one of test, train$"
    ):
        source(folder)
    for split, hint in (("valid", ""), ("train[:9]", "; use `limit`"), ("train+test", "; add one entry")):
        with pytest.raises(ValueError, match=rf"has no split '{re.escape(split)}'; its splits: test, train{hint}"):
            source(folder, split=split)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-eval", "test-eval"], {"train": 1, "test": 1}),
        (["train_web-dev", "test_web-dev"], {"train": 1, "test": 1}),
        (["a-b-train-1", "a-b-train-2", "a-b-dev"], {"train": 2, "dev": 1}),
        (["eval-train", "eval-test"], {"train": 1, "test": 1}),
        (["de_train", "de_test", "en_train", "en_test"], {"train": 2, "test": 2}),
        (["sft_train", "sft_valid", "final_test"], {"train": 1, "valid": 1, "test": 1}),
        (["train", "heldout_test"], {"train": 1, "test": 1}),
        (["questions_train", "answers_test"], {"train": 1, "test": 1}),
        (["tldr-test", "tldr-valid"], {"test": 1, "valid": 1}),
        (["test", "web-dev"], {"test": 1, "dev": 1}),
        (["tldr-test"], {"test": 1}),
        (["train_prefs-00000-of-00002", "train_sft-00000-of-00001"], {"train_prefs": 1, "train_sft": 1}),
        (["Train", "Testing"], {"train": 1, "testing": 1}),
        (["train", "evaluation"], {"train": 1, "evaluation": 1}),
        (["web-dev", "unit-test"], {"": 2}),
        (["train", "more"], {"": 2}),
        (["training", "latest", "contest"], {"": 3}),
    ],
)
def test_files_are_read_by_the_split_in_their_names_unless_it_is_a_topic(
    names: list[str], splits: dict[str, int]
) -> None:
    found = by_split([Path(f"{name}.jsonl") for name in names])
    assert {split: len(files) for split, files in found.items()} == splits


@pytest.mark.parametrize("made", [saved_dict, snapshot, lines])
def test_an_only_split_needs_no_name(tmp_path: Path, made: Any) -> None:
    folder = made(tmp_path / "it")
    if made is saved_dict:
        (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for file in folder.rglob("*test*.*"):
        file.unlink()
    assert prompts(folder) == asked(ROWS)
    assert source(folder).place.endswith(", split train")


def test_a_published_format_reads_the_split_that_it_reads_from_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train_prefs", "train_sft"):
        turns = [{"role": "user", "content": name}, {"role": "assistant", "content": "So."}]
        datasets.Dataset.from_list([{"chosen": turns, "rejected": turns}]).to_parquet(
            tmp_path / "data" / f"{name}-00000-of-00001.parquet"
        )
    assert prompts(tmp_path, format="ultrafeedback_binarized") == [[{"role": "user", "content": "train_prefs"}]]


def test_a_bad_row_of_a_saved_dataset_has_a_place(tmp_path: Path) -> None:
    datasets.Dataset.from_list([*ROWS, {"prompt": " ", "user_id": "u"}]).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        ValueError, match=r"saved/data-00000-of-00001\.arrow: row 8: 'prompt' must be a non-empty string"
    ):
        prompts(tmp_path / "saved")


def test_a_partly_copied_saved_dataset_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    (folder / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(ValueError, match=r"lacks data-00001-of-00003\.arrow, which its state\.json names"):
        source(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json: not as `datasets\.save_to_disk` writes it"):
        source(folder)


def test_the_error_points_to_data_files_in_subfolders(tmp_path: Path) -> None:
    lines(tmp_path / "inner")
    with pytest.raises(ValueError, match=r"holds no data files \(.*\); those in inner are read when the place names"):
        source(tmp_path)
    assert prompts(tmp_path, subset="inner", split="train") == asked(ROWS)
    (tmp_path / "datasets--me--rows" / "snapshots" / "1a2b").mkdir(parents=True)
    with pytest.raises(ValueError, match="it is a folder of the Hub's cache: give a folder in its `snapshots`"):
        source(tmp_path / "datasets--me--rows")


def test_subsets_are_those_that_the_data_card_describes(tmp_path: Path) -> None:
    lines(tmp_path / "it")
    card = """---
configs:
- {config_name: good, data_files: [{split: train, path: train.jsonl}]}
- {config_name: other, data_files: test.jsonl}
---
"""
    (tmp_path / "it" / "README.md").write_text(card)
    assert prompts(tmp_path / "it", subset="good") == asked(ROWS)
    assert prompts(tmp_path / "it", subset="other", split="train") == asked(OTHER), "load_dataset calls it train"
    for settings, sentence in (
        ({}, r"has several subsets: set `subset` of its entry under data\.sources to one of good, other$"),
        (
            {"subset": "goood"},
            r"no subset 'goood': there is no folder of that name, its README\.md describes good, other$",
        ),
        ({"subset": "good", "split": "test"}, r"has no split 'test'; its splits: train$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            source(tmp_path / "it", **settings)
    (tmp_path / "it" / "README.md").write_text(card.replace("config_name: good", "config_name: good, default: true"))
    assert prompts(tmp_path / "it") == asked(ROWS)
    (tmp_path / "it" / "train.jsonl").rename(tmp_path / "it" / "valid.jsonl")
    with pytest.raises(ValueError, match=r"subset 'good' of the folder .* cannot be read: .*train\.jsonl"):
        source(tmp_path / "it", subset="good")
    (tmp_path / "it" / "README.md").write_text("---\nconfigs: [{config_name: all, data_files: t*.jsonl}]\n---\n")
    (tmp_path / "it" / "test.jsonl").unlink()
    assert prompts(tmp_path / "it") == asked(ROWS), "a part of the data set, by the names of its files"


def test_a_folder_named_like_a_loader_of_the_library_is_read_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lines(tmp_path / "it"))
    lines(Path("json"))
    Path("json", "README.md").write_text("---\nconfigs: [{config_name: default, data_files: '*'}]\n---\n")
    Path("json", "notes.md").write_text("No data.")
    files = sorted(Path(file.parent.name, file.name) for file in source(Path("json"), split="train").files)
    assert files == [Path("json/test.jsonl"), Path("json/train.jsonl")]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("{config_name: a, data_files: [{splt: train}]}", "the default subset .* cannot be read: Expected data_files"),
        ("{config_name: [a], data_files: train.jsonl}", "has several splits"),
        ("{config_name: a, data_files: 'hf://datasets/x/y/train.jsonl'}", "has several splits"),
    ],
)
def test_a_card_that_describes_no_files_of_the_folder_is_no_traceback(
    tmp_path: Path, entry: str, sentence: str
) -> None:
    lines(tmp_path / "it")
    (tmp_path / "it" / "README.md").write_text(f"---\nconfigs: [{entry}]\n---\n")
    with pytest.raises(ValueError, match=sentence):
        source(tmp_path / "it")


def test_a_subset_or_split_that_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    lines(tmp_path / "it")
    for place, settings, sentence in (
        (tmp_path / "it", {"subset": "x"}, "no folder of that name, and no README.md describes it"),
        (saved(tmp_path / "saved"), {"subset": "x"}, "written by `save_to_disk`, which has no subsets"),
        (tmp_path / "it" / "train.jsonl", {"split": "train"}, "is one file, which has no subset or split to choose"),
    ):
        with pytest.raises(ValueError, match=sentence):
            source(place, **settings)


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.MD"])
def test_rows_in_a_text_file_are_refused_with_the_names_that_are_read(tmp_path: Path, name: str) -> None:
    lines(tmp_path / "it")
    (tmp_path / "it" / "train.jsonl").rename(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is read as plain text, .*: give rows a name that ends in \.jsonl"):
        source(tmp_path / name)


def test_unread_subfolders_and_archives_are_listed(tmp_path: Path) -> None:
    folder = lines(tmp_path / "it")
    for name in ("a/b/more.jsonl", "a/b/c.txt", "notes/x.txt", ".git/y.jsonl", "part.jsonl.xz", "it.zip", "old.xlsx"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert source(folder, split="train").unread(set()) == ["a/", "it.zip", "old.xlsx", "part.jsonl.xz"]
    read_too = {folder / "a" / "b" / "more.jsonl"}
    assert source(folder, split="train").unread(read_too) == ["it.zip", "old.xlsx", "part.jsonl.xz"]
    assert source(saved(tmp_path / "saved")).unread(set()) == []
    (books := tmp_path / "books").mkdir()
    for name in ("LICENSE.txt", "ReadMe.txt", "README.zh-CN.md", "changelog.md", "emma.txt", "emma.html"):
        (books / name).write_text("Emma Woodhouse")
    (found,) = all_sources(DataConfig(pretraining=[str(books)]))[-1:]
    assert [file.name for file in found.files] == ["changelog.md", "emma.txt"]
    assert found.unread(set()) == ["emma.html"]
    (link := tmp_path / "link").symlink_to(folder)
    assert source(link, split="train").unread(read_too) == ["it.zip", "old.xlsx", "part.jsonl.xz"]
    through_link = {link / "a" / "b" / "more.jsonl"}
    assert source(folder, split="train").unread(through_link) == ["it.zip", "old.xlsx", "part.jsonl.xz"]
    copy = tmp_path / "copy"
    for name in ("data/train.jsonl", "data/old.zip", "raw/more.jsonl", "top.zip"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("x")
    assert source(copy).unread(set()) == ["data/old.zip", "raw/", "top.zip"]
