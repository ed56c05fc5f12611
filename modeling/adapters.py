"""LoRA adapters through peft: one on a model while a stage trains it, several beside each other on one base in PPO."""

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from modeling.architecture import backbone_of
from modeling.config import LoraSettings
from modeling.finite import require_finite_files
from modeling.gpu import is_quantized

HEAD = "score"
HEAD_WEIGHT = f"base_model.model.{HEAD}.weight"
"""The scalar head's name in a model, and of its weight in a saved adapter."""
MAPS = (nn.Linear, Conv1D)
FUSED_EXPERT_NAMES = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Names of the experts' linear layers in transformers 4; they are fused into 3-D parameters now. In some families peft
replaces targets of these names by those parameters, and linear layers of these names get no adapter at all. Adapters on
fused experts hold a low-rank pair for each expert, and every forward pass materializes an update as large as the
experts: they are left out."""


UNTRAINED = 0.01
"""An EOS row closer to the mean than this share of the median distance counts as untrained."""


def lora_config(model: Any, settings: LoraSettings) -> LoraConfig:
    """Adapters on every linear layer of the transformer, or of its top layers, except for `FUSED_EXPERT_NAMES` and
    those that `is_adaptable` excludes.

    Raises ValueError when `top_layers` is more than the model has.
    """
    layers: int = model.config.get_text_config().num_hidden_layers
    if settings.top_layers is not None and settings.top_layers > layers:
        raise ValueError(f"model.lora.top_layers={settings.top_layers}, but the model has {layers} layers")
    backbone = backbone_of(model)
    maps = [(last(name), module) for name, module in backbone.named_modules() if isinstance(module, MAPS)]
    names = {name for name, _ in maps} - {name for name, module in maps if not is_adaptable(module)}
    if targets_experts(model, names):
        names -= FUSED_EXPERT_NAMES
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=sorted(names),
        exclude_modules=["score", "lm_head", "embed_out"],
        layers_to_transform=None if settings.top_layers is None else list(range(layers - settings.top_layers, layers)),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.modules()),
    )


@torch.no_grad()
def refuse_untrained_end(model: Any, tokenizer: Any, name: str) -> None:
    """Raises ValueError if EOS was added to the base model: its row in the output layer is still the mean of all rows.

    The probability of such a token is at most 1 / (number of tokens) after any text
    (`modeling.embeddings.fill_with_mean`), and LoRA trains no embeddings, so a model could not learn to end its
    answers.
    """
    rows_VD = model.get_output_embeddings().weight
    if not rows_VD.is_floating_point():  # quantized
        return
    distance_V = (rows_VD.float() - rows_VD.float().mean(0)).norm(dim=1)
    if distance_V[tokenizer.eos_token_id] < UNTRAINED * distance_V.median():
        raise ValueError(
            f"{name}: EOS ({tokenizer.eos_token}) has no trained embedding in the base model, and LoRA trains none, so "
            "answers could never end: set model.adapter=none, or use a base model that was trained with this token"
        )


@torch.no_grad()
def is_adaptable(module: nn.Module) -> bool:
    """Whether a linear layer returns one tensor, as peft assumes. Routers of experts may be subclasses that return
    several.
    """
    weight = module.get_parameter("weight")
    if type(module).forward in (nn.Linear.forward, Conv1D.forward) or is_quantized(weight):
        return True
    return isinstance(module(weight.new_zeros(1, weight.shape[1])), torch.Tensor)


def targets_experts(model: Any, names: Collection[str]) -> bool:
    """Whether peft would treat some of these names as fused experts in this model."""
    trial = LoraConfig(target_modules=list(names))
    convert_peft_config_for_transformers(trial, model, None)
    return bool(trial.target_parameters)


def last(name: str) -> str:
    """The last part of a dotted name."""
    return name.rsplit(".", 1)[-1]


def expert_weights(backbone: nn.Module) -> list[str]:
    """Names of the weights of fused experts: 3-D parameters of a module that is called `experts`."""
    return [name for name, weight in backbone.named_parameters() if weight.dim() == 3 and ".experts." in f".{name}"]


def what_lora_adapts(model: PeftModel) -> str:
    """A log message: the names and numbers of linear layers with an adapter, and the kinds of weights without."""
    backbone = backbone_of(model)
    modules = [(last(name), module) for name, module in backbone.named_modules() if ".lora_" not in name]
    adapted = Counter(name for name, module in modules if isinstance(module, LoraLayer))
    counts = ", ".join(f"{count} {name}" for name, count in sorted(adapted.items()))
    left = []
    if experts := expert_weights(backbone):
        left.append(f"the experts ({len(experts)} fused weights called {', '.join(sorted(set(map(last, experts))))})")
    if maps := sorted({name for name, module in modules if isinstance(module, MAPS)} - adapted.keys() - {"base_layer"}):
        left.append(f"linear layers called {', '.join(maps)}")
    without = f"; no adapter on {', nor on '.join(left)}" if left else ""
    return f"LoRA adapts {adapted.total()} linear layers: {counts}{without}"


def add_lora(model: Any, settings: LoraSettings, name: str = "default") -> PeftModel:
    """The model with a fresh adapter, which changes nothing yet; all other weights are frozen."""
    return get_peft_model(model, lora_config(model, settings), adapter_name=name)


def merged(model: Any) -> Any:
    """The adapter folded into the weights, as a model without peft; a model without adapters comes back as it is."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights that training changes, by name: the adapter's with LoRA."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def copy_weights(weights: Mapping[str, torch.Tensor], model: Any, owner: str) -> None:
    """Copies trained weights into a model that was loaded with the same settings.

    Args:
        owner: whose weights these are, for the message of the ValueError that is raised when they do not fit.
    """
    own = trained_weights(model)
    if {name: weight.shape for name, weight in weights.items()} != {name: w.shape for name, w in own.items()}:
        settings = "model.base, model.adapter, model.lora"
        raise ValueError(f"the weights of {owner} do not fit the model with these settings ({settings})")
    for name, weight in own.items():
        weight.copy_(weights[name])


