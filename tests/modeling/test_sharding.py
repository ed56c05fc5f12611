"""The settings of accelerate's FSDP config, and passes of weight zero."""

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from modeling.batch import text_batch
from modeling.models import policy_model
from modeling.sharding import Sharding
from ppo.experience import IDLE, Rollout
from ppo.losses import largest_ratio, policy_loss


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Sharding()),
        ({"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}, Sharding()),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, Sharding(True, layerwise=True)),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"},
            Sharding(True),
        ),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_RESHARD_AFTER_FORWARD": "false",
                "FSDP_OFFLOAD_PARAMS": "true",
            },
            Sharding(True, offload=True),
        ),
    ],
)
def test_the_mode_is_that_of_the_accelerate_config(
    environment: dict[str, str], expected: Sharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_RESHARD_AFTER_FORWARD", "FSDP_OFFLOAD_PARAMS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert Sharding.from_environment() == expected


def test_an_idle_pass_runs_every_layer_in_both_directions_and_adds_nothing() -> None:
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    model = LlamaForCausalLM(settings).eval()
    policy = policy_model(model)
    calls: list[str] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *given: calls.append("forward"))
        layer.mlp.register_full_backward_hook(lambda *given: calls.append("backward"))
    rollout = Rollout([], [], [], torch.device("cpu"))
    for batch in (rollout.batch(IDLE), text_batch([[0]], "cpu")):
        calls.clear()
        logprobs_R, _ = policy(batch)
        old_1R = torch.zeros(1, 0)
        mask_1R = torch.ones(1, 0, dtype=torch.bool)
        assert largest_ratio(logprobs_R[None], old_1R, mask_1R) == 1.0
        loss = policy_loss(logprobs_R[None], old_1R, old_1R, mask_1R, 0.2, normalizer=5.0)
        loss.backward()
        assert float(loss.detach()) == 0
        assert calls == ["forward", "forward", "backward", "backward"]
        assert all(not weight.grad.any() for weight in model.parameters())
