"""What the final comparison measures."""

from dataclasses import dataclass
from typing import Literal

from data.numbers import FractionAboveZero, NonNegativeFloat, NonNegativeInt, PositiveInt, check_numbers


@dataclass
class EvaluateConfig:
    """Base, SFT and PPO on the prompts of held-out users. All ours unless a section is named."""

    weights: Literal["ema", "last"] = "ema"
    """Which of PPO's weights are compared: their moving average or the last ones. C.4: EMA."""
    max_prompts: PositiveInt | None = None
    """Only so many held-out prompts, spread evenly over the set; null takes all. Ours."""
    answers_per_prompt: PositiveInt = 1
    """Answers sampled from PPO and from SFT for each prompt; one from the base model, which is there for orientation.
    The bootstrap resamples prompts, so more answers narrow each prompt's noise. Ours."""
    max_new_tokens: PositiveInt = 512
    """Maximum length of an answer in tokens. Ours."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of all models; 0 is greedy. Ours."""
    top_k: NonNegativeInt = 0
    """Sample from the so many likeliest tokens; 0 is all. The KL remains one between the full distributions, and its
    estimate is biased with `top_k` or `top_p`. Ours."""
    top_p: FractionAboveZero = 1.0
    """Sample from the fewest likeliest tokens that together have this probability; 1 is all. Ours."""
    batch_size: PositiveInt = 64
    """Answers decoded together in one process; changes speed and memory only. Ours."""
    perplexity_examples: PositiveInt = 32
    """Number of held-out pretraining examples for perplexity. Ours."""
    samples_in_report: NonNegativeInt = 10
    """Number of prompts whose answers the report shows side by side. Ours."""
    bootstrap_resamples: PositiveInt = 10_000
    """Bootstrap resamples for the 95% intervals. Ours."""
    best_of_n: NonNegativeInt = 0
    """Answers sampled from SFT for each prompt, of which the reward model chooses the best of 1, 2, 4 and so on up to
    all of them: what PPO has to beat at the same KL (Gao et al. 2022). 0 leaves it out. Ours."""
    best_of_n_prompts: PositiveInt | None = None
    """Only so many of the held-out prompts for it, spread evenly; null takes all. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "evaluate")
        if self.best_of_n and (self.temperature == 0 or self.top_k == 1):
            raise ValueError(
                f"evaluate.best_of_n={self.best_of_n} needs an evaluate.temperature above 0 and a top_k other than 1: "
                "greedy answers are all the same"
            )


@dataclass
class EvaluateRewardConfig:
    """How a reward model is judged on held-out rankings, after its training and by itself. All ours."""

    model: str | None = None
    """For the stage by itself: null is the run's own reward model; or a folder or a model on the Hub."""
    revision: str | None = None
    """Commit or tag of `model` on the Hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with `model`. Off unless you trust its author."""
    chat_template: str | None = None
    """A Jinja file that renders conversations for `model`; null takes its tokenizer's, or a plain one where it has
    none.
    """
    max_prompts: PositiveInt | None = None
    """Only so many prompts of each split, spread evenly over it; null takes all. Ours."""
    sft_likelihood: bool = True
    """Also judge how far the SFT model's own likelihood of an answer gets: a pass of the SFT model over the test
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
