"""Two answers a prompt: the loss and gradients of trl's RewardTrainer, which knows pairs only.

pytest tests/reward/test_beside_trl.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer as TRLRewardTrainer

from modeling.models import reward_model
from modeling.run import Run
from reward.batches import RankingExample
from reward.config import RewardConfig
from reward.trainer import RewardTrainer
from tests.fakes import FakeAccelerator
from tests.reward.test_scoring import some_examples

ALONE = FakeAccelerator()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_loss_and_gradients_are_those_of_trl(
    tiny_scalar: Callable[[str], Any], tiny_tokenizer: Any, tmp_path: Path, architecture: str
) -> None:
    first_wins = torch.tensor([[False, True], [False, False]])
    batch = [
        RankingExample([token or 5 for token in item.prompt], [[*a, 2] for a in item.answers[:2]], first_wins)
        for item in some_examples(11, 6)
    ]
    rows = [
        {"chosen_ids": item.prompt + item.answers[0], "rejected_ids": item.prompt + item.answers[1]} for item in batch
    ]
    theirs = tiny_scalar(architecture)
    trainer = TRLRewardTrainer(
        model=theirs,
        args=TRLRewardConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            max_length=None,
            per_device_train_batch_size=len(batch),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )  # fmt: skip
    expected = trainer.compute_loss(
        trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(len(batch))])
    )
    expected.backward()

    model = tiny_scalar(architecture)
    numbers = RewardTrainer(RewardConfig(), reward_model(model), batch, Run(ALONE, 0)).gradient(batch)
    assert numbers["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert abs(numbers["loss"] - 0.693) > 0.02
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert largest > 0.01
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], atol=5e-5 * largest, rtol=1e-3, msg=name)
