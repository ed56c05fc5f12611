"""A whole PPO run with activation checkpointing: the same bytes from more passes of each layer."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling.architecture import layers_of
from modeling.config import LoraSettings
from tests.ppo.conftest import build_chain, small


def count(seen: dict[str, int], name: str, *given: Any) -> None:
    seen[name] += 1


@pytest.mark.parametrize(("adapter", "top_layers"), [("none", None), ("lora", None), ("lora", 1)])
def test_activation_checkpointing_changes_no_byte_of_a_run(
    tmp_path: Path, adapter: str, top_layers: int | None
) -> None:
    chain = build_chain(tmp_path, adapter, LoraSettings(rank=4, alpha=8, top_layers=top_layers))
    weights, files, calls = [], [], []
    for checkpointing in (False, True):
        models, seen = chain.models(), {"lowest": 0, "top": 0}
        for name, layer in zip(seen, layers_of(models.policy.encoder.model), strict=True):
            layer.self_attn.register_forward_hook(partial(count, seen, name))
        out = tmp_path / str(checkpointing)
        config = small(ptx_coef=1.0, inner_epochs=2, activation_checkpointing=checkpointing, checkpoint_every=2)
        chain.trainer(out, config, models).train()
        weights.append(models.policy_parameters | models.value_parameters)
        files.append([(out / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")])
        calls.append(seen)
        assert not any(layer.training for layer in layers_of(models.policy.encoder.model))
    assert files[0] == files[1]
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())
    assert calls[1]["top"] > calls[0]["top"]
    if adapter == "lora" and top_layers == 1:
        assert calls[1]["lowest"] == calls[0]["lowest"], "a layer without a backward pass was computed again"
