"""Sources, their weights, and what they say of their rows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig, SourceConfig
from data.split import split_of
from tests.data.building import WORDS, rows, written


def test_weights_thin_the_training_rows_of_a_role_and_leave_evaluation_alone(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    config.sources = {
        "many": SourceConfig(place=rows(tmp_path / "many.jsonl", 200, start=1000, completion="So."), weight=1.0),
        "few": SourceConfig(place=rows(tmp_path / "few.jsonl", 60, start=2000, completion="So."), weight=3.0),
    }
    config.demonstrations, config.prompts = ["many", "few"], []
    built = made(config)
    train = Counter(record.dataset for record in built.pool.each(built.pool.kept("train")))
    assert train["few"] == 3 * train["many"] > 0 or abs(train["few"] - 3 * train["many"]) < 3
    rest = Counter(record.dataset for record in built.pool.each(built.pool.kept("valid") | built.pool.kept("test")))
    assert rest["many"] > rest["few"]
    assert built.removed()["prompts"]["over_mixture_share"] == 260 - sum(train.values()) - sum(rest.values())


def test_the_examples_of_few_shot_prompts_count_as_rows_of_a_mixture(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    trained = next(word for word in WORDS if split_of(word, 0.2, 0.2) == "train")
    pairs = [{"prompt": f"{word} asked", "completion": "So."} for word in WORDS[:4]]
    few_shot = [
        {"prompt": f"{word} task number {number}", "user_id": trained, "examples": pairs}
        for number, word in enumerate(WORDS)
    ]
    config.sources = {
        "few_shot": SourceConfig(place=written(tmp_path / "few.jsonl", few_shot), weight=1.0),
        "plain": SourceConfig(place=rows(tmp_path / "plain.jsonl", 60, start=1000, completion="So."), weight=1.0),
    }
    config.demonstrations, config.prompts = ["few_shot", "plain"], []
    built = made(config)
    kept = built.pool.kept("train")
    few = int(built.pool.notes["copies"][kept & built.pool.notes["few_shot"]].sum())
    assert 0 <= int((kept & ~built.pool.notes["few_shot"]).sum()) - few < 4, (
        "as many rows of either, but for a few-shot prompt that is not cut"
    )
    assert few > 20


def test_a_source_with_a_weight_and_no_training_rows_is_told(config: DataConfig, tmp_path: Path, made: Any) -> None:
    users = [user for user in (f"user {n}" for n in range(99)) if split_of(user, 0.2, 0.2) == "test"]
    held_out = written(tmp_path / "held.jsonl", ({"prompt": f"{word} alone", "user_id": users[0]} for word in WORDS))
    config.sources = {
        "all": SourceConfig(place=config.prompts[0], weight=1.0),
        "held": SourceConfig(place=held_out, weight=1.0),
    }
    config.prompts = ["all", "held"]
    with pytest.raises(
        ValueError,
        match=r"data\.prompts: source 'held' has a weight but no training rows are left of it after curation",
    ):
        made(config)


def test_what_a_source_says_of_its_prompts_holds_where_rows_do_not_say(
    config: DataConfig, tmp_path: Path, sets: Any
) -> None:
    lines = [
        {"prompt": f"{word} again", "user_id": f"user {n}", **({"source": "api"} if n % 2 else {})}
        for n, word in enumerate(WORDS)
    ]
    config.sources = {"written": SourceConfig(place=written(tmp_path / "w.jsonl", lines), source="labeler", limit=10)}
    config.prompts = [*config.prompts, "written"]
    mine = [record for record in sets(config).everything("rm") if record.dataset == "written"]
    assert Counter(record.source for record in mine) == {"labeler": 5, "api": 5}
