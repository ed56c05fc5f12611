"""Linear maps from weights that oneDNN has laid out for its own kernels, for as long as nobody changes them.

In float32 on a processor PyTorch multiplies by MKL, which lays the weights out again in every product: a fifth of the
work where few tokens are decoded at a time. The operators are those that torch.compile emits; where a torch has none of
them, or they fail, nothing is packed.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 64
"""That the layout is made for. The same for every batch, so that what a pass over one row gives does not hang on how
many stand beside it.
"""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Within, the model's plain linear maps compute from packed copies of their weights, without gradients. Takes
    memory for these copies.
    """
    maps = [module for module in model.modules() if type(module) is nn.Linear and packable(module)]
    forwards: list[Callable[[Tensor], Tensor]] = []
    try:
        forwards = [packed(module) for module in maps]
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        log.warning("weights are not packed for decoding (%s: %s)", type(error).__name__, str(error).splitlines()[0])
    for module, forward in zip(maps, forwards, strict=False):
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, _ in zip(maps, forwards, strict=False):
            del vars(module)["forward"]


def packable(module: nn.Linear) -> bool:
    """Whether oneDNN can take its place: float32 on a processor, and nobody else has put a forward of his own there."""
    weight = module.weight
    computes = weight.device.type == "cpu" and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return computes and "forward" not in vars(module) and torch.backends.mkldnn.is_available()


def packed(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The map from a packed copy of its weight."""
    operators: Any = torch.ops.mkldnn
    weight, bias = operators._reorder_linear_weight(module.weight.detach(), TOKENS), module.bias

    def forward(x: Tensor) -> Tensor:
        found: Tensor = operators._linear_pointwise(x, weight, bias, "none", [], "")
        return found

    return forward
