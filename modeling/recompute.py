"""Activation checkpointing: each layer keeps only its input, and computes the rest again when the backward pass comes
(Chen et al. 2016).

transformers' own switch works in train mode alone, where dropout is on; a reward model is trained with dropout off, so
layers are wrapped here.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

Context = contextlib.AbstractContextManager[Any]


@contextlib.contextmanager
def recomputed(backbone: Any, around: Callable[[], Context] = contextlib.nullcontext) -> Iterator[None]:
    """Within, forward passes keep no activations inside layers. `around` is the context that the forward pass runs in
    and the second one needs too.

    Raises ValueError for an architecture whose layers are not made for it.
    """
    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"{type(backbone).__name__} has no layers that can be computed again: set activation_checkpointing to false"
        )

    def contexts() -> tuple[Context, Context]:
        return contextlib.nullcontext(), around()

    for layer in layers:
        layer.forward = functools.partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
