"""The frozen lower layers, shared by policy, reference, value and reward model.

With LoRA on the top layers only, the input of the lowest adapted layer depends only on the tokens. It is computed once
per batch, and every later pass, updates included, starts from it.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from modeling.architecture import float32_arithmetic

NORMS = ("norm", "final_layernorm", "final_layer_norm")
"""Names of the norm after the last layer."""


class FrozenLayers(nn.Module):
    """A backbone split into two models that share its modules: `lower`, the first `depth` layers, and `upper`."""

    def __init__(self, backbone: Any, depth: int) -> None:
        super().__init__()
        norm = next(name for name in NORMS if hasattr(backbone, name))
        self.lower = shallow_copy(backbone, layers=backbone.layers[:depth], **{norm: nn.Identity()})
        self.upper = shallow_copy(backbone, layers=backbone.layers[depth:])

    @torch.no_grad()
    def hidden(self, inputs: dict[str, Any]) -> Tensor:
        """The hidden states after the lower layers."""
        found: Tensor = self.lower(**inputs, use_cache=False).last_hidden_state
        return found

    def forward(self, hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The backbone's last hidden states, from `hidden`."""
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        found: Tensor = self.upper(inputs_embeds=hidden, **rest, use_cache=False).last_hidden_state
        return found


def shallow_copy(module: nn.Module, **replaced: nn.Module) -> Any:
    """A module with the same submodules and parameters, except for the replaced ones."""
    made = copy.copy(module)
    made._modules = {**module._modules, **replaced}
    return made


@torch.no_grad()
def frozen_layers(backbone: Any, top_layers: int | None) -> FrozenLayers | None:
    """The layers below the `top_layers` adapted ones; None if there are none, or if the two parts compute other hidden
    states than the whole.

    Some architectures scale their embeddings or choose a layer's attention by its index, so this is checked on a few
    tokens.
    """
    settings = backbone.config.get_text_config()
    depth = settings.num_hidden_layers - (top_layers or settings.num_hidden_layers)
    kinds = set(getattr(settings, "layer_types", None) or ())
    known = isinstance(getattr(backbone, "layers", None), nn.ModuleList) and any(hasattr(backbone, n) for n in NORMS)
    if depth == 0 or not known or len(kinds) > 1:
        return None
    parts = FrozenLayers(backbone, depth)
    inputs = {"input_ids": torch.arange(10, device=next(backbone.parameters()).device).reshape(2, 5)}
    with float32_arithmetic(backbone):
        whole = backbone(**inputs, use_cache=False).last_hidden_state
        return parts if torch.equal(whole, parts(parts.hidden(inputs), inputs)) else None
