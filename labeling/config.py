"""How answers are sampled and who ranks them."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class SamplesConfig:
    """K answers a prompt from the SFT model (section 3.5: K between 4 and 9)."""

    answers_per_prompt: int = 4
    """K. Identical answers are merged, so a prompt may end with fewer."""
    max_new_tokens: int = 512
    """Answers are cut off after so many tokens."""
    temperature: float = 1.0
    """Sampling temperature. Ours."""
    batch_size: int = 64
    """Answers decoded side by side in one process. Changes speed and memory only."""
    max_train_prompts: int | None = None
    """Sample for only so many training prompts, spread evenly over the set; null takes all."""
    max_heldout_prompts: int | None = None
    """The same for each of the validation and test splits."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        if self.answers_per_prompt < 2:
            raise ValueError(f"samples.answers_per_prompt={self.answers_per_prompt} must be at least 2: one answer cannot be ranked")
        if self.temperature <= 0:
            raise ValueError(f"samples.temperature={self.temperature} must be above 0: greedy answers to a prompt are all the same")
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"samples.{name}={getattr(self, name)} must be at least 1")


@dataclass
class RubricWeights:
    """What the simulated labeler looks at, and how much each part counts. All ours. Parts are in [0, 1] before weighting."""

    closeness: float = 1.0
    """Helpful: how near the answer is to the reference answer, by the `closeness` judge."""
    complete: float = 0.3
    """Helpful: the answer ends by itself rather than being cut off."""
    repetition: float = 0.3
    """Subtracted: the share of word trigrams that repeat an earlier one."""
    profanity: float = 0.5
    """Subtracted: the probability of offensive language."""


@dataclass
class LabelsConfig:
    """The labeler that ranks the K answers."""

    labeler: Literal["simulated", "none"] = "simulated"
    """`simulated` ranks by a rubric, no person involved; `none` when data.rankings brings all of them."""
    closeness: Literal["encoder", "words"] = "encoder"
    """Judge of closeness: `encoder` is the embedded MiniLM sentence encoder, `words` is overlap of words (no model, for smoke runs)."""
    weights: RubricWeights = field(default_factory=RubricWeights)
    """The rubric."""
    tie_width: float = 0.05
    """Answers whose rubric scores fall into the same bin of this width tie."""
    disagreement: float = 0.1
    """Probability that the labeler misjudges an answer: its score is then drawn evenly between the prompt's lowest and highest.
    (Two human labelers of the paper disagreed on about 27% of pairs, section 3.4.)"""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        if self.tie_width < 0:
            raise ValueError(f"labels.tie_width={self.tie_width} must not be negative")
        if not 0 <= self.disagreement < 1:
            raise ValueError(f"labels.disagreement={self.disagreement} must be at least 0 and below 1")
