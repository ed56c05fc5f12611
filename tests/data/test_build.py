"""The three sets: who may be in which, and that every prompt that is missing from them is accounted for."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.build import BuiltData, build, refuse_repeated_ids, split_texts, write
from data.config import DataConfig
from data.jsonl import read_records
from data.records import SPLITS, Demonstration, Prompt

WORDS = [
    "amber",
    "birch",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "grove",
    "heath",
    "islet",
    "jetty",
    "knoll",
    "ledge",
    "marsh",
    "north",
    "oasis",
    "petal",
    "quartz",
    "ridge",
    "slope",
    "tundra",
]


def words(text: Any) -> int:
    return len((text.text if isinstance(text, Prompt) else text).split())


def rows(file: Path, count: int, start: int = 0, **extra: Any) -> Path:
    """`count` prompts of 20 users; every third from the api."""
    lines = []
    for number in range(start, start + count):
        row = {"prompt": f"{WORDS[number % 20]} number {number} please", "user_id": f"user {number % 20}", "prompt_id": f"p{number}"}
        lines.append(json.dumps(row | {"source": "api" if number % 3 == 0 else "labeler"} | extra))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "text.md").write_text("one two three " * 50)
    return DataConfig(
        demonstrations=[str(rows(tmp_path / "demonstrations.jsonl", 60, completion="Here you are."))],
        prompts=[str(rows(tmp_path / "prompts.jsonl", 60, start=60))],
        rankings=[str(rows(tmp_path / "rankings.jsonl", 40, start=200, completions=["a", "b"], ranks=[1, 2]))],
        pretraining=[str(tmp_path / "text.md")],
        valid_fraction=0.2,
        test_fraction=0.2,
    )


def made(config: DataConfig) -> BuiltData:
    return build(config, words, words)


def test_rl_sees_api_prompts_only_and_no_answers(config: DataConfig) -> None:
    built = made(config)
    assert all(type(prompt) is Prompt and prompt.source == "api" for split in SPLITS for prompt in built.rl[split])
    assert {p.source for split in SPLITS for p in built.rm[split]} == {p.source for split in SPLITS for p in built.sft[split]} == {"api", "labeler"}
    for split in SPLITS:
        assert [p.prompt_id for p in built.rl[split]] == [p.prompt_id for p in built.rm[split] if p.source == "api"], "and all of them"
        assert built.sft[split] == [p for p in built.rm[split] if isinstance(p, Demonstration)]
    assert sum(map(len, built.sft.values())) == 60
    assert sum(map(len, built.rm.values())) == 120
    assert sum(map(len, built.rl.values())) == 40


def test_no_user_is_in_two_splits_of_any_sets(config: DataConfig) -> None:
    built = made(config)
    users = {
        split: {record.user_id for part in (built.sft, built.rm, built.rl, built.rankings) for record in part[split]}  # type: ignore[attr-defined]
        for split in SPLITS
    }
    assert all(users.values())
    assert not users["train"] & users["valid"]
    assert not users["train"] & users["test"]
    assert not users["valid"] & users["test"]


def test_every_removed_prompt_is_counted_under_its_rule(config: DataConfig, tmp_path: Path) -> None:
    extra = tmp_path / "more.jsonl"
    added = [
        {"prompt": "AMBER number 0, please!", "user_id": "copycat"},
        {"prompt": "one two three four five six", "user_id": "talker"},
        *({"prompt": f"{word} at last", "user_id": "glutton"} for word in WORDS[:9]),
    ]
    extra.write_text("".join(json.dumps(row) + "\n" for row in added))
    answers = tmp_path / "long.jsonl"
    answers.write_text(json.dumps({"prompt": "tell me of tundra", "completion": "very long answer indeed", "user_id": "writer"}) + "\n")
    config.prompts.append(str(extra))
    config.demonstrations.append(str(answers))
    config.max_prompts_per_user, config.max_prompt_tokens, config.max_answer_tokens = 6, 5, 3
    built = made(config)
    assert built.removed == {"over_cap_per_user": 3, "near_duplicate": 1, "prompt_too_long": 1, "answer_too_long": 1}
    assert sum(map(len, built.rm.values())) + sum(built.removed.values()) == 120 + len(added) + 1
    kept = {prompt.user_id for part in built.rm.values() for prompt in part}
    assert "glutton" in kept
    assert not {"copycat", "talker", "writer"} & kept


def test_of_a_prompt_with_and_without_an_answer_the_answer_stays(config: DataConfig, tmp_path: Path) -> None:
    config.prompts = [str(rows(tmp_path / "same.jsonl", 60))]
    built = made(config)
    assert built.removed["near_duplicate"] == 60
    assert sum(map(len, built.sft.values())) == 60


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"valid_fraction": 1e-9}, "the sft valid split is empty after curation"),
        ({"test_fraction": 1e-9}, "the sft test split is empty after curation"),
        ({"valid_fraction": 0.5, "test_fraction": 0.4999999}, "the sft train split is empty after curation"),
        ({"max_prompt_tokens": 1}, r"the sft train split is empty after curation.*120 prompt_too_long"),
        ({"max_answer_tokens": 1}, r"the sft train split is empty after curation.*60 answer_too_long"),
    ],
)
def test_an_empty_split_stops_the_run_with_its_name(config: DataConfig, change: dict[str, Any], sentence: str) -> None:
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=sentence):
        made(config)


def test_a_run_without_api_prompts_is_told_so(config: DataConfig, tmp_path: Path) -> None:
    config.prompts = []
    config.demonstrations = [str(rows(tmp_path / "labeler.jsonl", 60, completion="So.", source="labeler"))]
    with pytest.raises(ValueError, match="the rl train split is empty after curation: no api prompt"):
        made(config)


def test_a_bad_row_stops_the_run_or_is_skipped_and_listed(config: DataConfig) -> None:
    file = Path(config.prompts[0])
    file.write_text(file.read_text() + '{"promt": "Why?"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=rf"{file.name}:61: unknown key 'promt', did you mean 'prompt'\?"):
        made(config)
    config.bad_rows = "skip"
    built = made(config)
    assert [sentence.split(": ")[0] for sentence in built.skipped_rows] == [f"{file}:61", f"{file}:62"]
    assert sum(map(len, built.rm.values())) == 120


def test_one_id_on_two_different_prompts_is_refused() -> None:
    same = [Prompt(prompt="Why?", prompt_id="p"), Prompt(prompt="Why?", prompt_id="p")]
    refuse_repeated_ids(same)
    with pytest.raises(ValueError, match="prompt_id 'p' stands on two different prompts"):
        refuse_repeated_ids([*same, Prompt(prompt="How?", prompt_id="p")])


@pytest.mark.parametrize("count", [2, 9, 10, 57])
def test_no_document_is_both_trained_on_and_held_out(count: int) -> None:
    texts = [f"document {number}" for number in range(count)]
    splits = split_texts(texts, "")
    assert len(splits["heldout"]) == max(1, count // 10)
    assert sorted(splits["train"] + splits["heldout"]) == sorted(texts)
    assert {name: set(part) for name, part in split_texts(texts[::-1], "").items()} == {name: set(part) for name, part in splits.items()}


def test_the_last_tenth_of_a_single_document_is_held_out() -> None:
    assert split_texts(["0123456789" * 3], "") == {"train": ["0123456789" * 2 + "0123456"], "heldout": ["789"]}


def test_the_sets_on_disk_are_the_sets(config: DataConfig, tmp_path: Path) -> None:
    built, folder = made(config), tmp_path / "out"
    folder.mkdir()
    write(built, folder)
    for split in SPLITS:
        assert read_records(folder / f"sft_{split}.jsonl", Demonstration) == built.sft[split]
        assert read_records(folder / f"rl_{split}.jsonl", Prompt) == built.rl[split]
        assert len((folder / f"rm_{split}.jsonl").read_text().splitlines()) == len(built.rm[split]) == built.sizes()[f"rm_{split}"]
    assert json.loads((folder / "texts_heldout.jsonl").read_text())["text"] == built.texts["heldout"][0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"demonstrations": []}, "data.demonstrations is empty"),
        ({"valid_fraction": 0.0}, "data.valid_fraction=0.0"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "leave room for training"),
        ({"near_duplicate_fraction": 0.0}, "data.near_duplicate_fraction=0.0"),
        ({"near_duplicate_fraction": 1.5}, "data.near_duplicate_fraction=1.5"),
        ({"max_prompts_per_user": 0}, "data.max_prompts_per_user=0 must be at least 1"),
        ({"max_prompt_tokens": 0}, "data.max_prompt_tokens=0 must be at least 1"),
    ],
)
def test_contradictions_are_refused_by_name(change: dict[str, Any], sentence: str) -> None:
    DataConfig().validate()
    with pytest.raises(ValueError, match=sentence):
        DataConfig(**change).validate()
