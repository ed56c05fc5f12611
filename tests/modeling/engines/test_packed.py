"""Packed weights: the same map, and the model is left as it was.

pytest tests/modeling/engines/test_packed.py
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from modeling.engines import packed
from modeling.engines.packed import packed_weights
from modeling.tiny import ARCHITECTURES

IDS = torch.tensor([[3, 40, 50, 60], [7, 41, 2, 90]])


def forwards(model: nn.Module) -> int:
    """How many modules have a forward of their own."""
    return sum("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_weights_give_the_same_logits(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    linear = sum(type(module) is nn.Linear for module in model.modules())
    assert linear > 0
    with torch.no_grad():
        expected_BSV = model(input_ids=IDS).logits
        with packed_weights(model):
            assert forwards(model) == linear
            found_BSV = model(input_ids=IDS).logits
        assert forwards(model) == 0
        for parameter in model.parameters():
            parameter.mul_(1.5)
        changed_BSV = model(input_ids=IDS).logits
        with packed_weights(model):
            repacked_BSV = model(input_ids=IDS).logits
    spread = float(expected_BSV.max() - expected_BSV.min())
    torch.testing.assert_close(found_BSV, expected_BSV, atol=3e-6 * spread, rtol=0)
    assert (changed_BSV - expected_BSV).abs().max() > 0.01 * spread
    torch.testing.assert_close(
        repacked_BSV, changed_BSV, atol=3e-6 * float(changed_BSV.max() - changed_BSV.min()), rtol=0
    )


def test_a_map_with_a_bias_and_any_number_of_tokens() -> None:
    linear = nn.Linear(37, 53)
    with torch.no_grad():
        for shape in ((1, 37), (5, 3, 37), (200, 37)):
            x = torch.randn(shape)
            expected = linear(x)
            with packed_weights(linear):
                torch.testing.assert_close(linear(x), expected, atol=2e-6, rtol=1e-5)


def test_only_plain_maps_in_float32_are_packed() -> None:
    class Other(nn.Linear):
        """A map with more to it."""

    taken = nn.Linear(4, 4)
    taken.forward = lambda x: x  # type: ignore[method-assign]
    for model in (nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4).double(), Other(4, 4), taken):
        before = forwards(model)
        with packed_weights(model):
            assert forwards(model) == before
        assert forwards(model) == before
    plain = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16), packed_weights(plain):
        assert forwards(plain) == 0


def test_a_torch_without_the_operators_decodes_from_the_weights_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(module: nn.Linear) -> Any:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(packed, "packed", missing)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with caplog.at_level(logging.WARNING), packed_weights(model):
        assert forwards(model) == 0
    assert (
        "weights are not packed for decoding (AttributeError: '_OpNamespace' 'mkldnn' object has no attribute"
        in caplog.text
    )


def test_an_error_within_leaves_the_model_as_it_was() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="interrupted"), packed_weights(model):
        raise RuntimeError("interrupted")
    assert forwards(model) == 0
