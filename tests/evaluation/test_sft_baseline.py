"""The choice among the baseline's epochs: by score, by loss, and only among those that were kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data.intervals import Bootstrap
from data.records import Demonstration
from evaluation.sft_baseline import EpochAnswers, EpochChoice, losses_by_epoch
from modeling.generation import Generation

METRICS: list[dict[str, float]] = [
    {"step": 1, "loss": 4.0, "grad_norm": 1.0}, {"step": 2, "loss": 3.0}, {"step": 2, "valid_loss": 3.2},
    {"step": 3, "loss": 2.0}, {"step": 4, "loss": 1.0}, {"step": 4, "valid_loss": 3.1},
    {"step": 5, "loss": 0.5}, {"step": 6, "loss": 0.25}, {"step": 6, "valid_loss": 3.6},
]  # fmt: skip
PROMPTS = [
    Demonstration(prompt=f"Prompt {n}", completion="Yes.", user_id=user) for n, user in enumerate(("a", "a", "b"))
]


def answers(*scores: Sequence[float]) -> EpochAnswers:
    """One row of scores a prompt; the answer with a positive score has 2 tokens and ends, the others have 4."""
    rows = [[Generation([5] * (2 if score > 0 else 4), None, score > 0) for score in row] for row in scores]
    return EpochAnswers(rows, [list(row) for row in scores])


def choice(kept: Sequence[int] = (1, 2, 3), made: dict[int, EpochAnswers] | None = None) -> EpochChoice:
    bootstrap = Bootstrap(200, [prompt.user_id for prompt in PROMPTS])
    return EpochChoice(losses=losses_by_epoch(METRICS), kept=kept, answers=made or {}, bootstrap=bootstrap)


def test_an_epochs_training_loss_is_the_mean_of_its_own_steps() -> None:
    assert losses_by_epoch([*METRICS, {"step": 7, "loss": 9.0}]) == [
        {"epoch": 1, "step": 2, "train_loss": 3.5, "valid_loss": 3.2},
        {"epoch": 2, "step": 4, "train_loss": 1.5, "valid_loss": 3.1},
        {"epoch": 3, "step": 6, "train_loss": 0.375, "valid_loss": 3.6},
    ]


def test_without_a_reward_model_the_epoch_of_least_validation_loss_is_chosen_among_those_kept() -> None:
    found = choice()
    assert found.facts() | {"why": ""} == {
        "epoch": 2,
        "by": "valid_loss",
        "why": "",
        "least_valid_loss_epoch": 2,
        "above_least_valid_loss_epoch": None,
    }
    assert [row["chosen"] for row in found.rows()] == [False, True, False]
    assert {row["score"] for row in found.rows()} == {row["answer_tokens"] for row in found.rows()} == {None}
    assert choice(kept=(1, 3)).chosen == 1


def test_with_a_reward_model_the_highest_mean_score_decides_against_the_validation_loss() -> None:
    """Epoch 3 has the highest mean over prompts, although epoch 1 has the highest single score."""
    made = {
        1: answers((9.0, -9.0), (0.0, 0.0), (0.0, 0.0)),
        2: answers((1.0, 0.0), (1.0, 0.0), (0.0, 0.0)),
        3: answers((2.0, 1.0), (-1.0, 3.0), (2.0, -1.0)),
    }
    found = choice(made=made)
    assert (found.chosen, found.least_loss) == (3, 2)
    facts = found.facts()
    assert facts["by"] == "reward_score"
    # Means by prompt: 1.5, 1.0, 0.5 against 0.5, 0.5, 0.0.
    assert facts["above_least_valid_loss_epoch"]["mean"] == pytest.approx((1.0 + 0.5 + 0.5) / 3)
    rows = found.rows()
    assert [row["score"]["mean"] for row in rows] == pytest.approx([0.0, 1 / 3, 1.0])
    assert {row["score"]["users"] for row in rows} == {2}
    # The interval of two users: b alone gives 0.5, a alone (1.5 + 1.0) / 2.
    assert (rows[2]["score"]["low"], rows[2]["score"]["high"]) == (0.5, 1.25)
    assert [row["answer_tokens"] for row in rows] == pytest.approx([22 / 6, 20 / 6, 16 / 6])
    assert [row["ended"] for row in rows] == pytest.approx([1 / 6, 2 / 6, 4 / 6])


def test_of_two_epochs_with_the_same_score_the_earlier_is_chosen() -> None:
    same = answers((1.0,), (2.0,), (3.0,))
    assert choice(made={1: answers((0.0,), (0.0,), (0.0,)), 2: same, 3: same}).chosen == 2


def test_every_answer_is_written_beside_its_score(tmp_path: Path, tiny_tokenizer: Any) -> None:
    text = tiny_tokenizer.encode("Yes", add_special_tokens=False)
    rows = [[Generation([*text, tiny_tokenizer.eos_token_id], None, True)] for _ in PROMPTS]
    made = {epoch: EpochAnswers(rows, [[epoch + n / 10] for n in range(3)]) for epoch in (1, 3)}
    facts = choice(kept=(1, 3), made=made).write(tmp_path, PROMPTS, tiny_tokenizer)
    assert json.loads((tmp_path / "choice.json").read_text()) == facts
    assert facts["epoch"] == 3
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["prompt"], row["answer"], row["score"]) for row in written] == [
        (epoch, f"Prompt {n}", "Yes", epoch + n / 10) for epoch in (1, 3) for n in range(3)
    ]
    epochs = [json.loads(line) for line in (tmp_path / "epochs.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["kept"], row["chosen"], row["score"] is None) for row in epochs] == [
        (1, True, False, False), (2, False, False, True), (3, True, True, False),
    ]  # fmt: skip
