"""A whole run with shared frozen lower layers: they run once a micro-batch for all models, with the same numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling.architecture import backbone_of
from modeling.batch import Batch
from modeling.config import LoraSettings
from modeling.load import load_scalar
from modeling.models import reward_model
from tests.ppo.conftest import Chain, build_chain, small


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A chain whose adapters are on the upper one of two layers."""
    return build_chain(tmp_path_factory.mktemp("top"), "lora", LoraSettings(rank=4, alpha=8, top_layers=1))


def test_training_with_shared_frozen_layers_ends_in_the_same_bytes(chain: Chain, tmp_path: Path):
    weights, calls, config = [], [], small(ptx_coef=1.0, total_episodes=8)
    for name in ("shared", "separate"):
        models = chain.models()
        models.rewards.scorers[0].tokens = None  # a response whose text has other tokens would get a pass of its own
        encoders = [
            models.policy.encoder,
            models.reference.encoder,
            models.value.encoder,
            models.rewards.scorers[0].model.encoder,
        ]
        for encoder in encoders:
            assert encoder.frozen is not None
            assert len(encoder.frozen.lower.layers) == 1
            if name == "separate":
                encoder.frozen = None
        lowest, seen = backbone_of(models.policy.encoder.model).layers[0], list[Any]()
        trainer = chain.trainer(tmp_path / name, config, models)
        lowest.register_forward_hook(lambda *given, seen=seen: seen.append(given))
        trainer.train()
        weights.append(models.policy_parameters | models.value_parameters)
        calls.append(len(seen))
    shared, separate = weights
    assert all(torch.equal(shared[name], separate[name]) for name in separate)
    batches = sum(map(len, chain.trainer(tmp_path / "count", config).generate(0).minibatches))
    # Of six passes over a micro-batch (reference, policy, reward and value model, and two updates), five start above.
    assert calls[1] - calls[0] == 5 * batches


def test_a_reward_adapter_on_more_layers_than_the_policys_keeps_its_scores(tmp_path: Path):
    built = build_chain(tmp_path, "lora")
    chain = replace(built, config=replace(built.config, lora=LoraSettings(rank=4, alpha=8, top_layers=1)))
    models, batch = chain.models(), Batch([[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]])
    model = reward_model(load_scalar(chain.reward / "model", chain.config, chain.tokenizer))
    with torch.no_grad():
        expected_B = model(batch)
        models.reference(batch)  # stores the hidden states of the frozen layers, if there are any
        torch.testing.assert_close(models.rewards.scorers[0].model(batch), expected_B, atol=1e-4, rtol=0)
