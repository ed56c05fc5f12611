"""The models of PPO (policy, reference, value model and those of the reward) and their trained parameters.

| model.adapter | reward model | value model, ppo.value_init=reward | ppo.value_init=sft |
|---|---|---|---|
| lora | trained from the SFT model | a copy of its adapter on the policy's base | a new adapter on the policy's base |
| lora | a separate model | a new adapter on the reward model | a new adapter on the policy's base |
| none | any | a second copy of all of it | a copy of the SFT model |

With LoRA, policy (adapter `policy`), reference (no adapter) and, in the first row, reward and value model share one
frozen base. The value head starts as a copy of the reward head, or as zeros on the SFT model.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import nn

from data.records import Prompt
from data.tokenize import count_prompt_tokens
from modeling.adapters import adapter_parameters, add_lora, load_adapter, lora_config, lora_weights
from modeling.architecture import backbone_of
from modeling.config import ModelConfig
from modeling.embeddings import embedding_count
from modeling.frozen_layers import FrozenLayers, frozen_layers
from modeling.load import (
    autocast_dtype,
    context_length,
    freeze,
    knows_tokens,
    load_causal,
    load_scalar,
    load_tokenizer,
    read_settings,
)
from modeling.models import Encoder, PolicyModel, RewardModel, ValueModel, plain
from modeling.seeds import derive_seed
from modeling.sharding import Sharding
from ppo.config import PPOConfig
from ppo.reward_list import Reward, RewardList, prepare
from ppo.reward_scorer import RewardScorer
from ppo.reward_terms import RewardTerm

Models = tuple[PolicyModel, PolicyModel, ValueModel, RewardModel | None]
"""Policy, reference, value and the run's reward model (None unless it is a term of the reward)."""


@dataclass
class ActorCritic:
    """The models, and the trained parameters by name."""

    policy: PolicyModel
    reference: PolicyModel
    """The SFT model; frozen."""
    value: ValueModel
    rewards: RewardList
    """The reward model with its tokenization, and further terms of the reward; frozen."""
    policy_parameters: dict[str, nn.Parameter]
    value_parameters: dict[str, nn.Parameter]

    def __post_init__(self) -> None:
        for parameter in (*self.policy_parameters.values(), *self.value_parameters.values()):
            parameter.requires_grad_(True)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of log-probabilities, values and rewards: float32, or float64 for float64 weights."""
        return torch.float64 if next(iter(self.value_parameters.values())).dtype == torch.float64 else torch.float32

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of mixed precision."""
        return self.policy.encoder.autocast_dtype

    def check_prompts(self, prompts: Sequence[Prompt], tokenizer: Any, max_new_tokens: int) -> int:
        """Tokens of the longest prompt with a response. Raises ValueError for a prompt that leaves policy, value or
        reward model no room for one.
        """
        self.rewards.check(prompts)
        own = context_length(plain(self.policy.encoder.model).config)
        room = context_length(plain(self.value.encoder.model).config)
        counts = count_prompt_tokens(tokenizer, prompts)
        for prompt, count in zip(prompts, counts, strict=True):
            if count + max_new_tokens > min(own, room):
                whose, instead = ("policy's", "") if own <= room else ("value model's", ", or set ppo.value_init=sft")
                raise ValueError(
                    f"prompt {prompt.prompt_id!r} of {count} tokens and ppo.max_new_tokens={max_new_tokens} do not "
                    f"fit the {whose} context of {min(own, room)}: lower data.max_prompt_tokens or "
                    f"ppo.max_new_tokens{instead}"
                )
        return max(counts, default=0) + max_new_tokens


