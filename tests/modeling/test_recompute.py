"""Activation checkpointing: the same gradients, dropout left as it is, and less kept for the backward pass.

pytest tests/modeling/test_recompute.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from modeling.recompute import recomputed
from modeling.scalar import scalar_model
from modeling.shared_prefix import REASONS
from modeling.tiny import ARCHITECTURES
from reward.scoring import answer_scores
from tests.reward.test_scoring import some_elements

CPU = torch.device("cpu")


def gradients_and_kept(model: Any, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """(gradients of a sum over scores, bytes that the graph holds when the backward pass begins)."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    scalar = scalar_model(model)
    assert scalar.plain_because is None
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores_A = answer_scores(scalar, some_elements(1), 0, CPU, recompute)
    (scores_A * torch.linspace(-1, 2, len(scores_A))).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found, sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_the_same_and_activations_are_not_kept(
    tiny_scalar: Callable[[str], Any], architecture: str
) -> None:
    model = tiny_scalar(architecture)
    expected, whole = gradients_and_kept(model, recompute=False)
    found, part = gradients_and_kept(model, recompute=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    assert part < 0.5 * whole


def test_without_sharing_too(tiny_scalar: Callable[[str], Any]) -> None:
    model = tiny_scalar("llama")
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        scalar = scalar_model(model)
        REASONS[scalar.backbone] = "told so by the test"
        answer_scores(scalar, some_elements(1), 0, CPU, recompute).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_layers_are_as_they_were_afterwards_even_after_an_error(tiny_scalar: Callable[[str], Any]) -> None:
    model = tiny_scalar("gpt2")
    layer = model.transformer.h[0]
    with recomputed(model.transformer):
        assert "forward" in vars(layer)
    with pytest.raises(IndexError), recomputed(model.transformer):
        model(torch.tensor([[10**6]]))
    assert "forward" not in vars(layer)
    assert not model.training


def test_an_architecture_without_such_layers_is_refused() -> None:
    with (
        pytest.raises(
            ValueError, match="Linear has no layers that can be computed again: set activation_checkpointing to false"
        ),
        recomputed(nn.Linear(2, 2)),
    ):
        pass
