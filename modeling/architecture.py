"""Which architectures are supported: causal decoders that attend to past tokens and can have a scalar head.

Every stage assumes that the output at a position depends only on the tokens up to it. Properties that the
configuration does not give are determined by running the model on a few tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer

from modeling.loading import loading

ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention"}
"""Values of `layer_types` for layers whose only state is keys and values."""
NEEDED = "choose a causal decoder whose layers attend to past tokens, such as Llama, Qwen, Mistral or GPT-2"


def backbone_of(model: Any) -> Any:
    """The transformer inside a model with a head, wrapped by peft or not.

    Raises ValueError for a class whose `base_model_prefix` is not the name of its transformer.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = getattr(inner, inner.base_model_prefix, None)
    if found is None:
        raise ValueError(f"{type(inner).__name__} has no transformer called {inner.base_model_prefix!r}: {NEEDED}")
    return found


def layers_of(backbone: nn.Module) -> list[nn.Module]:
    """The transformer's layers; [] for an architecture without modules of transformers' layer class."""
    return [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def float32_arithmetic(backbone: Any) -> Iterator[None]:
    """For checks with small tolerances: autocast is off, and sdpa replaces flash attention, which has no float32."""
    before = backbone.config._attn_implementation
    flash = str(before).startswith("flash")
    if flash:
        backbone.set_attn_implementation("sdpa")
    try:
        with torch.autocast(next(backbone.parameters()).device.type, enabled=False):
            yield
    finally:
        if flash:
            backbone.set_attn_implementation(before)


def causal_class(settings: Any) -> type[PreTrainedModel] | None:
    """transformers' causal model class of this configuration; None if there is none or the model has its own code."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(settings), None)
    return found[0] if isinstance(found, tuple) else found


def refuse_by_config(settings: Any, name: str) -> None:
    """Raises ValueError for encoder-decoders, encoders without a language-model head and models with a recurrent state.

    `name` is the setting that names the model. Reads the configuration only.
    """
    kind = settings.model_type or type(settings).__name__
    if settings.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder ({kind}), which is not supported: {NEEDED}")
    if any(getattr(settings, part, None) is not None for part in ("vision_config", "audio_config")):
        raise ValueError(f"{name} also takes images or sound ({kind}), and only text models are supported: {NEEDED}")
    found = causal_class(settings)
    if found is None and "AutoModelForCausalLM" not in (getattr(settings, "auto_map", None) or {}):
        raise ValueError(f"{name} has no causal language model in transformers ({kind}): {NEEDED}")
    layers = set(getattr(settings, "layer_types", None) or ())
    only_attends = bool(layers) and layers <= ATTENTION_LAYERS
    # Granite 4.0's dense models use the class of its hybrids, which sets `_is_stateful`.
    if getattr(found, "_is_stateful", False) and not only_attends:
        model = f"{kind}: a state-space or linear-attention model"
        raise ValueError(f"{name} has a recurrent state ({model}), which is not supported: {NEEDED}")


@torch.no_grad()
def refuse_lookahead(model: Any, name: str) -> None:
    """Raises ValueError for a model in which later tokens change earlier positions, such as BERT; runs a few tokens."""
    backbone = backbone_of(model)
    embeddings = model.get_input_embeddings()
    ids_BS = torch.arange(4, 4 + 12, device=embeddings.weight.device).reshape(2, 6) % embeddings.num_embeddings
    ids_BS[1, :4] = ids_BS[0, :4]
    with float32_arithmetic(backbone):
        hidden_BSH = backbone(input_ids=ids_BS, use_cache=False).last_hidden_state[:, :4].float()
    difference, scale = float((hidden_BSH[0] - hidden_BSH[1]).abs().max()), float(hidden_BSH.abs().max())
    if difference > 1e-3 * scale:
        kind = type(model).__name__
        raise ValueError(f"{name} is not a causal decoder ({kind}): later tokens change earlier positions; {NEEDED}")


def is_classifier(settings: Any) -> bool:
    """Whether a saved model of this configuration has a head that was trained, rather than a language model's."""
    return any("SequenceClassification" in name for name in settings.architectures or [])


def scalar_class(settings: Any) -> type[PreTrainedModel] | None:
    """The reward model class of this configuration: transformers' sequence classifier, or one that is created here.

    The latter is transformers' generic classifier on the family's `PreTrainedModel`: the backbone under its usual name
    and a linear head `score`. It is registered, so `AutoModelForSequenceClassification` loads language models and saved
    reward models. docs/reward.md shows how to load one without this project. None for models with their own code, which
    must include the class.
    """
    known, causal = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(settings), None), causal_class(settings)
    if known is not None or causal is None:
        return known
    family = next(parent for parent in causal.__mro__ if parent.__name__.endswith("PreTrainedModel"))
    name = causal.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "ForSequenceClassification"
    attributes = {"base_model_prefix": causal.base_model_prefix, "config_class": type(settings), "__module__": __name__}
    made: type[PreTrainedModel] = type(name, (GenericForSequenceClassification, family), attributes)
    # Without exist_ok transformers ignores classes that are registered for its own configurations.
    AutoModelForSequenceClassification.register(type(settings), made, exist_ok=True)
    return made


def has_classifier(settings: Any) -> bool:
    """Whether transformers, or code that comes with the model, has a sequence classifier of this configuration."""
    found = scalar_class(settings)
    return found is None or found.__module__ != __name__


def refuse_headless(settings: Any, name: str, trusted: bool = False) -> None:
    """Raises ValueError if an architecture's sequence classifier has no head `score`, or another backbone than its
    language model, as where the model's own code has the language model only. Allocates no weights.

    `trusted` is the setting trust_remote_code.
    """
    found = scalar_class(settings)
    if found is None and "AutoModelForSequenceClassification" not in (getattr(settings, "auto_map", None) or {}):
        raise ValueError(f"{name} cannot become a reward model: its own code has no sequence classifier; {NEEDED}")
    wanted = [AutoModelForSequenceClassification, *([] if is_classifier(settings) else [AutoModelForCausalLM])]
    with torch.device("meta"), loading(name, "model"):
        models = [kind.from_config(settings, trust_remote_code=trusted) for kind in wanted]
    if not hasattr(models[0], "score"):
        kind = type(models[0]).__name__
        raise ValueError(f"{name} cannot become a reward model: {kind} has no head `score`; {NEEDED}")
    kinds = [type(model.base_model) for model in models]
    if kinds[0] is not kinds[-1]:
        backbones = " and ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
        raise ValueError(
            f"{name} cannot become a reward model: its sequence classifier and its language model have different "
            f"backbones ({backbones}): add a classifier to its own code and auto_map, or choose another model"
        )