@dataclass(frozen=True)
class Loader:
    """Loads an ActorCritic from the folders of the finished SFT and reward stages."""

    sft: Path
    """Contains `model`."""
    reward: Path
    """Contains `model`, and `adapter` if it was trained with LoRA from the SFT model."""
    config: ModelConfig
    ppo: PPOConfig
    seed: int
    device: torch.device
    trust_reward_code: bool = False
    sharding: Sharding = field(default_factory=Sharding)

    def load(self, tokenizer: Any) -> ActorCritic:
        """The models in float32.

        Raises ValueError when a model is missing or the value model cannot be initialized as configured, if possible
        before any weights are loaded.
        """
        reward_tokenizer = load_tokenizer(self.reward / "model", self.reward_config)
        settings = read_settings(self.reward / "model", self.reward_config)
        refuse_value_start(self.ppo, tokenizer, reward_tokenizer)
        policy_settings = read_settings(self.sft / "model", self.config)
        refuse_fewer_rows(self.ppo, embedding_count(policy_settings), embedding_count(settings))
        refuse_value_layers(self.ppo, self.config.adapter == "lora" and not self.on_policy_base, settings)
        further = {
            term.label: prepare(term, self.config, tokenizer, self.device)
            for term in self.ppo.rewards
            if not term.is_own_model
        }
        base = load_causal(self.sft / "model", self.config, tokenizer, quantize=True).to(self.device)
        freeze(base)
        if self.config.adapter == "none":
            policy, reference, value, reward = self._whole(base, tokenizer, reward_tokenizer)
        else:
            policy, reference, value, reward = self._adapted(base, reward_tokenizer)

        def reward_of(term: RewardTerm) -> Reward:
            if term.label in further:
                return further[term.label]()
            assert reward is not None
            return RewardScorer.between(reward, tokenizer, reward_tokenizer)

        rewards = RewardList([(term, reward_of(term)) for term in self.ppo.rewards])
        encoders = [model.encoder for model in (policy, reference, value)]
        encoders += [scorer.model.encoder for scorer in rewards.scorers]
        for root in {id(encoder.model): encoder.model for encoder in encoders}.values():
            self.sharding.shard(root, lora_weights(root))
        # After sharding, which replaces parameters.
        policy_parameters, value_parameters = trained_parameters(policy.encoder), trained_parameters(value.encoder)
        if value.encoder.adapter is not None:
            value_parameters |= dict(value.head.named_parameters(prefix="score"))
        return ActorCritic(policy, reference, value, rewards, policy_parameters, value_parameters)

    @property
    def reward_config(self) -> ModelConfig:
        """How to load the reward model, which is a local folder with its own chat template."""
        return replace(self.config.of_export(), trust_remote_code=self.trust_reward_code)

    @property
    def scores_itself(self) -> bool:
        """Whether the run's reward model is a term of the reward."""
        return any(term.is_own_model for term in self.ppo.rewards)

    @property
    def on_policy_base(self) -> bool:
        """Whether the reward model is an adapter of the SFT model."""
        return self.config.adapter == "lora" and (self.reward / "adapter").is_dir()

    def _whole(self, base: Any, tokenizer: Any, reward_tokenizer: Any) -> Models:
        policy = load_causal(self.sft / "model", self.config, tokenizer).to(self.device)
        if self.ppo.value_init == "sft":
            value = load_scalar(self.sft / "model", self.config, tokenizer).to(self.device)
            value.score = linear_head(torch.zeros(1, value.score.weight.shape[1], device=self.device))
        else:
            value = load_scalar(self.reward / "model", self.reward_config, reward_tokenizer).to(self.device)
        return (
            PolicyModel(self._encoder(policy)),
            PolicyModel(self._encoder(base)),
            ValueModel(self._encoder(value)),
            self._own_reward(reward_tokenizer) if self.scores_itself else None,
        )

    def _adapted(self, base: Any, reward_tokenizer: Any) -> Models:
        frozen = self._frozen_layers(base)
        value_lora = lora_config(base, self.config.lora)  # before peft renames the linear layers
        torch.manual_seed(self.seed)
        shared = add_lora(base, self.config.lora, name="policy")
        reward: RewardModel | None = None
        if self.scores_itself:
            reward = self._reward_on(shared, frozen) if self.on_policy_base else self._own_reward(reward_tokenizer)
        if self.ppo.value_init == "sft":
            torch.manual_seed(derive_seed(self.seed, "value adapter"))
            shared.add_adapter("value", value_lora)
            # Some families project the last hidden state to the width of the embeddings (OPT-350m).
            zeros = torch.zeros(1, base.get_output_embeddings().in_features)
            value = ValueModel(self._encoder(shared, "value", frozen), linear_head(zeros).to(self.device), 0.0)
        else:
            assert reward is not None, "PPOConfig.validate requires it"
            head, bias = copy.deepcopy(reward.head), reward.bias
            if self.on_policy_base:
                load_adapter(shared, self.reward / "adapter", "value", trainable=True)
                value = ValueModel(self._encoder(shared, "value", frozen), head, bias)
            else:
                # Both share one model: the reward model without an adapter, the value model with one.
                torch.manual_seed(derive_seed(self.seed, "value adapter"))
                lora = replace(self.config.lora, top_layers=self.ppo.value_top_layers)
                adapted = add_lora(reward.encoder.model, lora, name="value")
                reward = RewardModel(self._encoder(adapted), reward.head, reward.bias)
                value = ValueModel(self._encoder(adapted, "value"), head, bias)
        policy, reference = (PolicyModel(self._encoder(shared, adapter, frozen)) for adapter in ("policy", None))
        return policy, reference, value, reward

    def _frozen_layers(self, base: Any) -> FrozenLayers | None:
        """The layers below all adapters. The reward stage may have adapted more layers than `model.lora` names now."""
        if self.sharding.layerwise:  # all passes must gather the same layers
            return None
        top, count = self.config.lora.top_layers, base.config.get_text_config().num_hidden_layers
        if top is not None and self.on_policy_base:
            adapted = LoraConfig.from_pretrained(str(self.reward / "adapter")).layers_to_transform
            top = None if adapted is None else max(top, count - min(adapted))
        return frozen_layers(backbone_of(base), top)

    def _reward_on(self, shared: Any, frozen: FrozenLayers | None) -> RewardModel:
        """The reward model as a frozen adapter on the policy's base."""
        load_adapter(shared, self.reward / "adapter", "reward", trainable=False)
        weight, bias = saved_head(self.reward / "model", self.reward_config)
        head = linear_head(weight.to(self.device))
        freeze(head)
        return RewardModel(self._encoder(shared, "reward", frozen), head, bias)

    def _own_reward(self, tokenizer: Any) -> RewardModel:
        """The reward model as a separate model."""
        model = load_scalar(self.reward / "model", self.reward_config, tokenizer, quantize=True).to(self.device)
        freeze(model)
        return RewardModel(self._encoder(model))

    def _encoder(self, model: Any, adapter: str | None = None, frozen: FrozenLayers | None = None) -> Encoder:
        return Encoder(model, adapter, frozen, autocast_dtype(self.config, self.device))


