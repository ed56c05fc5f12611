"""Attention functions of our own in the place of a model's, for a while."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

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
