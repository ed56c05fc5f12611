"""The reward of an episode: a weighted sum of reward models, the response's length and Python functions. By default it
is the score of the run's reward model (Ouyang et al. 2022, section 3.5).

Shapes: B episodes of this process.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from data.records import Prompt
from data.tokenize import decode_completion
from modeling.architecture import refuse_lookahead
from modeling.config import ModelConfig
from modeling.load import autocast_dtype, freeze, load_scalar, load_tokenizer, read_settings, require_reward_model
from modeling.models import reward_model
from modeling.sharding import Sharding
from ppo.experience import Rollout
from ppo.reward_scorer import RewardScorer, Tokens
from ppo.reward_terms import RewardTerm, load_function, settings_restored


@dataclass(frozen=True)
class RewardFunction:
    """A function of prompts and responses, called as trl's GRPOTrainer calls reward functions, but without
    `trainer_state`, `log_extra` and `log_metric`.

    A completion is text, or a conversation of one assistant message if its prompt is a conversation; `completion_ids`
    are the policy's tokens, with EOS. Further keyword arguments are the other fields of the prompts' records, as lists.
    Each process calls it for its own episodes.
    """

    name: str
    function: Callable[..., Any]
    tokenizer: Any
    """The policy's."""

    def __call__(self, rollout: Rollout) -> list[float]:
        """A number per episode. Raises ValueError if the function raises, or does not return one finite number each."""
        prompts, responses = rollout.prompts, rollout.responses
        if not prompts:  # a process may have no prompts
            return []
        texts = [decode_completion(self.tokenizer, response.ids, response.ended) for response in responses]
        completions = [
            text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        columns = {item.name: [getattr(prompt, item.name) for prompt in prompts] for item in fields(Prompt)}
        asked = columns.pop("prompt")
        try:
            with settings_restored():
                # Copies, since it may change what it is given: trl passes lists that are not used again.
                ids, asked, columns = deepcopy((rollout.ids, asked, columns))
                found = self.function(prompts=asked, completions=completions, completion_ids=ids, **columns)
                values = [float(value) for value in found]
        except (Exception, SystemExit) as error:
            raise ValueError(f"the reward function {self.name!r} failed: {type(error).__name__}: {error}") from error
        if len(values) != len(prompts):
            raise ValueError(
                f"the reward function {self.name!r} returned {len(values)} values for {len(prompts)} prompts"
            )
        if bad := [value for value in values if not math.isfinite(value)]:
            raise ValueError(f"the reward function {self.name!r} returned {bad[0]}, which is not a finite number")
        return values


def response_lengths(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """Response tokens, including EOS."""
    return [float(len(ids)) for ids in completion_ids]


Reward = RewardScorer | RewardFunction


@dataclass(frozen=True)
class RewardList:
    """The terms of the reward: `rewards(rollout, max_tokens) -> total_B, values_B of each, truncated_B`."""

    terms: Sequence[tuple[RewardTerm, Reward]]

    @property
    def scorers(self) -> list[RewardScorer]:
        """The reward models, in order."""
        return [reward for _, reward in self.terms if isinstance(reward, RewardScorer)]

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError for a prompt that leaves an answer no room in the context of a reward model."""
        for scorer in self.scorers:
            scorer.check(prompts)

    def __call__(self, rollout: Rollout, max_tokens: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(total_B, the unweighted values_B of each term by name, whether a reward model truncated the response), the
        numbers in float64.

        Args:
            max_tokens: size of the micro-batches of responses whose tokens differ, see `RewardScorer.scores`.
        """
        parts: dict[str, Tensor] = {}
        total_B = torch.zeros(len(rollout.responses), dtype=torch.float64, device=rollout.device)
        truncated_B = torch.zeros_like(total_B, dtype=torch.bool)
        for term, reward in self.terms:
            if isinstance(reward, RewardScorer):
                root = reward.model.encoder.model
                with Sharding.of(root).computing(root):
                    values_B, cut_B = reward.scores(rollout.batches, rollout.episodes(), max_tokens)
                truncated_B |= cut_B.to(rollout.device)
            else:
                values_B = torch.tensor(reward(rollout), dtype=torch.float64)
            parts[term.label] = values_B.to(total_B)
            total_B += term.weight * parts[term.label]
        return total_B, parts, truncated_B


def own_config(term: RewardTerm, config: ModelConfig) -> ModelConfig:
    """How to load the model of a term; `config` is the policy's."""
    return replace(config, revision=term.revision, chat_template=None, trust_remote_code=term.trust_remote_code)


def prepare(term: RewardTerm, config: ModelConfig, tokenizer: Any, device: torch.device) -> Callable[[], Reward]:
    """Checks a term that is not the run's own reward model, without loading weights; returns a function that loads it,
    frozen.

    Args:
        config: of the policy.
        tokenizer: the policy's.

    Raises ValueError if a function cannot be imported, or a model is not a reward model.
    """
    if term.path is None:
        name = term.function or term.kind
        function = response_lengths if term.function is None else load_function(term.function)
        return lambda: RewardFunction(name, function, tokenizer)
    place, name = term.path, f"ppo.rewards: path={term.path}"
    own = own_config(term, config)
    settings = read_settings(place, own)
    require_reward_model(settings, name, own.trust_remote_code)
    reward_tokenizer = load_tokenizer(place, own)

    def load() -> RewardScorer:
        model = load_scalar(place, own, reward_tokenizer).to(device)
        refuse_lookahead(model, name)
        freeze(model)
        tokens = Tokens.between(tokenizer, reward_tokenizer, settings)
        return RewardScorer(reward_model(model, autocast_dtype(own, device)), tokens)

    return load
