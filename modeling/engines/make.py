"""Engines by name, as `ppo.engine` gives it."""

from modeling.engines.hf import TransformersEngine
from modeling.engines.native import NativeEngine
from modeling.engines.types import Engine
from modeling.engines.vllm import VLLMEngine


def make_engine(name: str, merge_adapters: bool = True) -> Engine:
    """`native`, `transformers` or `vllm`. `merge_adapters`: see `modeling.engines.native.generate`; the others always merge.

    Raises ValueError on another name, and where the engine's library is missing.
    """
    if name == "native":
        return NativeEngine(merge_adapters)
    if name == "transformers":
        return TransformersEngine()
    if name == "vllm":
        return VLLMEngine()
    raise ValueError(f"engine={name!r} is not one of native, transformers, vllm")
