"""The tables against the files that the stage writes, counted by hand."""

import statistics
from collections import Counter

import numpy as np
import pytest

from data.facts import facts_of
from data.language import identify
from reports import data_tables as tables
from tests.data.making import WORDS, demonstrations, described, file_of, made, prompts, rankings, twins, written

SETS = {"SFT": "sft", "RM": "rm", "RL": "rl", "Rankings": "rankings"}
SPLITS = {"training": "train", "validation": "valid", "test": "test"}
FEW_SHOT = {
    "prompt": "Name the opposite.",
    "user_id": "teacher",
    "source": "labeler",
    "use_case": "other",
    "examples": [{"prompt": f"{word} or not", "completion": f"not {word}"} for word in WORDS[:5]],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    folder = tmp_path_factory.mktemp("data")
    foreign = [{"prompt": "Wie heißt die Hauptstadt von Deutschland und warum ist sie so berühmt?", "user_id": "eu"}]
    rows = {
        "demonstrations": [*demonstrations(), FEW_SHOT],
        "prompts": prompts(40) + prompts(9, start=2000, user_id="busy") + foreign,
    }
    built, config = made(folder, rows | {"rankings": rankings(30)})
    return facts_of(built, config), written(built, folder)


def by_name(table):
    return {row[0] if isinstance(row[0], str) else row[0][0]: row[1:] for row in table.rows}


def test_sizes_are_those_of_the_files(data):
    facts, files = data
    found = by_name(tables.sizes_table(facts))
    assert len(found) == 12
    for title, name in SETS.items():
        for split_title, split in SPLITS.items():
            sources = Counter(row["source"] for row in files[f"{name}_{split}"])
            assert found[f"{title} {split_title}"][:3] == [
                str(sources["labeler"]),
                str(sources["api"]),
                str(sources.total()),
            ]
    assert found["SFT training"][3:] == ["11,295", "1,430"]
    assert found["RL training"][3:] == ["–", "31,144"]
    assert sum(len(files[f"sft_{split}"]) for split in SPLITS.values()) == 60 + 5, (
        "the few-shot prompt counts as its five examples"
    )


def test_users_are_counted_by_who_wrote_the_prompts(data):
    facts, files = data
    found = by_name(tables.users_table(facts))
    seen = 0
    for title, name in SETS.items():
        for split_title, split in SPLITS.items():
            for whose, source in (("API", "api"), ("labeler", "labeler")):
                ids = {
                    row["prompt_id"].split("#")[0]: row["user_id"]
                    for row in files[f"{name}_{split}"]
                    if row["source"] == source
                }
                counts = list(Counter(ids.values()).values())
                if counts:
                    seen += 1
                    users, mean, median, most, share, _ = found[f"{title} {split_title}, {whose}"]
                    assert (users, mean, most) == (str(len(counts)), f"{statistics.mean(counts):.2f}", str(max(counts)))
                    assert float(median) == statistics.median(counts)
                    assert share == f"{100 * max(counts) / sum(counts):.1f}%"
    assert seen == len(found)
    assert found["RM training, API"][-1] == "5.35"


def test_use_cases_are_shares_of_the_rows_that_name_one(data):
    facts, files = data
    table = tables.use_cases_table(facts["sets"])
    found = by_name(table)
    assert table.columns == ["Use case", "SFT", "RM", "RL", "Paper"], "rankings name none"
    for column, name in enumerate(("sft", "rm", "rl")):
        rows = [row for split in SPLITS.values() for row in files[f"{name}_{split}"]]
        named = Counter(row["use_case"] for row in rows if row["use_case"])
        assert found["chat"][column] == f"{100 * named['chat'] / named.total():.1f}%"
        assert found["rows that name one"][column] == str(named.total())
        assert found["share of rows that name none"][column] == f"{100 * (1 - named.total() / len(rows)):.1f}%"
    assert found["generation"][-1] == "45.6%"


def test_lengths_are_those_of_the_files(data):
    facts, files = data
    found = by_name(tables.lengths_table("", tables.lengths_by_split(facts)))
    for title, name in SETS.items():
        for split_title, split in SPLITS.items():
            rows = files[f"{name}_{split}"]
            # A few-shot prompt's five examples differ in length; the table takes the longest for all.
            words = [len(row["prompt"].split()) for row in rows if row["kind"] != "few_shot"]
            shots = [len(row["prompt"].split()) for row in rows if row["kind"] == "few_shot"]
            words += [max(shots)] * len(shots) if shots else []
            cells = found[f"{title} {split_title}"]
            assert cells[0] == str(len(words))
            assert float(cells[1]) == pytest.approx(statistics.mean(words), abs=0.06)
            assert float(cells[2]) == pytest.approx(statistics.pstdev(words), abs=0.06)
            assert [float(cell) for cell in cells[3:]] == pytest.approx(
                np.percentile(words, [0, 25, 50, 75, 100]), abs=0.06
            )
    sources = by_name(tables.lengths_table("", facts["lengths_by_source"]))
    answers = [
        len(row["completion"].split())
        for split in SPLITS.values()
        for row in files[f"sft_{split}"]
        if row["source"] == "api"
    ]
    assert sources["API prompts: demonstrations"][0] == str(len(answers))
    assert float(sources["API prompts: demonstrations"][1]) == pytest.approx(statistics.mean(answers), abs=0.06)
    cases = by_name(tables.lengths_table("", tables.lengths_by_use_case(facts)))
    assert cases["other"][0] == "5"
    assert "brainstorming" not in cases


def test_several_rankings_of_a_prompt_are_one_prompt_of_its_user(tmp_path):
    again = [row for name in ("anna", "ben") for row in rankings(12, labeler_id=name, user_id="busy")]
    other = rankings(20)[12:]
    rankings_of = described(tmp_path, {"rankings": [*again, *other]})["sets"]["rankings"]
    assert rankings_of["prompts_per_user"] == {"1": 8, "12": 1}
    assert sum(sum(split["rows"].values()) for split in rankings_of["splits"].values()) == 2 * 12 + 8
    split = next(split for split in rankings_of["splits"].values() if split["users"].get("api", {}).get("max") == 12)
    assert split["users"]["api"]["count"] == split["groups"]


def test_languages_are_counted_over_what_was_kept(data):
    facts, files = data
    found = by_name(tables.languages_table(facts["languages"]))
    rows = [row for split in SPLITS.values() for row in files[f"rm_{split}"] if row["kind"] != "few_shot"]
    told = Counter(identify([row["prompt"] for row in rows]))
    assert found["de"][0] == str(told["de"]) == "1"
    assert sum(int(row[0]) for row in found.values()) == sum(len(files[f"rm_{split}"]) for split in SPLITS.values())
    assert sum(int(row[2]) for row in found.values()) == 30


def test_sources_are_read_and_kept_rows(tmp_path):
    rows = {"prompts": prompts(20, dataset="an earlier run's") + twins(1), "rankings": rankings(5)}
    built, config = made(tmp_path, rows)
    facts = facts_of(built, config)
    found = by_name(tables.sources_table(facts["sources"]))
    assert found[config.prompts[0]][1] == "21"
    assert found[config.prompts[0]][-1] == "95.2%"
    assert found[config.demonstrations[0]][1:2] == ["60"]
    assert sum(int(cell) for cell in found[config.rankings[0]][2:5]) == 5
    documents = found[config.pretraining[0]]
    assert documents[1:5] == ["2", "1", "0", "1"]


def test_a_source_that_gives_demonstrations_and_prompts_is_counted_as_either(tmp_path):
    file = file_of(tmp_path / "both.jsonl", [*demonstrations(), *demonstrations(3)])
    facts = described(tmp_path, demonstrations=[file], prompts=[file])
    table = tables.sources_table(facts["sources"])
    assert [row[2] for row in table.rows[:2]] == ["63", "63"]
    assert [row[-1] for row in table.rows[:2]] == ["95.2%", "0.0%"], "the same prompts again"


def test_what_was_removed_stands_by_kind_and_in_order(tmp_path):
    again = [row | {"user_id": "again"} for row in prompts(1)]
    facts = described(tmp_path, {"prompts": prompts(1) + twins(1) + again, "rankings": [*rankings(5), *rankings(1)]})
    table = tables.removed_table(facts)
    found = by_name(table)
    assert found["near duplicate"] == ["1", "1.6%", "–", "–", "–", "–"]
    assert found["repeated"] == ["1", "1.6%", "1", "16.7%", "0", "0.0%"]
    order = [
        "other language",
        "prompt too long",
        "answer too long",
        "personal data",
        "repeated",
        "near duplicate",
        "over cap",
    ]
    assert [row[0] for row in table.rows[:7]] == order


def test_texts_are_counted_in_characters(data):
    facts, _ = data
    (row,) = tables.texts_table(facts["texts"]).rows
    whole = len("one two three " * 50)
    assert row[1:] == [("1", f"{whole * 9 // 10} characters"), ("1", f"{whole - whole * 9 // 10} characters")]


def test_without_rankings_use_cases_or_anything(tmp_path):
    plain = [{key: value for key, value in row.items() if key != "use_case"} for row in demonstrations()]
    facts = described(tmp_path, {"demonstrations": plain})
    assert list(facts["sets"]) == ["sft", "rm", "rl"]
    assert tables.use_cases_table(facts["sets"]).rows == []
    assert tables.lengths_table("", tables.lengths_by_use_case(facts)).rows == []
    assert tables.languages_table(facts["languages"]).columns == ["Language", "Prompts", "Share"]
