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
    """Where it starts: null is the SFT model (3.5). Or `embedded`, `tiny`, a folder or a model on the Hub, of another
    size, family or tokenizer (C.2: 6B for policies of any size); one that is a reward model already, a sequence
    classifier of one label, keeps its head."""
    revision: str | None = None
    """Commit or tag of `base` on the Hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with `base`. Off unless you trust its author."""
    chat_template: str | None = None
    """A Jinja file that renders conversations for a `base` of its own; null takes its tokenizer's, or a plain one where
    it has none.
    """
    top_layers: PositiveInt | None = None
    """With a `base` of its own and `model.adapter: lora`: adapt only this many of its layers nearest the output; null
    adapts all. A reward model that starts from the SFT model is adapted as `model.lora` says. Ours."""
    epochs: NonNegativeInt = 1
    """Passes over the rankings. C.2: one; more overfits. 0 takes a `base` that is a reward model already as it is."""
    learning_rate: PositiveFloat = 9e-6
    """Peak learning rate. C.2: 9e-6; with LoRA take about 2e-4."""
    batch_size: PositiveInt = 64
    """Prompts, each with all its answers, per optimizer step over all processes. C.2: 64."""
    max_train_prompts: PositiveInt | None = None
    """Train on only so many rankings, spread evenly over the set; null takes all. Ours."""
    max_answers_per_prompt: AtLeastTwo | None = None
    """Read only so many answers of a prompt, chosen at random; null takes all. 3.5: labelers ranked 4 to 9."""
    batching: Literal["prompts", "pairs"] = "prompts"
    """`prompts`: a prompt with all its answers is one batch element (3.5). `pairs`: comparisons shuffled over the whole
    set, which the paper found to overfit; as many per step as `batch_size` prompts have on average. For comparison."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: a third more time for a fraction
    of the memory. Ours.
    """
    max_tokens_per_micro_batch: PositiveInt = 4096
    """Prompt and answer tokens, padding included, of one forward pass; one prompt with its answers at least. Ours; does
    not change the result.
    """
    final_lr_fraction: ClosedUnitInterval = 0.1
    """The cosine schedule ends at this fraction of the peak. C.2."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping. Ours."""
    bias_demonstrations: PositiveInt = 256
    """Number of training demonstrations whose mean score the bias makes zero, spread evenly over the set and so over
    its sources. 3.5: the labelers' demonstrations; their number is ours."""
    adam_beta2: FractionBelowOne = 0.95
    """Adam's second decay; the first is 0.9. Appendix C."""
    epoch_evaluation_prompts: NonNegativeInt = 256
    """After each epoch, accuracy and loss on as many training and validation prompts, for the gap between them. Ours; 0
    skips it.
    """
    checkpoint_minutes: NonNegativeFloat = 10.0
    """Minutes between checkpoints, which are also saved at the end of each epoch; 0 saves after every step. A killed
    run loses at most the work since the last one. Ours."""
    learning_curve: list[OpenUnitInterval] = field(default_factory=list)
    """Fractions of the training prompts, say [0.25, 0.5], from which further models are trained and judged on the same
    test set. Ours.
    """

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "reward")
        if self.epochs == 0 and self.base is None:
            raise ValueError("reward.epochs=0 takes a reward model as it is: say in reward.base which")
        if self.epochs == 0 and self.learning_curve:
            raise ValueError("reward.learning_curve trains further models, but reward.epochs=0 trains none")
        if self.base is None:
            for name in ("revision", "chat_template", "top_layers"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"reward.{name} is of a reward.base of its own, and there is none: model.* says how the SFT "
                        "model is loaded"
                    )
