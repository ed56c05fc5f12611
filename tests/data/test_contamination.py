"""No evaluation prompt is trained on, whoever asked it and in whatever set it stands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.build import Built
from data.config import DataConfig
from data.records import SPLITS
from data.split import split_of
from tests.data.building import WORDS, written


def test_an_evaluation_prompt_that_somebody_else_ranked_leaves_training(
    config: DataConfig, tmp_path: Path, made: Callable[[DataConfig], Built]
) -> None:
    """The same words from users in different splits: in the pool that cannot be, but rankings come with users of their
    own.
    """
    built = made(config)
    (held_out, *_) = built.pool.each(built.pool.kept("test"))
    (trained, *_) = built.rankings.each(built.rankings.kept("train"))
    copied = {
        "prompt": held_out.prompt.upper() + "!",
        "user_id": trained.user_id,
        "completions": ["a", "b"],
        "ranks": [2, 1],
    }
    config.rankings.append(written(tmp_path / "copied.jsonl", [copied]))
    again = made(config)
    assert again.removed()["rankings"]["evaluation_prompt"] == 1
    assert again.removed()["prompts"]["evaluation_prompt"] == 0
    assert again.rankings.kept().sum() == built.rankings.kept().sum()


def test_an_example_of_a_few_shot_prompt_that_is_an_evaluation_prompt_takes_the_whole_prompt_out_of_training(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    trained, tested = (next(w for w in WORDS if split_of(w, 0.2, 0.2) == split) for split in ("train", "test"))
    pairs = [
        {"prompt": "one", "completion": "un"},
        {"prompt": "two", "completion": "deux"},
        {"prompt": "three", "completion": "trois"},
    ]
    few_shot = {"prompt": "Say it in French", "user_id": trained, "examples": pairs}
    config.demonstrations.append(written(tmp_path / "few.jsonl", [few_shot]))
    before = made(config)
    rendered = "Say it in French\n\nInput: two\nOutput: deux\n\nInput: three\nOutput: trois\n\nInput: one\nOutput:"
    ranked = [
        {"prompt": rendered, "user_id": tested, "completions": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "one", "user_id": tested, "completions": ["a", "b"], "ranks": [1, 2]},
    ]
    config.rankings.append(written(tmp_path / "ranked.jsonl", ranked[1:]))
    assert made(config).removed()["prompts"]["evaluation_prompt"] == 0, "the query alone is another task's"
    config.rankings[-1] = written(tmp_path / "ranked.jsonl", ranked)
    again = made(config)
    assert again.removed()["prompts"]["evaluation_prompt"] == 1
    assert again.sizes()["sft_train"] == before.sizes()["sft_train"] - 3


def test_a_validation_prompt_counts_as_evaluation_and_leaves_for_a_test_prompt(
    config: DataConfig, tmp_path: Path, made: Any
) -> None:
    trained, validated, tested = (next(w for w in WORDS if split_of(w, 0.2, 0.2) == split) for split in SPLITS)
    rankings = list(config.rankings)

    def removed(*users: str) -> int:
        lines = [
            {"prompt": "Petals fall why", "user_id": user, "completions": ["a", user], "ranks": [1, 2]}
            for user in users
        ]
        config.rankings = [*rankings, written(tmp_path / "petals.jsonl", lines)]
        built = made(config)
        kept = {record.user_id for record in built.rankings.each(built.rankings.kept())}
        assert users[-1] in kept
        return built.removed()["rankings"]["evaluation_prompt"]

    assert removed(trained, validated) == 1
    assert removed(trained, tested) == 1
    assert removed(validated, tested) == 1
    assert removed(trained, validated, tested) == 2