def trained_parameters(encoder: Encoder) -> dict[str, nn.Parameter]:
    """The parameters of the encoder's adapter, or of the whole model, by name."""
    if encoder.adapter is None:
        return dict(encoder.model.named_parameters())
    return adapter_parameters(encoder.activate(), encoder.adapter)


def saved_head(folder: Path, config: ModelConfig) -> tuple[torch.Tensor, float]:
    """(weight (1, H), bias) of a saved reward model, without the other weights. Raises ValueError if it has none."""
    settings = read_settings(folder, config)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if "score.weight" in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                return weights.get_tensor("score.weight").float(), float(getattr(settings, "score_bias", 0.0))
    raise ValueError(f"{folder} holds no scalar head `score.weight`: it is not a reward model")


def linear_head(weight: torch.Tensor) -> nn.Linear:
    """A head with these weights. With zeros, every value is 0, the mean score of demonstrations (3.5); a random head
    would add noise to the first advantages.
    """
    head = nn.Linear(weight.shape[1], 1, bias=False, device=weight.device)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def refuse_fewer_rows(ppo: PPOConfig, rows: int, reward_rows: int) -> None:
    """Raises ValueError if the value model would start from a reward model with fewer embeddings than the policy, which
    may sample an id without a token (docs/generation.md).
    """
    if ppo.value_init == "reward" and reward_rows < rows:
        raise ValueError(
            f"the policy has {rows} embeddings, and the reward model from which the value model starts has "
            f"{reward_rows}, so the policy could sample ids that the value model lacks: set ppo.value_init=sft"
        )


def refuse_value_start(ppo: PPOConfig, tokenizer: Any, reward_tokenizer: Any) -> None:
    """Raises ValueError if the value model, whose input is the policy's tokens, would start from a reward model with
    another tokenizer.
    """
    if ppo.value_init == "reward" and not knows_tokens(reward_tokenizer, tokenizer):
        raise ValueError(
            "the value model takes the policy's tokens and cannot start from a reward model with another tokenizer: "
            "set ppo.value_init=sft"
        )


def refuse_value_layers(ppo: PPOConfig, on_own_reward: bool, reward_settings: Any) -> None:
    """Raises ValueError if ppo.value_top_layers has no effect, or exceeds the reward model's number of layers."""
    if ppo.value_top_layers is None:
        return
    if not on_own_reward:
        raise ValueError(
            "ppo.value_top_layers applies only to a value model that is a LoRA adapter on a separate reward model: "
            "leave it at null"
        )
    layers: int = reward_settings.get_text_config().num_hidden_layers
    if ppo.value_top_layers > layers:
        raise ValueError(
            f"ppo.value_top_layers={ppo.value_top_layers}, but the reward model that the value model starts from has "
            f"{layers} layers"
        )
