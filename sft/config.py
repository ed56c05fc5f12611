"""Stage 1's settings."""

from dataclasses import dataclass, field
from typing import ClassVar

from data.numbers import (
    ClosedUnitInterval,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_numbers,
)
from modeling.config import GenerationSettings


@dataclass
class SFTConfig:
    """Supervised fine-tuning. Defaults are those of the paper's RL initialization (appendix C.3) unless marked ours."""

    section: ClassVar[str] = "sft"  # for messages
    epochs: NonNegativeInt = 2
    """Passes over the demonstrations. C.3: 2 for the model that RL starts from (C.1: 16 for the baseline). 0 uses
    the base, such as an instruction model, as the SFT model (ours)."""
    learning_rate: PositiveFloat = 5e-6
    """Peak learning rate. C.3: 5e-6 at 1.3B, 1.04e-5 at 6B, 2.45e-6 at 175B (C.1, for the baseline: 9.65e-6 at 1.3B
    and 6B, 5.03e-6 at 175B). With LoRA use about 2e-4."""
    batch_size: PositiveInt = 32
    """Sequences per optimizer step over all processes. C.3 and C.1: 32 at 1.3B and 6B, 8 at 175B."""
    micro_batch_size: PositiveInt = 8
    """Sequences per forward pass of one process. Ours; does not change the result, except in mixtures of experts, whose
    auxiliary loss is not a sum over micro-batches (nor over processes)."""
    activation_checkpointing: bool = False
    """Store only each layer's input and recompute its activations in the backward pass: 1.3 to 1.5 times the time for a
    fraction of the memory, with the same result. Ours."""
    final_lr_fraction: ClosedUnitInterval = 0.1
    """The cosine schedule ends at this fraction of the peak. C.3."""
    pretraining_fraction: FractionBelowOne = 0.1
    """Share of training sequences that are plain text, with the loss on all tokens. C.3: 10%."""
    residual_dropout: FractionBelowOne = 0.2
    """Residual dropout, in architectures that have it (GPT-2, GPT-NeoX, OPT; not Llama or Qwen); other dropout is off.
    C.1, for the baseline; for the RL initialization it is ours.
    """
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping. Ours."""
    max_train_examples: PositiveInt | None = None
    """Maximum number of demonstrations, spread evenly over the set; null uses all. Ours."""
    checkpoint_minutes: NonNegativeFloat = 10.0
    """Minutes between checkpoints, which are also saved at the end of each epoch; 0 saves after every step. A killed
    run loses at most the work since the last one. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, self.section)
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"{self.section}.micro_batch_size={self.micro_batch_size} does not divide "
                f"{self.section}.batch_size={self.batch_size}"
            )


@dataclass
class EpochScoringConfig(GenerationSettings):
    """How the reward model scores the baseline's epochs: it scores their answers to the prompts of the validation
    demonstrations. All ours.
    """

    max_prompts: PositiveInt | None = None
    """Maximum number of validation prompts, spread evenly over the set; null uses all. Ours."""
    answers_per_prompt: PositiveInt = 1
    """Answers sampled per prompt and epoch; more of them reduce the noise of each prompt. Ours."""
    bootstrap_resamples: PositiveInt = 10_000
    """Bootstrap resamples for the 95% intervals. Ours."""


@dataclass
class SFTBaselineConfig(SFTConfig):
    """The supervised baseline that the paper compares PPO with. Defaults are C.1's and section 3.5's; all other fields
    are those of `sft`.
    """

    section: ClassVar[str] = "sft_baseline"
    epochs: PositiveInt = 16
    """Passes over the demonstrations. C.1 and section 3.5: 16."""
    learning_rate: PositiveFloat = 9.65e-6
    """Peak learning rate. C.1: 9.65e-6 at 1.3B and 6B, 5.03e-6 at 175B. With LoRA use about 2e-4."""
    pretraining_fraction: FractionBelowOne = 0.0
    """Share of training sequences that are plain text. C.1 names none."""
    keep_every: PositiveInt = 1
    """Keep every n-th epoch as a candidate; the last one is always kept. Ours."""
    max_kept_gib: PositiveFloat = 20.0
    """Maximum size of all kept epochs in GiB, 1.07e9 bytes; a run that needs more stops before training. An epoch
    takes the size of an adapter with LoRA, and 4 bytes per weight otherwise. Ours."""
    scoring: EpochScoringConfig = field(default_factory=EpochScoringConfig)
    """How the reward model scores the epochs; it can be changed without training again."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        super().validate()
        how = self.scoring
        if how.answers_per_prompt > 1 and how.greedy:
            raise ValueError(
                f"sft_baseline.scoring.answers_per_prompt={how.answers_per_prompt} needs a temperature above 0 and a "
                "top_k other than 1: greedy answers to a prompt are identical"
            )
