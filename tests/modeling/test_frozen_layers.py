"""Frozen lower layers: computed once a batch, with the same bits as in a whole pass.

pytest tests/modeling/test_frozen_layers.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.adapters import add_lora
from modeling.architecture import backbone_of
from modeling.batch import Batch
from modeling.config import LoraSettings
from modeling.frozen_layers import frozen_layers
from modeling.load import load_causal
from modeling.models import Encoder
from tests.families import make_family

ALONE = [[3, 40, 50, 60, 70], [3, 41], [3, 42, 52, 62, 72, 82, 92, 102], [7]]
TOGETHER = [[3, 40, 50], [3, 41], [3, 40, 50], [3, 40, 50]]
RESPONSES = [[200, 2], [201, 301, 401, 0, 2], [202, 302, 0], [0]]


def gradients(model: Any, hidden: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (hidden * torch.linspace(-1, 2, hidden.numel()).view_as(hidden)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("prompts", [ALONE, TOGETHER], ids=["alone", "together"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_they_run_once_a_batch_and_change_no_bit_of_states_and_gradients(
    tiny_causal: Callable[[str], Any], architecture: str, prompts: list[list[int]], layout: str
) -> None:
    model = add_lora(tiny_causal(architecture), LoraSettings(rank=4, alpha=8, top_layers=1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    backbone = backbone_of(model)
    if layout == "padded":
        backbone.shared_prefix_reason = "the test says so"
    parts = frozen_layers(backbone, top_layers=1)
    assert parts is not None
    whole, split = Encoder(model, "default"), Encoder(model, "default", parts)
    calls: list[int] = []
    backbone.layers[0].register_forward_hook(lambda *given: calls.append(1))
    batch = Batch(prompts, RESPONSES)
    first, again, last = split(batch, "state"), split(batch, "state"), split(batch, "last")
    assert len(calls) == 1
    assert torch.equal(first, again)
    expected = whole(Batch(prompts, RESPONSES), "state")
    assert torch.equal(first, expected)
    assert torch.equal(last, whole(Batch(prompts, RESPONSES), "last"))
    wanted, found = gradients(model, expected), gradients(model, first)
    assert wanted
    assert found.keys() == wanted.keys()
    assert all(torch.equal(gradient, found[name]) for name, gradient in wanted.items())


@pytest.mark.parametrize(
    ("family", "changes", "splits"),
    [
        ("llama", {}, True),
        ("qwen2", {}, True),
        ("gpt_neox", {}, True),
        ("gemma", {}, True),
        ("gpt2", {}, False),  # its layers are not in `layers`
        ("granite", {"embedding_multiplier": 3.0}, False),  # it scales what enters its first layer
        ("gemma2", {}, False),  # its layers attend in two ways
    ],
)
def test_only_architectures_that_compute_the_same_in_two_parts_are_split(
    family: str, changes: dict[str, Any], splits: bool, tmp_path: Path, tiny_tokenizer: Any, model_config: Any
) -> None:
    model = load_causal(make_family(family, tmp_path, tiny_tokenizer, **changes), model_config, tiny_tokenizer)
    backbone = backbone_of(model)
    assert (frozen_layers(backbone, 1) is not None) == splits
    assert frozen_layers(backbone, None) is None
    assert frozen_layers(backbone, 2) is None
