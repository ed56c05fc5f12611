"""The sets on disk: everything that a record holds, for this project and for anyone's `datasets`."""

from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

import data.build
import data.table
from data.config import DataConfig
from data.records import Ranking
from data.sets import set_file
from tests.data.building import written


def test_a_conversation_among_the_prompts_makes_all_of_them_conversations(
    config: DataConfig, tmp_path: Path, sets: Any
) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    config.prompts.append(written(tmp_path / "chat.jsonl", [{"prompt": turns, "user_id": "chatter"}]))
    found = sets(config)
    assert [record.prompt for record in found.everything("rm") if record.user_id == "chatter"] == [turns]
    first = next(record for record in found.everything("rm") if record.prompt_id == "p0")
    assert first.prompt == [{"role": "user", "content": "amber number 0 please"}]


def test_a_conversation_that_left_makes_nobody_else_one(config: DataConfig, tmp_path: Path, sets: Any) -> None:
    turns = [{"role": "user", "content": "one two three four five six seven eight"}]
    config.prompts.append(written(tmp_path / "chat.jsonl", [{"prompt": turns, "user_id": "chatter"}]))
    config.max_prompt_tokens = 7
    assert {type(record.prompt) for record in sets(config).everything("rm")} == {str}


def test_a_conversation_among_the_rankings_is_one(config: DataConfig, tmp_path: Path, sets: Any) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    config.rankings.append(
        written(
            tmp_path / "chat.jsonl",
            [{"prompt": turns, "user_id": "chatter", "completions": ["a", "b"], "ranks": [1, 2]}],
        )
    )
    assert turns in [record.prompt for record in sets(config).everything("rankings")]


def test_conversations_that_share_a_long_history_are_not_twins_and_those_that_ask_the_same_of_it_are(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    system = {"role": "system", "content": "You are the assistant of a small shop that sells tea. " * 20}
    turns = [
        [system, {"role": "user", "content": question}]
        for question in ("Which tea for cold days?", "Do you ship abroad?", "Do you ship abroad")
    ]
    config.prompts.append(
        written(tmp_path / "chat.jsonl", ({"prompt": prompt, "user_id": f"user {n}"} for n, prompt in enumerate(turns)))
    )
    built = made(config)
    assert built.removed()["prompts"]["near_duplicate"] == 1
    (victim,) = built.pool.read(built.pool.examples("near_duplicate"))
    assert victim.messages[-1]["content"] == "Do you ship abroad"


def test_all_that_a_ranking_holds_is_on_disk(config: DataConfig, tmp_path: Path, sets: Any) -> None:
    full = [
        {
            "prompt": "full one", "user_id": "user 1", "completions": ["a", "b", ""], "ranks": [2, None, 1],
            "labeler_id": "ann", "labeler": "llm",
            "complete": [True, False, True], "ratings": [{"quality": 3, "hateful": False}, {}, {"note": "ok"}],
            "kind": "plain", "use_case": "chat",
        },
        {"prompt": "full two", "user_id": "user 1", "completions": ["a", "b", "c"],
            "preferences": [[0, 1], [1, 2], [2, 0]], "ties": [[0, 2]]},
    ]  # fmt: skip
    config.rankings = [written(tmp_path / "full.jsonl", full)]
    records = {record.text: record for record in sets(config).everything("rankings")}
    for row in full:
        expected = Ranking(**row, dataset=config.rankings[0])  # type: ignore[arg-type]
        assert records[str(row["prompt"])] == expected


def test_the_sets_are_data_sets_to_anyone(config: DataConfig, sets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of which no row is in a set leave nothing behind that a reader of Parquet stumbles over."""
    monkeypatch.setattr(data.table, "BATCH", 3)
    found = sets(config)
    loaded = load_dataset(
        "parquet",
        data_files=str(set_file(found.folder, "sft", "train")),
        split="train",
        cache_dir=str(found.folder / "cache"),
    )
    assert loaded["prompt"][:] == [record.prompt for record in found["sft"]["train"]]
    assert loaded["completion"][:] == [record.completion for record in found["sft"]["train"]]
