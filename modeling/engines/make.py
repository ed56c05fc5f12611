"""Engines by name, and the choice of one that can decode a model, for every stage that samples."""

import logging
from typing import Any

import torch

from modeling.architecture import NEEDED
from modeling.engines.hf import TransformersEngine
from modeling.engines.native import NativeEngine, why_not_native
from modeling.engines.types import Engine, Sampling
from modeling.engines.vllm import VLLMEngine

log = logging.getLogger(__name__)
_told: set[str] = set()
"""Reasons that have been logged."""


def make_engine(name: str, merge_adapters: bool = True) -> Engine:
    """`native`, `transformers` or `vllm`. `merge_adapters`: see `modeling.engines.native.generate`; the others always
    merge.

    Raises ValueError on another name, and where the engine's library is missing.
    """
    if name == "native":
        return NativeEngine(merge_adapters)
    if name == "transformers":
        return TransformersEngine()
    if name == "vllm":
        return VLLMEngine()
    raise ValueError(f"engine={name!r} is not one of native, transformers, vllm")


def engine_for(model: Any, name: str = "native") -> Engine:
    """The engine of that name, or transformers' `generate` if the native one cannot decode this model.

    The reason is logged once.

    Raises ValueError if `generate` gives different tokens from the model's own logits.
    """
    if name != "native" or (reason := why_not_native(model)) is None:
        return make_engine(name)
    engine = TransformersEngine()
    refuse_wrong_decoding(engine, model)
    if reason not in _told:
        _told.add(reason)
        log.warning("%s: using transformers' generate instead, whose texts depend on the batch size", reason)
    return engine


@torch.no_grad()
def refuse_wrong_decoding(engine: Engine, model: Any) -> None:
    """Raises ValueError unless greedy decoding of prompts of different lengths gives the argmax tokens of plain
    passes."""
    embeddings = model.get_input_embeddings()
    words, device = embeddings.num_embeddings, embeddings.weight.device
    prompts = [[token % words for token in prompt] for prompt in ((1, 2, 3, 4, 5), (6, 7))]
    with torch.autocast(device.type, enabled=False):
        made = engine.generate(model, prompts, [0, 1], Sampling(3, temperature=0), stop_ids=(), pad_id=0)
        for prompt, found in zip(prompts, made, strict=True):
            ids_1S = torch.tensor([[*prompt, *found.ids]], device=device)
            logits_TV = model(input_ids=ids_1S, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            short_T = logits_TV.amax(-1) - logits_TV.gather(1, torch.tensor(found.ids, device=device)[:, None])[:, 0]
            if float(short_T.max()) > 1e-3 * float(logits_TV.amax() - logits_TV.amin()):
                kind = type(model).__name__
                raise ValueError(f"{kind} cannot be decoded: generate gives different tokens in batches; {NEEDED}")
