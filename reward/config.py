"""Stage 2's settings."""

from dataclasses import dataclass


@dataclass
class RewardConfig:
    """The reward model. Defaults are the paper's (appendix C.2) unless marked ours."""

    epochs: int = 1
    """Passes over the rankings. C.2: one; more overfits."""
    learning_rate: float = 9e-6
    """Peak learning rate. C.2: 9e-6; with LoRA take about 2e-4."""
    batch_size: int = 64
    """Prompts, each with all its answers, an optimizer step over all processes. C.2: 64."""
    max_tokens_per_micro_batch: int = 4096
    """Prompt and answer tokens, padding included, of one forward pass. Ours; does not change the result."""
    final_lr_fraction: float = 0.1
    """The cosine schedule ends at this fraction of the peak. C.2."""
    max_grad_norm: float = 1.0
    """Gradient clipping. Ours."""
    bias_demonstrations: int = 256
    """Demonstrations whose mean score becomes zero, the first so many of the training set. Ours; C.2 takes the labelers'."""
    adam_beta2: float = 0.95
    """Adam's second decay; the first is 0.9. C.1."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        for name in ("epochs", "batch_size", "max_tokens_per_micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"reward.{name}={getattr(self, name)} must be at least 1")
        if self.learning_rate <= 0:
            raise ValueError(f"reward.learning_rate={self.learning_rate} must be above 0")
