"""LoRA adapters through peft: one on a model while a stage trains it, several beside each other on one base in PPO."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from modeling.config import LoraSettings
from modeling.trunk import backbone_of


def lora_config(model: Any, settings: LoraSettings) -> LoraConfig:
    """Adapters on every linear map of the transformer's layers, or of its topmost ones.

    Raises ValueError when `top_layers` is more than the model has.
    """
    layers: int = model.config.get_text_config().num_hidden_layers
    if settings.top_layers is not None and settings.top_layers > layers:
        raise ValueError(f"model.lora.top_layers={settings.top_layers}, but the model has {layers} layers")
    backbone = backbone_of(model)
    maps = (nn.Linear, Conv1D)
    names = {name.rsplit(".", 1)[-1] for name, module in backbone.named_modules() if isinstance(module, maps)}
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=sorted(names),
        exclude_modules=["score", "lm_head", "embed_out"],
        layers_to_transform=None if settings.top_layers is None else list(range(layers - settings.top_layers, layers)),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.modules()),
    )


def add_lora(model: Any, settings: LoraSettings, name: str = "default") -> PeftModel:
    """The model with a fresh adapter, which changes nothing yet; all other weights are frozen."""
    return get_peft_model(model, lora_config(model, settings), adapter_name=name)


def merged(model: Any) -> Any:
    """The adapter folded into the weights, as a model without peft; a model without adapters comes back as it is."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def load_adapter(model: PeftModel, folder: Path, name: str, trainable: bool) -> None:
    """Puts a saved adapter beside those the model has."""
    model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)


def use_adapter(model: PeftModel, name: str | None, trainable: set[str]) -> None:
    """Makes one adapter the active one, or none at all; the `trainable` ones keep their gradients.

    peft freezes every adapter but the active one, which would drop gradients that are still to be stepped.
    """
    if name is None:
        model.base_model.disable_adapter_layers()
    else:
        model.base_model.enable_adapter_layers()
        model.set_adapter(name)
    for parameter_name, parameter in model.named_parameters():
        if ".lora_" in parameter_name:
            parameter.requires_grad_(adapter_of(parameter_name) in trainable)


def adapter_of(parameter_name: str) -> str:
    """The adapter that a parameter belongs to: `....lora_A.<adapter>.weight`."""
    return parameter_name.rsplit(".", 2)[-2]


def adapter_parameters(model: PeftModel, name: str) -> dict[str, nn.Parameter]:
    """One adapter's weights by name."""
    return {key: value for key, value in model.named_parameters() if ".lora_" in key and adapter_of(key) == name}