def save_adapter(model: PeftModel, folder: Path, name: str = "default", head: torch.Tensor | None = None) -> None:
    """Saves one adapter in peft's format, with the weight of the scalar head trained with it.

    Equal adapters give equal bytes, although peft keeps module names in sets, whose order differs between processes.
    Raises ValueError when a weight is not finite.
    """
    beside = folder.with_name(f"{folder.name}.saving")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(str(beside), selected_adapters=[name])
    # peft puts an adapter that is not called `default` one folder deeper.
    made = beside if name == "default" else beside / name
    settings = json.loads((made / "adapter_config.json").read_text())
    for key in ("target_modules", "exclude_modules"):
        if isinstance(settings[key], list):
            settings[key] = sorted(settings[key])
    if head is not None:
        settings |= {"task_type": "SEQ_CLS", "modules_to_save": [HEAD]}
        weights = load_file(made / WEIGHTS) | {HEAD_WEIGHT: head.detach().cpu().contiguous()}
        save_file(weights, made / WEIGHTS, metadata={"format": "pt"})
    (made / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True))
    require_finite_files(made)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
    shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def merged_weights(model: Any) -> Iterator[None]:
    """Context manager for passes without gradients: merges the active adapters into their linear layers and, under
    autocast, casts the weights of all linear layers once. Restores the weights exactly on exit.

    Needs memory for a second copy of these weights. Adapters on quantized weights are not merged.
    """
    device = next(model.parameters()).device.type
    # autocast caches only casts of weights that require gradients, and would cast the others again for each token.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    put_back: list[tuple[nn.Parameter, torch.Tensor]] = []
    merged_layers: list[LoraLayer] = []

    def exchange(weight: nn.Parameter, value: torch.Tensor) -> None:
        put_back.append((weight, weight.data))
        weight.data = value.to(dtype) if dtype is not None and value.dtype == torch.float32 else value

    layers = (
        [module for module in model.modules() if isinstance(module, LoraLayer)] if isinstance(model, PeftModel) else []
    )
    try:
        for layer in layers:
            active = [name for name in layer.active_adapters if name in layer.lora_A]
            weight = layer.get_base_layer().weight
            if layer.disable_adapters or layer.merged or not active or is_quantized(weight):
                continue
            with torch.no_grad(), torch.autocast(device, enabled=False):
                summed = weight.data.clone()
                for name in active:
                    summed += layer.get_delta_weight(name).to(summed.dtype)
            exchange(weight, summed)
            layer.merged_adapters.extend(active)
            merged_layers.append(layer)
        if dtype is not None:
            for module in backbone_of(model).modules():
                for weight in module.parameters(recurse=False) if isinstance(module, MAPS) else ():
                    if weight.dtype == torch.float32:
                        exchange(weight, weight.data)
        yield
    finally:
        for weight, original in put_back:
            weight.data = original
        for layer in merged_layers:
            layer.merged_adapters.clear()


def load_adapter(model: PeftModel, folder: Path, name: str, trainable: bool) -> None:
    """Adds a saved adapter to the model, without its scalar head: a language model has no module for it."""
    settings = LoraConfig.from_pretrained(str(folder))
    settings.modules_to_save, settings.task_type, settings.inference_mode = None, None, not trainable
    model.add_adapter(name, settings)
    if trainable:
        model.set_requires_grad(name)
    weights = {key: weight for key, weight in load_file(folder / WEIGHTS).items() if key != HEAD_WEIGHT}
    set_peft_model_state_dict(model, weights, adapter_name=name)
    if not trainable:
        model.eval()


def use_adapter(model: PeftModel, name: str | None) -> None:
    """Makes one adapter the active one, or none, and leaves gradients as they are.

    peft's `set_adapter` freezes all other adapters, which would drop gradients that are still to be stepped.
    """
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    active = [] if layer.disable_adapters else list(layer.active_adapters)
    if active == ([] if name is None else [name]):
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name is None:
        model.base_model.disable_adapter_layers()
    else:
        model.base_model.enable_adapter_layers()
        model.set_adapter(name, inference_mode=True)
    for parameter in trained:
        parameter.requires_grad_(True)


def lora_weights(model: Any) -> list[nn.Parameter]:
    """The weights of all adapters."""
    return [weight for name, weight in model.named_parameters() if ".lora_" in name]


def adapter_of(parameter_name: str) -> str:
    """The adapter that a parameter belongs to: `....lora_A.<adapter>.weight`."""
    return parameter_name.rsplit(".", 2)[-2]


def adapter_parameters(model: PeftModel, name: str) -> dict[str, nn.Parameter]:
    """One adapter's weights by name."""
    return {key: value for key, value in model.named_parameters() if ".lora_" in key and adapter_of(key) == name}
