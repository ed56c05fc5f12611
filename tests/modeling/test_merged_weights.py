"""Merged weights: the adapted model within, the same bits as before after.

pytest tests/modeling/test_merged_weights.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.adapters import adapter_parameters, add_lora, merged_weights, use_adapter
from modeling.architecture import backbone_of
from modeling.config import LoraSettings
from modeling.tiny import ARCHITECTURES

IDS = torch.tensor([[3, 40, 50, 60, 70, 2]])


def adapted(model: Any) -> Any:
    model = add_lora(model, LoraSettings(rank=4, alpha=8), name="policy")
    for number, parameter in enumerate(adapter_parameters(model, "policy").values()):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_within_it_computes_the_same_without_adapters_and_after_it_is_what_it_was(
    tiny_causal: Callable[[str], Any], architecture: str
) -> None:
    model = adapted(tiny_causal(architecture))
    before, outputs = (
        {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()},
        logits(model),
    )
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with merged_weights(model):
        torch.testing.assert_close(logits(model), outputs, atol=1e-4, rtol=0)
        for parameter in adapter_parameters(model, "policy").values():
            kept, parameter.data = parameter.data, torch.full_like(parameter, torch.nan)
            assert logits(model).isfinite().all(), "an adapter was looked at"
            parameter.data = kept
    after = model.state_dict()
    assert all(
        after[name].data_ptr() == place and torch.equal(after[name], value) for name, (place, value) in before.items()
    )
    assert torch.equal(logits(model), outputs)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trainable


def test_an_exception_within_leaves_the_base_as_it_was(tiny_causal: Callable[[str], Any]) -> None:
    model = adapted(tiny_causal("llama"))
    before, outputs = {name: value.clone() for name, value in model.state_dict().items()}, logits(model)
    with pytest.raises(KeyboardInterrupt), merged_weights(model):
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), outputs)


def test_with_no_adapter_on_or_none_there_nothing_happens(tiny_causal: Callable[[str], Any]) -> None:
    plain = tiny_causal("llama")
    outputs = logits(plain)
    with merged_weights(plain):
        assert torch.equal(logits(plain), outputs)
    model = adapted(plain)
    use_adapter(model, None)
    with merged_weights(model):
        assert torch.equal(logits(model), outputs)
    assert torch.equal(logits(model), outputs)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("adapters", [True, False])
def test_under_autocast_weights_are_cast_once_with_bit_identical_results(
    tiny_causal: Callable[[str], Any], architecture: str, adapters: bool
) -> None:
    model = tiny_causal(architecture)
    model = adapted(model) if adapters else model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with merged_weights(model), torch.autocast("cpu", torch.bfloat16):
        expected = logits(model)  # autocast casts the weights
    with torch.autocast("cpu", torch.bfloat16), merged_weights(model):
        inside = {type(module).__name__: weight.dtype for module in backbone_of(model).modules()
                  for weight in module.parameters(recurse=False)}  # fmt: skip
        assert {inside.pop("Linear" if architecture == "llama" else "Conv1D")} == {torch.bfloat16}
        inside.pop("Linear", None)  # adapters
        assert set(inside.values()) == {torch.float32}, "norms and embeddings"
        assert torch.equal(logits(model), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
