"""Layers that all roles share are run once: fewer forward passes through them, and the same numbers to the bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from modeling.trunk import backbone_of, shared_trunk
from ppo.models import load_models
from ppo.train import train

from modeling.batch import micro_batches
from modeling.config import LoraSettings, ModelConfig
from modeling.load import load_causal, load_tokenizer
from tests.ppo.conftest import CHUNKS, PROMPTS, TEAM, Chain, build_chain, small


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A chain whose adapters are on the upper one of two layers."""
    return build_chain(tmp_path_factory.mktemp("top"), "lora", LoraSettings(rank=4, alpha=8, top_layers=1))


def test_training_from_the_trunk_ends_in_the_same_bytes(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights, counts = [], []

    def counted(*arguments: Any) -> list[list[int]]:
        groups = micro_batches(*arguments)
        counts.append(len(groups))
        return groups

    monkeypatch.setattr("ppo.train.micro_batches", counted)
    for name in ("shared", "plain"):
        models = load_models(chain.sft, chain.reward, chain.config, chain.tokenizer, TEAM.device, seed=0)
        # Responses are scored as they are: those whose text has other tokens get a pass of their own.
        models.reading = None
        assert models.trunk is not None
        assert models.trunk.depth == 1
        calls = []
        backbone_of(models.policy.model).layers[0].register_forward_hook(lambda *given, calls=calls: calls.append(1))
        if name == "plain":
            models = replace(models, trunk=None)
        train(small(ptx_coef=1.0), chain.config, models, chain.tokenizer, PROMPTS, CHUNKS, 0, TEAM, tmp_path / name)
        weights.append(({**models.policy_parameters, **models.value_parameters}, len(calls)))
    (shared, shared_calls), (plain, plain_calls) = weights
    assert all(torch.equal(shared[name], plain[name]) for name in plain)
    # Old log-probabilities, values, scores and both updates skip the trunk. The first minibatch's values are not
    # computed again anyway.
    first, second = sum(counts[0::2]), sum(counts[1::2])
    assert plain_calls - shared_calls == (4 * first + 5 * second) / 2


@pytest.mark.parametrize(("architecture", "shares"), [("llama", True), ("qwen2", True), ("gpt2", False)])
def test_only_architectures_that_run_the_same_from_their_middle_share(
    tiny: Callable[[str], Path], architecture: str, shares: bool, model_config: ModelConfig
):
    place = tiny(architecture)
    model = load_causal(place, model_config, load_tokenizer(place, model_config))
    assert (shared_trunk(model, 1) is not None) == shares
    assert shared_trunk(model, None) is None
    assert shared_trunk(model, 2) is None
