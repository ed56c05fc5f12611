"""The frozen layers below the lowest adapter are one function for policy, reference, value and reward: run once, go on
from there.

With LoRA on the top layers alone, the hidden states that enter the lowest adapted layer depend on the tokens only. The
first pass over some sequences records them; every later pass, updates included, starts from them. Shapes: B rows, S
tokens a row, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def backbone_of(model: Any) -> Any:
    """The transformer inside a model with a head, wrapped by peft or not."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(inner, inner.base_model_prefix)


@dataclass(frozen=True)
class Trunk:
    """The lowest `depth` layers of a backbone."""

    backbone: Any
    depth: int

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Within, each full forward pass appends the hidden_BSH that leaves the trunk."""
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            found.append((inputs[0] if inputs else named["hidden_states"]).detach())

        handle = self.backbone.layers[self.depth].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield found
        finally:
            handle.remove()

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Within, the backbone is its upper layers alone and takes hidden states as `inputs_embeds`."""
        layers = self.backbone.layers
        self.backbone.layers = layers[self.depth :]
        try:
            yield
        finally:
            self.backbone.layers = layers


@contextmanager
def recorded(trunk: Trunk | None) -> Iterator[list[Tensor]]:
    """`trunk.recorded()`, or a list that stays empty where there is no trunk."""
    if trunk is None:
        yield []
    else:
        with trunk.recorded() as found:
            yield found


def shared_trunk(model: Any, top_layers: int | None) -> Trunk | None:
    """The trunk below the adapted layers, or None where there is none or where the architecture does not run exactly
    the same from its middle.

    Some architectures scale what comes in as embeddings, or choose each layer's attention by its number: those are
    found by trying.
    """
    backbone = backbone_of(model)
    depth = model.config.num_hidden_layers - (top_layers or model.config.num_hidden_layers)
    kinds = set(getattr(model.config, "layer_types", None) or [])
    if depth == 0 or not isinstance(getattr(backbone, "layers", None), nn.ModuleList) or len(kinds) > 1:
        return None
    trunk = Trunk(backbone, depth)
    ids_BS = torch.arange(10, device=next(backbone.parameters()).device).reshape(2, 5)
    with torch.no_grad():
        with trunk.recorded() as found:
            whole = backbone(input_ids=ids_BS, use_cache=False).last_hidden_state
        with trunk.skipped():
            resumed = backbone(inputs_embeds=found[0], use_cache=False).last_hidden_state
    return trunk if torch.equal(whole, resumed) else None
