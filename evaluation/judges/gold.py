"""A held-out ("gold") reward model as a judge (Gao et al. 2022), to detect over-optimization."""

from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from data.records import Demonstration
from data.tokenize import count_prompt_tokens, encode_prompt
from evaluation.compare import Answer
from evaluation.config import GoldConfig
from evaluation.judges.protocol import ScoringJudge
from evaluation.judges.simulated import Asked, Once
from evaluation.reward_scores import SavedRewardModel
from modeling.config import ModelConfig
from reward.batches import answer_ids, fitted


@dataclass
class GoldJudge(ScoringJudge):
    """Scores answers as evaluate_reward scores rankings.

    The processes share the forward passes, so all of them must call `scores` the first time; later calls with the same
    answers read cached scores.
    """

    model: SavedRewardModel
    max_tokens: int
    """Maximum number of tokens per forward pass."""
    accelerator: Accelerator
    name = "gold"

    def __post_init__(self) -> None:
        self.once = Once(self._judge)

    @staticmethod
    def of(config: GoldConfig, model_config: ModelConfig, max_tokens: int, accelerator: Accelerator) -> "GoldJudge":
        """Loads only the tokenizer. Raises ValueError if the model is missing or not a reward model."""
        assert config.model is not None, "EvaluateConfig.validate"
        setting = f"evaluate.gold.model={config.model}"
        model = SavedRewardModel.of(config.model, config.of(model_config), setting)
        return GoldJudge(model, max_tokens, accelerator)

    def check(self, prompts: Sequence[Demonstration]) -> None:
        """Raises ValueError for a prompt that leaves no room for an answer, or that the chat template rejects."""
        for prompt, count in zip(prompts, count_prompt_tokens(self.model.tokenizer, prompts), strict=True):
            if self._room(count) < 1:
                raise ValueError(
                    f"prompt {prompt.prompt_id!r} has {count} tokens for the judge gold, which leaves no room for an "
                    f"answer in its context of {self.model.context}: lower data.max_prompt_tokens, or choose another "
                    "evaluate.gold.model"
                )

    def scores(self, prompts: Sequence[Demonstration], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        """See `ScoringJudge`."""
        return self.once(prompts, answers)

    def _judge(self, asked: Sequence[Asked]) -> list[float]:
        tokenizer, suffix = self.model.tokenizer, self.model.answer_suffix
        groups: dict[str, tuple[list[int], list[list[int]]]] = {}
        for prompt, answer in asked:
            if prompt.prompt_id not in groups:
                groups[prompt.prompt_id] = (encode_prompt(tokenizer, prompt), [])
            before, rows = groups[prompt.prompt_id]
            ids = answer_ids(tokenizer, answer.text, answer.complete, suffix)
            rows.append(fitted(ids, self._room(len(before)), suffix))
        found = self.model.scores(list(groups.values()), self.max_tokens, self.accelerator)
        left = {name: iter(row) for name, row in zip(groups, found, strict=True)}
        return [next(left[prompt.prompt_id]) for prompt, _ in asked]

    def _room(self, prompt_tokens: int) -> int:
        """Number of answer tokens that fit after a prompt."""
        return self.model.context - prompt_tokens - len(self.model.answer_suffix or [])
