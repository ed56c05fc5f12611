"""Settings of the evaluation stages."""

from dataclasses import dataclass
from typing import Literal

from data.numbers import NonNegativeInt, PositiveInt, check_numbers
from modeling.config import GenerationSettings


@dataclass
class EvaluateConfig(GenerationSettings):
    """Comparison of base, SFT and PPO on the prompts of held-out users. All ours unless a section is named."""

    weights: Literal["ema", "last"] = "ema"
    """PPO's weights to evaluate: the EMA or the last ones. C.4: EMA."""
    max_prompts: PositiveInt | None = None
    """Maximum number of held-out prompts, spread evenly over the set; null uses all. Ours."""
    answers_per_prompt: PositiveInt = 1
    """Answers sampled per prompt from PPO and from SFT; the base model, shown for orientation, gives one. More answers
    reduce the noise of each prompt; the bootstrap resamples prompts. Ours.
    """
    perplexity_examples: PositiveInt = 32
    """Number of held-out pretraining examples for perplexity. Ours."""
    samples_in_report: NonNegativeInt = 10
    """Number of prompts whose answers the report shows side by side. Ours."""
    bootstrap_resamples: PositiveInt = 10_000
    """Bootstrap resamples for the 95% intervals. Ours."""
    best_of_n: NonNegativeInt = 0
    """Answers sampled per prompt from SFT for best-of-n: the reward model chooses the best of 1, 2, 4 and so on up to
    all of them, which PPO has to beat at the same KL (Gao et al. 2022). 0 turns it off. Ours.
    """
    best_of_n_prompts: PositiveInt | None = None
    """Maximum number of held-out prompts for best-of-n, spread evenly over the set; null uses all. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "evaluate")
        if self.best_of_n and self.greedy:
            raise ValueError(
                f"evaluate.best_of_n={self.best_of_n} needs an evaluate.temperature above 0 and a top_k other than 1: "
                "greedy answers to a prompt are identical"
            )


@dataclass
class EvaluateRewardConfig:
    """Evaluation of a reward model on held-out rankings, after its training or separately. All ours."""

    model: str | None = None
    """Reward model of the evaluate_reward stage: a folder or a model on the Hub; null uses the run's own."""
    revision: str | None = None
    """Commit or tag of `model` on the Hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with `model`. Off unless you trust its author."""
    chat_template: str | None = None
    """A Jinja file that renders conversations for `model`; null uses the tokenizer's own, or a plain one if it has
    none.
    """
    max_prompts: PositiveInt | None = None
    """Maximum number of prompts per split, spread evenly over it; null uses all. Ours."""
    sft_likelihood: bool = True
    """Also evaluate the SFT model's likelihood of an answer as a baseline; costs a pass of the SFT model over the test
    split.
    """
    bootstrap_resamples: PositiveInt = 10_000
    """Bootstrap resamples for the 95% intervals. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "evaluate_reward")
        if self.model is None:
            for name in ("revision", "chat_template"):
                if getattr(self, name) is not None:
                    raise ValueError(f"evaluate_reward.{name} belongs to evaluate_reward.model, which is not given")
