"""How answers are sampled and who ranks them."""

from dataclasses import dataclass, field
from typing import Literal

from data.numbers import (
    AtLeastTwo,
    FractionAboveZero,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_numbers,
)


@dataclass
class SamplesConfig:
    """K answers per prompt from the SFT model (section 3.5: K between 4 and 9)."""

    answers_per_prompt: AtLeastTwo = 4
    """K, at least 2, since one answer cannot be ranked. Section 3.5: 4 to 9. Identical answers are merged, so a prompt
    may have fewer."""
    max_new_tokens: PositiveInt = 512
    """Maximum length of an answer in tokens; appendix C allows 1,000."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature, above 0, since greedy answers to a prompt are all the same. Ours."""
    top_k: NonNegativeInt = 0
    """Sample from the so many likeliest tokens; 0 is all. Ours."""
    top_p: FractionAboveZero = 1.0
    """Sample from the fewest likeliest tokens that together have this probability; 1 is all. Ours."""
    batch_size: PositiveInt = 64
    """Answers decoded side by side in one process. Apart from rounding it changes speed and memory only. Ours."""
    max_train_prompts: PositiveInt | None = None
    """Sample for only so many training prompts, spread evenly over the set; null takes all. Ours."""
    max_heldout_prompts: PositiveInt | None = None
    """The same for each of the validation and test splits. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "samples")
        if self.top_k == 1:
            raise ValueError("samples.top_k=1 takes the likeliest token, and greedy answers are all the same: raise it")


@dataclass
class RubricWeights:
    """What the simulated labeler looks at, and how much each part counts. All ours. Parts are in [0, 1] before
    weighting.
    """

    closeness: NonNegativeFloat = 1.0
    """Helpful: how close the answer is to the reference answer, by the `closeness` judge. Ours."""
    complete: NonNegativeFloat = 0.3
    """Helpful: the answer ends by itself rather than being cut off. Ours."""
    repetition: NonNegativeFloat = 0.3
    """Subtracted: the share of word trigrams that repeat an earlier one. Ours."""
    profanity: NonNegativeFloat = 0.5
    """Subtracted: the probability of offensive language. Ours."""


@dataclass
class LabelsConfig:
    """The labeler that ranks the K answers."""

    labeler: Literal["simulated", "none"] = "simulated"
    """`simulated` ranks by a rubric, no person involved; `none` when data.rankings brings all of them. Ours."""
    closeness: Literal["encoder", "words"] = "encoder"
    """How closeness is measured: `encoder` is the embedded MiniLM sentence encoder, `words` is overlap of words (no
    model, for smoke runs). Ours."""
    weights: RubricWeights = field(default_factory=RubricWeights)
    """The rubric."""
    tie_width: NonNegativeFloat = 0.05
    """Answers whose rubric scores fall into the same bin of this width tie. Ours."""
    disagreement: FractionBelowOne = 0.1
    """Probability that the labeler misjudges an answer: its score is then drawn evenly between the prompt's lowest and
    highest. (Two human labelers of the paper disagreed on about 27% of pairs, section 3.4.)"""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "labels")
