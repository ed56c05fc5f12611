"""A saved reward model of any size, family and tokenizer, and its scores of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data.records import Ranking
from data.tokenize import check_prompt
from modeling.config import ModelConfig
from modeling.finite import OVERFLOW, require_finite
from modeling.load import (
    autocast_dtype,
    context_length,
    load_scalar,
    load_tokenizer,
    read_settings,
    require_reward_model,
)
from modeling.models import RewardModel, answer_suffix_of, reward_model
from modeling.sharding import Sharding
from reward.batches import RankingExample
from reward.scoring import score_all


@dataclass(frozen=True)
class SavedRewardModel:
    """A folder or a model on the Hub, with its own tokenizer and chat template. `load` reads the weights."""

    place: str | Path
    config: ModelConfig
    settings: Any
    """The model's configuration."""
    tokenizer: Any
    context: int
    """Maximum number of tokens of a prompt with an answer."""
    answer_suffix: list[int] | None
    """Tokens appended to every answer, see `modeling.models.answer_suffix_of`."""

    @staticmethod
    def of(place: str | Path, config: ModelConfig, setting: str) -> "SavedRewardModel":
        """`setting` names the model in messages. Raises ValueError if it is missing or not a reward model."""
        settings = read_settings(place, config)
        require_reward_model(settings, setting, config.trust_remote_code)
        tokenizer = load_tokenizer(place, config)
        context, suffix = context_length(settings), answer_suffix_of(settings, tokenizer)
        return SavedRewardModel(place, config, settings, tokenizer, context, suffix)

    def readable(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """The rankings that `check_prompt` accepts for this chat template. Raises ValueError, with the last reason, if
        it accepts none.
        """
        kept, reason = [], ""
        for ranking in rankings:
            try:
                check_prompt(self.tokenizer, ranking)
                kept.append(ranking)
            except ValueError as error:
                reason = str(error)
        if rankings and not kept:
            raise ValueError(f"{self.place} can read none of the {len(rankings)} rankings: {reason}")
        return kept

    def load(self, device: torch.device) -> RewardModel:
        """With its weights, sharded if the launch command asks for it."""
        loaded = load_scalar(self.place, self.config, self.tokenizer).to(device)
        model = reward_model(loaded, autocast_dtype(self.config, device))
        Sharding.from_environment().shard(loaded)
        return model

    def scores(
        self, asked: Sequence[tuple[list[int], list[list[int]]]], max_tokens: int, accelerator: Accelerator
    ) -> list[list[float]]:
        """Scores of the answers to each prompt, (prompt ids, ids of the answers), in order; the processes share the
        work.

        `max_tokens` limits a forward pass. Loads the weights and frees them. Raises ValueError for a score that is NaN
        or infinite.
        """
        items: list[RankingExample] = []
        owners: list[int] = []
        for index, (before, answers) in enumerate(asked):
            together = max(1, (max_tokens - len(before)) // max(map(len, answers), default=1))
            items += [
                RankingExample(before, answers[start : start + together]) for start in range(0, len(answers), together)
            ]
            owners += [index] * (len(items) - len(owners))
        found: list[list[float]] = [[] for _ in asked]
        for owner, row in zip(
            owners, score_all(self.load(accelerator.device), items, max_tokens, accelerator), strict=True
        ):
            found[owner] += row
        require_finite({"a score": sum(map(sum, found))}, str(self.place), OVERFLOW)
        return found
