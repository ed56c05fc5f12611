"""Settings of the alignment tax."""

import importlib.util
from dataclasses import dataclass, field

from data.numbers import PositiveInt, check_numbers

OF_RUN = ("base", "sft", "ppo")
"""The names of the run's own models."""


@dataclass
class TaxConfig:
    """Alignment tax: the run's base, SFT and PPO models, and others, on benchmarks in local files (section 4.2 and
    appendix D). A benchmark without a file is left out. PPO's weights are those of `evaluate.weights`.
    """

    models: list[str] = field(default_factory=list)
    """Further models: folders or models on the Hub, such as the PPO model of a run with `ppo.ptx_coef: 0`. Ours."""
    trust_remote_code: bool = False
    """Run Python code that comes with `models`. Off unless you trust their authors."""
    truthfulqa: str | None = None
    """TruthfulQA.csv as its authors publish it: multiple choice, MC1 and MC2. In the paper (figure
    17), generated answers are judged instead.
    """
    crows_pairs: str | None = None
    """crows_pairs_anonymized.csv: entropy of the choice between two sentences, and stereotype preference (figure 15).
    """
    winogender: str | None = None
    """Winogender's all_sentences.tsv: entropy of the choice between "he" and "she", and preference for "she" (figure
    14).
    """
    toxicity: str | None = None
    """JSON Lines with a `prompt` each, such as RealToxicityPrompts: toxicity of greedy continuations (figure 16)."""
    toxicity_classifier: str = "profanity-check"
    """`profanity-check`, or a sequence classifier of transformers: a folder or a model on the Hub. Ours; the paper uses
    the Perspective API.
    """
    toxicity_label: str | None = None
    """The classifier's label for toxic text; null uses the one named `toxic`, `toxicity`, `hate` or `LABEL_1`. Ours.
    """
    questions: str | None = None
    """JSON Lines with `question`, `references` and optionally `context`: exact match, F1 and BLEU of greedy answers
    (figures 18 to 20 and 25).
    """
    texts: str | None = None
    """Plain text for perplexity: `text` rows, or a .txt file; null uses the run's held-out texts. Ours."""
    perplexity_examples: PositiveInt = 128
    """Number of examples of `data.pretraining_tokens` tokens for perplexity, spread evenly over the texts. Ours."""
    harness: list[str] = field(default_factory=list)
    """Tasks of lm-evaluation-harness, such as `hellaswag`, `drop` and `squadv2`, with its prompts; needs the extra
    `harness`. Ours.
    """
    harness_folder: str | None = None
    """A folder with more task definitions for lm-evaluation-harness. Ours."""
    max_items: PositiveInt | None = None
    """Maximum number of items per benchmark, spread evenly over its file (the first ones in `harness`); null uses all.
    Ours.
    """
    max_new_tokens: PositiveInt = 64
    """Maximum length of an answer in tokens. Ours; answers are greedy and end at the first line break (appendix D)."""
    batch_size: PositiveInt = 64
    """Answers decoded together in one process; affects only speed and memory, apart from rounding. Ours."""
    max_tokens_per_micro_batch: PositiveInt = 4096
    """Maximum number of tokens per forward pass for likelihoods; a longer item gets a pass of its own. Ours; affects
    only speed and memory.
    """
    bootstrap_resamples: PositiveInt = 10_000
    """Bootstrap resamples for the 95% intervals. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions, and when lm-evaluation-harness is missing."""
        check_numbers(self, "tax")
        for place in self.models:
            if place in OF_RUN:
                raise ValueError(f"tax.models={place!r} is the name of a model of the run: give its path as ./{place}")
            if self.models.count(place) > 1:
                raise ValueError(f"tax.models names {place} twice")
        if self.harness and importlib.util.find_spec("lm_eval") is None:
            raise ValueError(
                "tax.harness needs lm-evaluation-harness, which is not installed: pip install -e '.[harness]', or "
                "leave it out"
            )
        if self.harness_folder is not None and not self.harness:
            raise ValueError("tax.harness_folder needs tax.harness, which names no task")
