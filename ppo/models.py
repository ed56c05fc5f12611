"""The four models of PPO: policy, reference, value and reward. With LoRA one base serves all four, each with an adapter of its own.

Reference is the SFT model: with LoRA, the base with no adapter on. The value model starts from the reward model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig

from modeling.adapters import adapter_parameters, add_lora, load_adapter, use_adapter
from modeling.config import ModelConfig
from modeling.load import freeze, load_causal, load_scalar, load_tokenizer
from modeling.scalar import ScalarModel, scalar_model
from modeling.trunk import Trunk, backbone_of, shared_trunk


@dataclass
class Role:
    """What plays one of the four parts: a model, the adapter that is on while it does, and for scalar parts their head."""

    model: Any
    adapter: str | None = None
    scalar: ScalarModel | None = None


@dataclass
class PPOModels:
    """The four, and who of them is trained."""

    policy: Role
    reference: Role
    value: Role
    reward: Role
    policy_parameters: dict[str, nn.Parameter]
    value_parameters: dict[str, nn.Parameter]
    trunk: Trunk | None = None
    """The layers that all roles on the shared base have in common, if any."""

    @contextmanager
    def as_policy(self) -> Iterator[Any]:
        """The causal model with its trained weights on."""
        yield self._causal(self.policy)

    @contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The SFT model, without gradients."""
        with torch.no_grad():
            yield self._causal(self.reference)

    @contextmanager
    def as_value(self) -> Iterator[ScalarModel]:
        """The value model."""
        yield self._scalar(self.value)

    @contextmanager
    def as_reward(self) -> Iterator[ScalarModel]:
        """The reward model, without gradients."""
        with torch.no_grad():
            yield self._scalar(self.reward)

    def _causal(self, role: Role) -> Any:
        self._switch(role)
        return role.model

    def _scalar(self, role: Role) -> ScalarModel:
        self._switch(role)
        assert role.scalar is not None
        return role.scalar

    def _switch(self, role: Role) -> None:
        if isinstance(role.model, PeftModel):
            use_adapter(role.model, role.adapter, trainable={"policy", "value"})


def load_models(sft: Path, reward: Path, config: ModelConfig, tokenizer: Any, device: torch.device, seed: int) -> PPOModels:
    """Loads the four from the folders of the finished stages (`model` and, for a reward model trained with LoRA, `adapter` below them).

    Raises ValueError when a model is missing or the reward model's tokenizer is not the policy's.
    """
    refuse_other_tokenizer(reward / "model", config, tokenizer)
    base = load_causal(sft / "model", config, tokenizer).to(device)
    freeze(base)
    if config.adapter == "none":
        policy = load_causal(sft / "model", config, tokenizer).to(device)
        value, scorer = (load_scalar(reward / "model", config, tokenizer).to(device) for _ in range(2))
        freeze(scorer)
        return PPOModels(
            policy=Role(policy),
            reference=Role(base),
            value=Role(value, scalar=scalar_model(value)),
            reward=Role(scorer, scalar=scalar_model(scorer)),
            policy_parameters=dict(policy.named_parameters()),
            value_parameters=dict(value.named_parameters()),
        )
    trunk = shared_trunk(base, config.lora.top_layers)
    torch.manual_seed(seed)
    shared = add_lora(base, config.lora, name="policy")
    policy_parameters = adapter_parameters(shared, "policy")
    if (reward / "adapter").is_dir():
        load_adapter(shared, reward / "adapter", "reward", trainable=False)
        load_adapter(shared, reward / "adapter", "value", trainable=True)
        backbone = backbone_of(base)
        weight, bias = saved_head(reward / "model", config)
        heads = {name: linear_head(weight.to(device)) for name in ("reward", "value")}
        freeze(heads["reward"])
        value_role = Role(shared, "value", ScalarModel(backbone, heads["value"], bias))
        reward_role = Role(shared, "reward", ScalarModel(backbone, heads["reward"], bias))
        value_parameters = adapter_parameters(shared, "value") | dict(heads["value"].named_parameters(prefix="score"))
    else:
        value, scorer = (load_scalar(reward / "model", config, tokenizer).to(device) for _ in range(2))
        freeze(scorer)
        value_role, reward_role = Role(value, scalar=scalar_model(value)), Role(scorer, scalar=scalar_model(scorer))
        value_parameters = dict(value.named_parameters())
    return PPOModels(
        policy=Role(shared, "policy"),
        reference=Role(shared, None),
        value=value_role,
        reward=reward_role,
        policy_parameters=policy_parameters,
        value_parameters=value_parameters,
        trunk=trunk,
    )


def saved_head(folder: Path, config: ModelConfig) -> tuple[torch.Tensor, float]:
    """(weight (1, H), bias) of a saved reward model, without loading the rest. Raises ValueError where there is none."""
    settings = AutoConfig.from_pretrained(str(folder), trust_remote_code=config.trust_remote_code)
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


def refuse_other_tokenizer(reward_model: Path, config: ModelConfig, tokenizer: Any) -> None:
    """Raises ValueError when the reward model reads other token ids than the policy writes."""
    other = load_tokenizer(reward_model, config)
    if other.get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"the reward model in {reward_model} has another tokenizer than the policy: train it from the same base model")
