"""Stage 2's settings."""

from dataclasses import dataclass, field
from typing import Literal

from data.numbers import (
    AtLeastTwo,
    ClosedUnitInterval,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
    check_numbers,
)


@dataclass
class RewardConfig:
    """The reward model. Defaults are the paper's (appendix C.2) unless marked ours."""

    base: str | None = None
    """The model that training starts from: null is the SFT model (3.5). Or `embedded`, `tiny`, a folder or a model on
    the Hub, possibly of another size, family or tokenizer (C.2: 6B for policies of any size); a model that is already a
    reward model, a sequence classifier with one label, keeps its head."""
    revision: str | None = None
    """Commit or tag of `base` on the Hub; null pins the commit that is current when the run starts."""
    trust_remote_code: bool = False
    """Run Python code that comes with `base`. Off unless you trust its author."""
    chat_template: str | None = None
    """A Jinja file with the chat template of `base`; null takes its tokenizer's, or a plain one if it has none."""
    top_layers: PositiveInt | None = None
    """With a separate `base` and `model.adapter: lora`: adapt only this many of its layers, those nearest the output;
    null adapts all. A reward model that starts from the SFT model uses `model.lora`. Ours."""
    epochs: NonNegativeInt = 1
    """Passes over the rankings. C.2: one; more overfits. 0 uses a `base` that is already a reward model unchanged."""
    learning_rate: PositiveFloat = 9e-6
    """Peak learning rate. C.2: 9e-6; with LoRA use about 2e-4."""
    batch_size: PositiveInt = 64
    """Prompts, each with all its answers, per optimizer step over all processes; a prompt that several labelers ranked
    counts once for each ranking. C.2: 64."""
    max_train_prompts: PositiveInt | None = None
    """Maximum number of training prompts, with all their rankings, spread evenly over the set; null uses all. Ours."""
    max_answers_per_prompt: AtLeastTwo | None = None
    """Maximum number of answers per prompt in training and evaluation, chosen at random, with a strict pair if there is
    one; null uses all. 3.5: labelers ranked 4 to 9.
    """
    batching: Literal["prompts", "pairs"] = "prompts"
    """`prompts`: a prompt with all its answers is one batch element (3.5). `pairs`: comparisons shuffled over the whole
    set, which the paper found to overfit; as many per step as `batch_size` prompts have on average. For comparison."""
    activation_checkpointing: bool = False
    """Store only each layer's input and recompute its activations in the backward pass: 1.3 to 1.5 times the time for a
    fraction of the memory, with the same result. Ours.
    """
    max_tokens_per_micro_batch: PositiveInt = 4096
    """Maximum number of tokens per forward pass, but at least one prompt with its answers; also when `evaluate` and the
    sweeps score answers and texts. Ours; changes the result only by rounding.
    """
    final_lr_fraction: ClosedUnitInterval = 0.1
    """The cosine schedule ends at this fraction of the peak. C.2."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping. Ours."""
    bias_demonstrations: PositiveInt = 256
    """Number of training demonstrations whose mean score the bias makes zero, spread evenly over the set and thus over
    its sources. 3.5: the labelers' demonstrations; their number is ours."""
    adam_beta2: FractionBelowOne = 0.95
    """Adam's second decay; the first is 0.9. Appendix C."""
    epoch_evaluation_prompts: NonNegativeInt = 256
    """After each epoch, accuracy and loss are computed on this many training and validation prompts, to show
    overfitting. Ours; 0 skips it.
    """
    checkpoint_minutes: NonNegativeFloat = 10.0
    """Minutes between checkpoints, which are also saved at the end of each epoch; 0 saves after every step. A killed
    run loses at most the work since the last one. Ours."""
    learning_curve: list[OpenUnitInterval] = field(default_factory=list)
    """Fractions of the training prompts, such as [0.25, 0.5], on which further models are trained; all are evaluated on
    the same test set. Ours.
    """

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "reward")
        if self.epochs == 0 and self.base is None:
            raise ValueError("reward.epochs=0 uses a reward model unchanged: name it in reward.base")
        if self.epochs == 0 and self.learning_curve:
            raise ValueError("reward.learning_curve trains further models, but reward.epochs=0 trains none")
        if self.base is None:
            for name in ("revision", "chat_template", "top_layers"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"reward.{name} applies only to a separate reward.base, and none is set: model.* says how the "
                        "SFT model is loaded"
                    )
