"""Stage 2's settings."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class RewardConfig:
    """The reward model. Defaults are the paper's (appendix C.2) unless marked ours."""

    base: str | None = None
    """Where it starts: null is the SFT model (3.5). Or `embedded`, `tiny`, a folder or a model on the Hub, of another size, family or tokenizer (C.2:
    6B for policies of any size); one that is a reward model already, a sequence classifier of one label, keeps its head."""
    revision: str | None = None
    """Commit or tag of `base` on the Hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with `base`. Off unless you trust its author."""
    chat_template: str | None = None
    """A Jinja file that renders conversations for a `base` of its own; null takes its tokenizer's, or a plain one where it has none."""
    top_layers: int | None = None
    """With a `base` of its own and `model.adapter: lora`: adapt only this many of its layers nearest the output; null adapts all. A reward model
    that starts from the SFT model is adapted as `model.lora` says."""
    epochs: int = 1
    """Passes over the rankings. C.2: one; more overfits. 0 takes a `base` that is a reward model already as it is."""
    learning_rate: float = 9e-6
    """Peak learning rate. C.2: 9e-6; with LoRA take about 2e-4."""
    batch_size: int = 64
    """Prompts, each with all its answers, an optimizer step over all processes. C.2: 64."""
    max_train_prompts: int | None = None
    """Train on only so many rankings, spread evenly over the set; null takes all."""
    max_answers_per_prompt: int | None = None
    """Read only so many answers of a prompt, chosen at random; null takes all. 3.5: labelers ranked 4 to 9."""
    batching: Literal["prompts", "pairs"] = "prompts"
    """`prompts`: a prompt with all its answers is one batch element (3.5). `pairs`: comparisons shuffled over the whole set, which the paper
    found to overfit; as many a step as `batch_size` prompts have on average. There to be compared with."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: a third more time for a fraction of the memory. Ours."""
    max_tokens_per_micro_batch: int = 4096
    """Prompt and answer tokens, padding included, of one forward pass; one prompt with its answers at least. Ours; does not change the result."""
    final_lr_fraction: float = 0.1
    """The cosine schedule ends at this fraction of the peak. C.2."""
    max_grad_norm: float = 1.0
    """Gradient clipping. Ours."""
    bias_demonstrations: int = 256
    """Demonstrations whose mean score becomes zero, the first so many of the training set. Ours; C.2 takes the labelers'."""
    adam_beta2: float = 0.95
    """Adam's second decay; the first is 0.9. C.1."""
    epoch_evaluation_prompts: int = 256
    """After each epoch, accuracy and loss on as many training and validation prompts, for the gap between them. Ours; 0 skips it."""
    checkpoint_minutes: float = 10.0
    """Save a checkpoint after so many minutes, and at the end of each epoch; 0 saves after every step. A killed run
    loses at most what it trained since the last one. Ours."""
    learning_curve: list[float] = field(default_factory=list)
    """Fractions of the training prompts, say [0.25, 0.5], from which further models are trained and judged on the same test set. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        for name, least in {
            "epochs": 0,
            "batch_size": 1,
            "max_tokens_per_micro_batch": 1,
            "bias_demonstrations": 1,
            "epoch_evaluation_prompts": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"reward.{name}={getattr(self, name)} must be at least {least}")
        for name, least in {"max_train_prompts": 1, "max_answers_per_prompt": 2}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"reward.{name}={value} must be at least {least}, or null for all")
        if self.epochs == 0 and self.base is None:
            raise ValueError("reward.epochs=0 takes a reward model as it is: say in reward.base which")
        if self.epochs == 0 and self.learning_curve:
            raise ValueError("reward.learning_curve trains further models, but reward.epochs=0 trains none")
        if self.base is None:
            for name in ("revision", "chat_template", "top_layers"):
                if getattr(self, name) is not None:
                    raise ValueError(f"reward.{name} is of a reward.base of its own, and there is none: model.* says how the SFT model is loaded")
        if self.top_layers is not None and self.top_layers < 1:
            raise ValueError(f"reward.top_layers={self.top_layers} must be at least 1, or null for all layers")
        for fraction in self.learning_curve:
            if not 0 < fraction < 1:
                raise ValueError(f"reward.learning_curve holds {fraction}, and must hold fractions between 0 and 1; the whole is always trained")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(f"reward.checkpoint_minutes={self.checkpoint_minutes} must be at least 0")
        if self.learning_rate <= 0:
            raise ValueError(f"reward.learning_rate={self.learning_rate} must be above 0")
