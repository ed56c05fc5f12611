"""What the final comparison measures."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class EvaluateConfig:
    """Base, SFT and PPO on the prompts of held-out users. All ours unless a section is named."""

    weights: Literal["ema", "last"] = "ema"
    """Which of PPO's weights are compared: their moving average or the last ones. C.4: EMA."""
    max_prompts: int | None = None
    """Only so many held-out prompts, spread evenly over the set; null takes all."""
    answers_per_prompt: int = 1
    """Answers sampled from PPO and from SFT for each prompt; one from the base model, which is there for orientation. The bootstrap resamples
    prompts, so more answers narrow each prompt's noise."""
    max_new_tokens: int = 512
    """Answers are cut off after so many tokens."""
    temperature: float = 1.0
    """Sampling temperature of all models."""
    batch_size: int = 64
    """Answers decoded side by side in one process."""
    perplexity_examples: int = 32
    """Held-out pretraining examples."""
    samples_in_report: int = 10
    """Answers shown side by side."""
    bootstrap_resamples: int = 10_000
    """For the 95% intervals."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        for name in ("answers_per_prompt", "max_new_tokens", "batch_size", "perplexity_examples", "bootstrap_resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluate.{name}={getattr(self, name)} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"evaluate.temperature={self.temperature} must not be negative; 0 is greedy")
