"""PPO's exports are verified, and a run with NaN or infinite numbers stops before it saves or exports anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from modeling.architecture import backbone_of
from ppo.ema import MovingAverage
from ppo.export import PolicyExport
from tests.ppo.conftest import ALONE, Chain, small

BOTH = pytest.mark.parametrize("adapter", ["lora", "none"])


@BOTH
def test_both_models_have_the_configuration_of_the_sft_model(
    chains: Callable[[str], Chain], adapter: str, tmp_path: Path
):
    chain = chains(adapter)
    models = chain.models()
    models.policy.causal.config.use_cache = False
    average = MovingAverage(models.policy_parameters, 0.5)
    PolicyExport(chain.sft / "model", chain.config, chain.tokenizer, tmp_path).write(models, average, ALONE)
    for name in ("model", "model_ema"):
        for file in ("config.json", "generation_config.json"):
            expected = json.loads((chain.sft / "model" / file).read_text())
            assert json.loads((tmp_path / name / file).read_text()) == expected
        AutoModelForCausalLM.from_pretrained(tmp_path / name)


@BOTH
def test_an_average_that_is_not_finite_is_not_exported(chains: Callable[[str], Chain], adapter: str, tmp_path: Path):
    chain = chains(adapter)
    models = chain.models()
    average = MovingAverage(models.policy_parameters, 0.5)
    next(iter(average.average.values()))[0, 0] = float("nan")
    with pytest.raises(ValueError, match="has NaN or infinite values"):
        PolicyExport(chain.sft / "model", chain.config, chain.tokenizer, tmp_path).write(models, average, ALONE)
    assert not (tmp_path / "model_ema").exists()
    assert not (tmp_path / "adapter_ema").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 1e30}, "policy_grad_norm is (nan|inf)"),
        ({"value_learning_rate": 1e30}, "value_grad_norm is (nan|inf)"),
        ({"learning_rate": 1e39, "minibatch_size": 8}, r"the weight .*lora_.* has NaN or infinite values"),
        ({"value_learning_rate": 1e39, "minibatch_size": 8}, r"the weight .* has NaN or infinite values"),
    ],
)
def test_training_stops_at_the_first_number_or_weight_that_is_not_finite(
    chains: Callable[[str], Chain], tmp_path: Path, changes: dict[str, Any], said: str
):
    trainer = chains("lora").trainer(tmp_path, small(total_episodes=8, **changes))
    advice = (
        r"lower ppo\.learning_rate or ppo\.value_learning_rate, or with float16 try another model\.precision; the last"
    )
    with pytest.raises(ValueError, match=rf"^ppo, iteration 1: {said}: {advice}"):
        trainer.train()
    assert not list((tmp_path / "checkpoints").glob("checkpoint-*"))


@pytest.mark.parametrize("decoded_before", [False, True])
def test_decoding_stops_where_logits_are_not_finite(
    chains: Callable[[str], Chain], decoded_before: bool, tmp_path: Path
):
    trainer = chains("lora").trainer(tmp_path, small())
    if decoded_before:  # what decoding keeps of a model must not hide that its weights have changed
        trainer.generate(0)
    with torch.no_grad():
        backbone_of(trainer.models.policy.causal).norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="decoding: a logit is nan: weights or activations"):
        trainer.generate(0)
