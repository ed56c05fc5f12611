"""PPO in float16 with loss scaling: the gradients of float32, and overflows that skip a step."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.checkpoint import newest
from modeling.tracking import read_metrics
from ppo.trainer import PPOTrainer
from tests.ppo.conftest import Chain, scored, small

ROUNDING = 2.0**-11
"""Of float16."""
SMALL, HUGE = 2.0**10, 2.0**100
"""Loss scales at which no gradient overflows, and at which every one does."""


def trainer_in(precision: Any, chain: Chain, out: Path, **settings: Any) -> PPOTrainer:
    config = small(**{"ptx_coef": 3.0, "max_grad_norm": None} | settings)
    return replace(chain, config=replace(chain.config, precision=precision)).trainer(out, config)


def set_scale(trainer: PPOTrainer, **scales: float) -> None:
    for name, scale in scales.items():
        scaler = trainer.optimizers.scalers[name]
        scaler.load_state_dict(scaler.state_dict() | {"scale": scale})


def scale_of(trainer: PPOTrainer, name: str) -> float:
    return trainer.optimizers.scalers[name].get_scale()


def stepped(trainer: PPOTrainer) -> dict[str, Tensor]:
    """The gradients with which the optimizers step, by model and name; filled by later steps."""
    found: dict[str, Tensor] = {}
    models = trainer.models
    for model, weights in (("policy", models.policy_parameters), ("value", models.value_parameters)):

        def keep(*_: Any, model: str = model, weights: dict[str, Any] = weights) -> None:
            found.update({f"{model} {key}": weight.grad.clone() for key, weight in weights.items()})

        getattr(trainer.optimizers, model).register_step_pre_hook(keep)
    return found


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_gradients_and_their_norms_are_those_of_float32(chains, adapter: str, tmp_path: Path):
    single, half = (trainer_in(dtype, chains(adapter), tmp_path / dtype) for dtype in ("float32", "float16"))
    set_scale(half, policy=SMALL, value=SMALL)
    experience = scored(single)
    gradients, numbers = [], []
    for trainer in (single, half):
        gradients.append(stepped(trainer))
        numbers.append(trainer.train_minibatch(experience, experience.rollout.minibatches[0], first=True))
    assert numbers[1].pop("policy_skipped") == numbers[1].pop("value_skipped") == 0.0
    expected, found = gradients
    for name, gradient in expected.items():
        limit = 1e-6 + 32 * ROUNDING * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=limit, rtol=0, msg=name)
    assert numbers[1] == pytest.approx(numbers[0], rel=16 * ROUNDING, abs=16 * ROUNDING)


def test_an_overflow_skips_the_step_of_that_model_and_halves_its_scale(chains, tmp_path: Path):
    trainer = trainer_in("float16", chains("lora"), tmp_path)
    set_scale(trainer, policy=HUGE, value=SMALL)
    experience = scored(trainer)
    for average in trainer.average.average.values():
        average.zero_()
    policy, value = (
        {name: weight.detach().clone() for name, weight in parameters.items()}
        for parameters in (trainer.models.policy_parameters, trainer.models.value_parameters)
    )
    numbers = trainer.train_minibatch(experience, experience.rollout.minibatches[0], first=True)
    assert (numbers["policy_skipped"], numbers["value_skipped"]) == (1.0, 0.0)
    assert not any(average.any() for average in trainer.average.average.values()), "no step, no update of the average"
    assert all(torch.tensor(number).isfinite() for number in numbers.values())
    assert (scale_of(trainer, "policy"), scale_of(trainer, "value")) == (HUGE / 2, SMALL)
    assert all(torch.equal(weight, policy[name]) for name, weight in trainer.models.policy_parameters.items())
    assert not all(torch.equal(weight, value[name]) for name, weight in trainer.models.value_parameters.items())
    # Without anything left to scale down, the gradient itself is at fault.
    set_scale(trainer, policy=1.0)
    next(iter(trainer.models.policy_parameters.values())).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ValueError, match=r"policy_grad_norm is (nan|inf): lower ppo\.learning_rate"):
        trainer.train_minibatch(experience, experience.rollout.minibatches[0], first=False)


def test_a_run_goes_on_after_overflows_and_resumes_with_its_scale(chains, tmp_path: Path):
    trainer = trainer_in("float16", chains("lora"), tmp_path, total_episodes=8)
    set_scale(trainer, policy=SMALL, value=HUGE)
    trainer.train()
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (row["value_skipped"], row["policy_skipped"]) == (1.0, 0.0)
    assert "value_grad_norm" not in row
    states = json.loads((newest(tmp_path / "checkpoints") / "progress.json").read_text())["states"]
    assert states["value_loss_scale"]["scale"] == HUGE / 4
    resumed = trainer_in("float16", chains("lora"), tmp_path, total_episodes=16)
    assert (scale_of(resumed, "policy"), scale_of(resumed, "value")) == (SMALL, HUGE / 4)
