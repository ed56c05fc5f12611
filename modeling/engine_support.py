"""Interim: what modeling/engines needs until modeling/generation.py replaces it."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
"""What some architectures add to attention and ours does not have."""


def refuse_unknown_terms(given: Mapping[str, Any]) -> None:
    """Raises NotImplementedError where a layer asks for one of them."""
    if any(given.get(name) is not None for name in UNKNOWN_TERMS):
        raise NotImplementedError("its attention has terms of its own")


@contextlib.contextmanager
def attending(settings: Any, name: str) -> Iterator[None]:
    """Within, models with this configuration attend through the function that is registered with transformers under
    this name.
    """
    before = [(part, part._attn_implementation) for part in with_parts(settings)]
    settings._attn_implementation = name
    try:
        yield
    finally:
        # The whole before its parts, which it would overwrite.
        for part, own in before:
            part._attn_implementation = own


def with_parts(settings: Any) -> Iterator[Any]:
    """A configuration and all that are nested in it."""
    yield settings
    for name in settings.sub_configs:
        if (part := getattr(settings, name, None)) is not None:
            yield from with_parts(part)


@contextlib.contextmanager
def logits_only_at(model: Any, index_BT: Tensor) -> Iterator[None]:
    """Within, the model's output layer sees only hidden states at these positions, so logits are (B, T, V) instead of
    (B, S, V).

    Whatever the architecture does to logits afterwards (a scale, a soft cap) still happens.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, inputs: (take_positions(inputs[0], index_BT),)
    )
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def head_outside_autocast(model: Any) -> Iterator[None]:
    """Under autocast, the output layer computes in the type of its weights (float32). No change without autocast.

    For calls of the whole model, as in decoding, whose logits would be bfloat16 otherwise.
    """
    head = model.get_output_embeddings()
    if not torch.is_autocast_enabled(head.weight.device.type) or "forward" in vars(head):
        yield
        return
    plain = head.forward

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            logits: Tensor = plain(hidden.to(head.weight.dtype))
        return logits

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def take_positions(hidden_BSH: Tensor, index_BT: Tensor) -> Tensor:
    """hidden_BTH: row b holds hidden_BSH[b, index_BT[b]]."""
    return hidden_BSH.gather(1, index_BT[:, :, None].expand(-1, -1, hidden_BSH.shape[-1]))


def pad_rows(rows, pad_id, device):
    from modeling.shared_prefix import pad_rows as plain

    return plain(rows, device, pad_id)
