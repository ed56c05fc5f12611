"""Stage 1's settings."""

from dataclasses import dataclass


@dataclass
class SFTConfig:
    """Supervised fine-tuning. Defaults are those of the paper's RL initialisation (appendix C.3) unless marked ours."""

    epochs: int = 2
    """Passes over the demonstrations. C.3: 2 for the model that RL starts from (C.1: 16 for the baseline)."""
    learning_rate: float = 9.65e-6
    """Peak learning rate. C.1: 9.65e-6 at 1.3B and 6B; with LoRA take about 2e-4."""
    batch_size: int = 32
    """Sequences an optimizer step over all processes. C.1: 32 at 1.3B and 6B."""
    micro_batch_size: int = 8
    """Sequences a forward pass of one process. Ours; does not change the result."""
    final_lr_fraction: float = 0.1
    """The cosine schedule ends at this fraction of the peak. C.1."""
    pretraining_fraction: float = 0.1
    """Share of training sequences that are plain text, loss on all its tokens. C.3: 10%."""
    residual_dropout: float = 0.2
    """In architectures that have one (GPT-2, GPT-NeoX; not Llama or Qwen). C.1."""
    max_grad_norm: float = 1.0
    """Gradient clipping. Ours."""
    max_train_examples: int | None = None
    """Use only so many demonstrations, spread evenly over the set; null uses all."""
    checkpoint_minutes: float = 10.0
    """Save a checkpoint after so many minutes, and at the end of each epoch; 0 saves after every step. A killed run
    loses at most what it trained since the last one. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        for name in ("epochs", "batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"sft.{name}={getattr(self, name)} must be at least 1")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"sft.micro_batch_size={self.micro_batch_size} does not divide sft.batch_size={self.batch_size}")
        if not 0 <= self.pretraining_fraction < 1:
            raise ValueError(f"sft.pretraining_fraction={self.pretraining_fraction} must be at least 0 and below 1")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(f"sft.checkpoint_minutes={self.checkpoint_minutes} must be at least 0")
        if self.learning_rate <= 0:
            raise ValueError(f"sft.learning_rate={self.learning_rate} must be above 0")
