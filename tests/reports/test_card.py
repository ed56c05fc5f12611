"""The data card: what `datasets` makes of it, and what it says of where the rows came from."""

import json
import re
from pathlib import Path

import pytest
from datasets import load_dataset

from data.facts import facts_of
from data.sets import SETS, set_schema
from reports.card import write_card
from tests.data.making import made, prompts, rankings, twins, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    place = tmp_path_factory.mktemp("card")
    built, config = made(place, {"prompts": prompts(20) + twins(1), "rankings": rankings(30)})
    out = place / "out"
    out.mkdir()
    files = written(built, out)
    # The stage's folder holds other files too, which must not be taken for data.
    (out / "counts.json").write_text(json.dumps({"rows": 1}))
    write_card(facts_of(built, config), 'a "quoted": name', out)
    return out, files


@pytest.mark.parametrize("name", SETS)
def test_every_set_loads_by_its_name(folder, tmp_path, name):
    out, files = folder
    loaded = load_dataset(str(out), name, cache_dir=str(tmp_path))
    assert list(loaded) == ["train", "validation", "test"]
    for split, hub_split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        assert loaded[hub_split].num_rows == len(files[f"{name}_{split}"]) > 0
        assert loaded[hub_split][0]["prompt"] == files[f"{name}_{split}"][0]["prompt"]


def test_texts_load_too(folder, tmp_path):
    loaded = load_dataset(str(folder[0]), "texts", cache_dir=str(tmp_path))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 1, "heldout": 1}


def test_another_run_is_not_answered_from_the_cache_of_the_first(tmp_path):
    """`datasets` knows a local folder by its last name and its card, and every run's folder is called `data`."""
    for run, start in (("one", 1000), ("two", 2000)):
        folder = tmp_path / run / "data"
        folder.mkdir(parents=True)
        built, config = made(tmp_path / run, {"prompts": prompts(20, start=start)})
        files = written(built, folder)
        write_card(facts_of(built, config), "same", folder)
        loaded = load_dataset(str(folder), "rm", split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded["prompt"][:] == [row["prompt"] for row in files["rm_train"]]


def test_splits_without_rows_are_not_promised(tmp_path):
    built, config = made(tmp_path)
    written(built, tmp_path)
    write_card(facts_of(built, config), "fake", tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "config_name: rankings" not in card
    assert "| `rankings` | prompts with several answers and their order | 0 | 0 | 0 | – |" in card
    assert load_dataset(str(tmp_path), "sft", split="train", cache_dir=str(tmp_path / "cache")).num_rows


def test_it_says_where_the_rows_came_from_and_what_was_done(folder):
    card = (folder[0] / "README.md").read_text()
    assert card.startswith('---\npretty_name: "a \\"quoted\\": name"\nlanguage:\n- "en"\n')
    assert "licence not recorded" in card
    assert "| near duplicate | shares its first 90% with an earlier prompt" in card
    assert "| prompts | 1 | 1.2% |" in card
    assert "in which the `rules` engine found personal data" in card


def test_every_column_is_described(folder):
    columns = (folder[0] / "README.md").read_text().split("## Columns")[1].split("## Personal data")[0]
    names = {name for set_name in SETS for name in set_schema(set_name, False).names} | {"text"}
    assert set(re.findall(r"^\| `(\w+)` \|", columns, re.M)) == names
