"""The four models of PPO: policy, reference, value and reward. With LoRA one base serves all four, each with an adapter
of its own.

Reference is the SFT model: with LoRA, the base with no adapter on. The reward model may be of another size, family and
tokenizer; then it is a model beside the policy's base. The value model starts from the reward model, or from the SFT
model (ppo/roles.py has the table).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from data.records import Prompt
from data.tokenize import count_prompt_tokens
from modeling.adapters import adapter_parameters, add_lora, lora_config, use_adapter
from modeling.config import ModelConfig
from modeling.load import context_length, freeze, knows_tokens, load_causal, load_tokenizer, read_settings
from modeling.scalar import ScalarModel
from modeling.trunk import Trunk, shared_trunk
from ppo.config import PPOConfig
from ppo.reading import Reading, reading_between
from ppo.roles import (
    Role,
    own_reward,
    reward_on_policy_base,
    value_beside_reward,
    value_on_reward,
    value_on_sft,
    whole_value,
)


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
    reading: Reading | None = None
    """How responses are tokenised for the reward model; None scores the policy's tokens, for models without text."""

    @property
    def dtype(self) -> torch.dtype:
        """Of everything that is computed from what the models say: float32, or float64 where the weights are."""
        return torch.float64 if next(iter(self.value_parameters.values())).dtype == torch.float64 else torch.float32

    def check_prompts(self, prompts: Sequence[Prompt], tokenizer: Any, max_new_tokens: int) -> None:
        """Raises ValueError for a prompt that leaves policy, value or reward model no room."""
        if self.reading is not None:
            self.reading.check(prompts)
        own, room = context_length(self.policy.model.config), context_length(self.value.model.config, generating=False)
        for prompt, count in zip(prompts, count_prompt_tokens(tokenizer, prompts), strict=True):
            if count + max_new_tokens > min(own, room):
                whose, instead = ("policy's", "") if own <= room else ("value model's", ", or set ppo.value_init=sft")
                raise ValueError(
                    f"prompt {prompt.prompt_id!r} of {count} tokens and ppo.max_new_tokens={max_new_tokens} do not "
                    f"fit the {whose} context of "
                    f"{min(own, room)}: lower data.max_prompt_tokens or ppo.max_new_tokens{instead}"
                )

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


def load_models(
    sft: Path, reward: Path, config: ModelConfig, tokenizer: Any, device: torch.device, seed: int,
    ppo: PPOConfig | None = None,
    trust_reward_code: bool = False,
) -> PPOModels:  # fmt: skip
    """Loads the four from the folders of the finished stages: `model` below each, and `adapter` below the reward
    stage's where its model was trained with LoRA from the SFT model. `ppo` says how the value model starts.

    Raises ValueError when a model is missing, or the value model cannot start as `ppo` says; before any weights are
    loaded, if it can be known.
    """
    ppo = ppo or PPOConfig()
    from_sft = ppo.value_init == "sft"
    # It was saved with its own chat template, and lies in a folder: neither the policy's template nor its revision is
    # meant for it.
    reward_config = replace(config, revision=None, chat_template=None, trust_remote_code=trust_reward_code)
    on_policy_base = config.adapter == "lora" and (reward / "adapter").is_dir()
    reward_tokenizer = load_tokenizer(reward / "model", reward_config)
    reward_settings = read_settings(reward / "model", reward_config)
    refuse_value_start(ppo, tokenizer, reward_tokenizer)
    refuse_value_layers(ppo, config.adapter == "lora" and not on_policy_base, reward_settings)
    reading = reading_between(tokenizer, reward_tokenizer, reward_settings)

    base = load_causal(sft / "model", config, tokenizer).to(device)
    freeze(base)
    if config.adapter == "none":
        policy = load_causal(sft / "model", config, tokenizer).to(device)
        scorer = own_reward(reward, reward_config, reward_tokenizer, device)
        start = (sft / "model", config, tokenizer) if from_sft else (reward / "model", reward_config, reward_tokenizer)
        value, value_parameters = whole_value(*start, device, zero=from_sft)
        policy_parameters = dict(policy.named_parameters())
        return PPOModels(Role(policy), Role(base), value, scorer, policy_parameters, value_parameters, reading=reading)

    trunk = shared_trunk(base, config.lora.top_layers)
    # Taken now, since adapters will stand between the names of the linear maps.
    settings = lora_config(base, config.lora)
    torch.manual_seed(seed)
    shared = add_lora(base, config.lora, name="policy")
    if on_policy_base:
        scorer = reward_on_policy_base(shared, reward, reward_config, device)
    else:
        scorer = own_reward(reward, reward_config, reward_tokenizer, device)
    if from_sft:
        value, value_parameters = value_on_sft(shared, settings, device, seed)
    elif on_policy_base:
        value, value_parameters = value_beside_reward(shared, reward, scorer)
    else:
        value, value_parameters = value_on_reward(scorer, config.lora, ppo.value_top_layers, seed)
    policy_parameters = adapter_parameters(shared, "policy")
    return PPOModels(
        Role(shared, "policy"), Role(shared), value, scorer, policy_parameters, value_parameters, trunk, reading
    )


def refuse_value_start(ppo: PPOConfig, tokenizer: Any, reward_tokenizer: Any) -> None:
    """Raises ValueError when the value model, which reads the policy's tokens, would start from a reward model to which
    they mean others.
    """
    if ppo.value_init == "reward" and not knows_tokens(reward_tokenizer, tokenizer):
        raise ValueError(
            "the value model reads the policy's tokens and cannot start from a reward model with another tokenizer: "
            "set ppo.value_init=sft"
        )


def refuse_value_layers(ppo: PPOConfig, on_own_reward: bool, reward_settings: Any) -> None:
    """Raises ValueError when ppo.value_top_layers is set where it means nothing, or is more than the reward model has
    layers.
    """
    if ppo.value_top_layers is None:
        return
    if not on_own_reward:
        raise ValueError(
            "ppo.value_top_layers is of a LoRA adapter on a reward model of its own, and the value model here is "
            "none: leave it at null"
        )
    layers: int = reward_settings.num_hidden_layers
    if ppo.value_top_layers > layers:
        raise ValueError(
            f"ppo.value_top_layers={ppo.value_top_layers}, but the reward model that the value model starts from has "
            f"{layers} layers"
        )
