"""The reward model in float16 with loss scaling: the gradient of float32, and overflows that skip a step.

pytest tests/reward/test_float16.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling.models import reward_model
from modeling.run import Run
from modeling.tracking import read_metrics
from reward.config import RewardConfig
from reward.trainer import RewardTrainer
from tests.reward.test_trainer import ALONE, some_examples

ITEMS = some_examples(0, 6)
CONFIG = RewardConfig(batch_size=3, epochs=1, max_grad_norm=10.0**6)


def trainer_of(model: Any, dtype: torch.dtype | None, scale: float, out: Path | None = None) -> RewardTrainer:
    trainer = RewardTrainer(CONFIG, reward_model(model, dtype), ITEMS, Run(ALONE, 0, out))
    if trainer.done == 0:
        trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": scale})
    return trainer


def test_a_step_takes_the_gradient_of_float32(tiny_scalar: Callable[[str], Any]) -> None:
    gradients: list[dict[str, torch.Tensor]] = []
    norms = []
    for dtype in (None, torch.float16):
        trainer = trainer_of(tiny_scalar("llama"), dtype, 2.0**4)
        weights = trainer.state.models["reward"][0]

        def keep(*_: Any, weights: dict[str, Any] = weights) -> None:
            gradients.append({name: weight.grad.clone() for name, weight in weights.items()})

        trainer.optimizer.register_step_pre_hook(keep)
        numbers = trainer.train_batch(ITEMS[:3], 1)
        assert numbers.get("skipped", 0.0) == 0.0
        norms.append(numbers["grad_norm"])
    expected, found = gradients
    for name, gradient in expected.items():
        limit = 1e-6 + 32 * 2.0**-11 * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=limit, rtol=0, msg=name)
    assert norms[1] == pytest.approx(norms[0], rel=16 * 2.0**-11)


def test_an_overflow_skips_the_step_and_a_resumed_run_has_the_halved_scale(
    tiny_scalar: Callable[[str], Any], tmp_path: Path
) -> None:
    model = tiny_scalar("llama")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = trainer_of(model, torch.float16, 2.0**100, tmp_path)
    trainer.train()
    assert [row["skipped"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 1.0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert trainer_of(tiny_scalar("llama"), torch.float16, 1.0, tmp_path).scaler.get_scale() == 2.0**98
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 1.0})
    model.score.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ValueError, match=r"grad_norm is (nan|inf): lower reward\.learning_rate"):
        trainer.train_batch(ITEMS[:3], 3)
