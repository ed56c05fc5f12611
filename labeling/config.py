"""Settings of the samples and labels stages."""

from dataclasses import dataclass, field, fields
from typing import Literal

from data.numbers import AtLeastTwo, FractionBelowOne, NonNegativeFloat, PositiveInt, check_numbers
from labeling.llm_config import LLMConfig
from modeling.config import GenerationSettings


@dataclass
class SamplesConfig(GenerationSettings):
    """K answers per prompt from the SFT model (section 3.5: K between 4 and 9)."""

    answers_per_prompt: AtLeastTwo = 4
    """K, at least 2, since one answer cannot be ranked. Section 3.5: 4 to 9. Identical answers are merged, so a prompt
    may have fewer."""
    max_train_prompts: PositiveInt | None = None
    """Maximum number of training prompts, spread evenly over the set; null uses all. Ours."""
    max_heldout_prompts: PositiveInt | None = None
    """The same for each of the validation and test splits. Ours."""
    echo: bool = False
    """Adds the prompt's own text to the answers of each training prompt, to be ranked with them. SFT models hardly ever
    repeat a prompt, so a reward model that was trained on their answers alone may give a repeated prompt a high
    score, and PPO then learns to repeat prompts. Ours."""
    policy: str | None = None
    """Folder of the model that is sampled; null is the run's SFT model. Section 3.1: the current best policy."""
    leave_out: list[str] = field(default_factory=list)
    """Folders of earlier samples. Their training prompts are sampled again only if there are no others. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "samples")
        if self.temperature == 0:
            raise ValueError(
                f"samples.temperature={self.temperature!r} must be above 0: greedy answers to a prompt are identical"
            )
        if self.top_k == 1:
            raise ValueError("samples.top_k=1 is greedy, and greedy answers to a prompt are identical: raise it")


@dataclass
class RubricWeights:
    """Weights of the simulated labeler's rubric, whose parts are in [0, 1]. All ours."""

    closeness: NonNegativeFloat = 1.0
    """Helpfulness: similarity to the reference answer, measured by the `closeness` judge. Ours."""
    complete: NonNegativeFloat = 0.3
    """Helpfulness: the answer ends by itself rather than being cut off. Ours."""
    repetition: NonNegativeFloat = 0.3
    """Penalty: the share of word trigrams that repeat an earlier one. Ours."""
    copying: NonNegativeFloat = 0.5
    """Penalty: the share of word trigrams that are in the prompt. Ours."""
    profanity: NonNegativeFloat = 0.5
    """Penalty: the probability of offensive language. Ours."""


@dataclass
class LabelsConfig:
    """The labeler that ranks the K answers."""

    labeler: Literal["simulated", "human", "llm", "none"] = "simulated"
    """`simulated` ranks by a rubric, not by people; `human` takes the rankings that people saved in the web app of
    `make label`; `llm` lets a language model compare every two answers to a prompt; `none` if all rankings come from
    data.rankings. Ours."""
    llm: LLMConfig = field(default_factory=LLMConfig)
    """The language model of the labeler `llm`."""
    earlier: list[str] = field(default_factory=list)
    """Folders of earlier labels, whose rankings are added. Section 3.1: the rankings of all rounds."""
    closeness: Literal["encoder", "words"] = "encoder"
    """Judge of closeness: `encoder` uses the embedded MiniLM sentence encoder; `words` uses word overlap, without a
    model, for smoke runs. Ours.
    """
    weights: RubricWeights = field(default_factory=RubricWeights)
    """Weights of the rubric."""
    tie_width: NonNegativeFloat = 0.05
    """Answers tie if their rubric scores fall into the same bin of this width. Ours."""
    disagreement: FractionBelowOne = 0.1
    """Probability that the labeler misjudges an answer: its score is then drawn uniformly between the prompt's lowest
    and highest. (Two human labelers of the paper disagreed on about 27% of pairs, section 3.4.)
    """

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "labels")
        if not any(getattr(self.weights, part.name) for part in fields(self.weights)):
            raise ValueError("labels.weights are all 0, so all answers would tie: set one of them above 0")
        self.llm.validate("labels.llm")
        if self.labeler == "llm" and self.llm.endpoint is None:
            raise ValueError("labels.labeler=llm needs labels.llm.endpoint and labels.llm.model")
        if self.llm.max_prompts is not None:
            raise ValueError(
                "labels.llm.max_prompts is for the judge evaluate.llm: limit the prompts that are ranked with "
                "samples.max_train_prompts and samples.max_heldout_prompts"
            )
        if self.labeler == "none" and self.earlier:
            raise ValueError("labels.earlier needs a labeler: give earlier rankings in data.rankings instead")
