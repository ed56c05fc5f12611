"""How the reward and the value model are put together: as adapters on the policy's base, or as models of their own.

| model.adapter | reward model | value model, ppo.value_init=reward | ppo.value_init=sft |
|---|---|---|---|
| lora | trained from the SFT model | a second copy of its adapter on the policy's base | a fresh adapter on the
policy's base |
| lora | a model of its own | a fresh adapter on the reward model | a fresh adapter on the policy's base |
| none | any | a second copy of all of it | a copy of the SFT model |

A copied head starts as the reward model's, a head on the SFT model as zeros.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from torch import nn

from modeling.adapters import adapter_parameters, add_lora, load_adapter
from modeling.config import LoraSettings, ModelConfig
from modeling.load import freeze, load_scalar, read_settings
from modeling.scalar import ScalarModel, scalar_model
from modeling.seeds import derive_seed
from modeling.trunk import backbone_of


@dataclass
class Role:
    """What plays one of the four parts: a model, the adapter that is on while it does, and for scalar parts their
    head.
    """

    model: Any
    adapter: str | None = None
    scalar: ScalarModel | None = None


Trained = tuple[Role, dict[str, nn.Parameter]]
"""A value model and what is trained of it."""


def reward_on_policy_base(shared: PeftModel, reward: Path, config: ModelConfig, device: torch.device) -> Role:
    """The reward model as a frozen adapter on the policy's base, with its head."""
    load_adapter(shared, reward / "adapter", "reward", trainable=False)
    weight, bias = saved_head(reward / "model", config)
    head = linear_head(weight.to(device))
    freeze(head)
    return Role(shared, "reward", ScalarModel(backbone_of(shared), head, bias))


def own_reward(reward: Path, config: ModelConfig, tokenizer: Any, device: torch.device) -> Role:
    """The reward model as a model of its own, frozen."""
    model = load_scalar(reward / "model", config, tokenizer).to(device)
    freeze(model)
    return Role(model, scalar=scalar_model(model))


def value_beside_reward(shared: PeftModel, reward: Path, scorer: Role) -> Trained:
    """The adapter of the reward model once more on the policy's base, to train."""
    load_adapter(shared, reward / "adapter", "value", trainable=True)
    return _adapted(shared, scorer.scalar)


def value_on_reward(scorer: Role, settings: LoraSettings, top_layers: int | None, seed: int) -> Trained:
    """A fresh adapter on a reward model of its own, one model in memory for both: the reward model with the adapter
    off, the value model with it on.

    `scorer` becomes that of the adapted model.
    """
    torch.manual_seed(derive_seed(seed, "value adapter"))
    scorer.model = add_lora(scorer.model, replace(settings, top_layers=top_layers), name="value")
    return _adapted(scorer.model, scorer.scalar)


def value_on_sft(shared: PeftModel, settings: LoraConfig, device: torch.device, seed: int) -> Trained:
    """A fresh adapter on the policy's base, and a head of zeros."""
    torch.manual_seed(derive_seed(seed, "value adapter"))
    shared.add_adapter("value", settings)
    return _adapted(shared, ScalarModel(backbone_of(shared), zero_head(shared.config.hidden_size, device)))


def whole_value(place: Path, config: ModelConfig, tokenizer: Any, device: torch.device, zero: bool) -> Trained:
    """A model all of whose weights are trained: a second copy of the reward model, or the SFT model with a head of
    zeros.
    """
    model = load_scalar(place, config, tokenizer).to(device)
    scalar = scalar_model(model)
    if zero:
        scalar.head = model.score = zero_head(scalar.head.get_parameter("weight").shape[1], device)
    return Role(model, scalar=scalar), dict(model.named_parameters())


def _adapted(model: PeftModel, start: ScalarModel | None) -> Trained:
    """The model with its adapter `value` on, and a copy of a head."""
    assert start is not None
    head = copy.deepcopy(start.head).requires_grad_(True)
    role = Role(model, "value", ScalarModel(start.backbone, head, start.bias))
    return role, adapter_parameters(model, "value") | dict(head.named_parameters(prefix="score"))


def saved_head(folder: Path, config: ModelConfig) -> tuple[torch.Tensor, float]:
    """(weight (1, H), bias) of a saved reward model, without loading the rest. Raises ValueError where there is
    none.
    """
    settings = read_settings(folder, config)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if "score.weight" in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                return weights.get_tensor("score.weight").float(), float(getattr(settings, "score_bias", 0.0))
    raise ValueError(f"{folder} holds no scalar head `score.weight`: it is not a reward model")


def linear_head(weight: torch.Tensor) -> nn.Linear:
    """A head of one's own with these weights."""
    head = nn.Linear(weight.shape[1], 1, bias=False, device=weight.device)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def zero_head(hidden_size: int, device: torch.device) -> nn.Linear:
    """A head of zeros, so that every value is 0, the mean score of demonstrations by the reward model's bias (3.5).

    A random head would give values far from the scores, and this noise would dominate the advantages until it is
    unlearnt.
    """
    return linear_head(torch.zeros(1, hidden_size, device=device))
