"""Bias by likelihood: CrowS-Pairs (Nangia et al. 2020) and Winogender (Rudinger et al. 2018).

The paper reports the entropy of the choice between the two sentences of a pair, in bits, under three instructions
(D.1). 1 bit means no preference.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from data.sets import evenly
from evaluation.tax.choices import Choice, encode_choices, refuse_long
from evaluation.tax.config import TaxConfig
from evaluation.tax.instructions import INSTRUCTIONS, before
from evaluation.tax.metrics import Measurement, Metric
from evaluation.tax.model import TaxModel
from evaluation.tax.reading import Row, read_items, text_of

SENTENCE_NAME = re.compile(r"(.+)\.(.+)\.(\d+)\.(male|female|neutral)\.txt")


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the group they are about."""

    place: str
    first: str
    """The sentence whose preference is reported."""
    second: str
    cluster: Hashable = None


def entropy_bits(first: float, second: float) -> float:
    """Entropy of the choice between two texts with these log-probabilities (nats)."""
    margin = first - second
    nats = expit(margin) * np.logaddexp(0, -margin) + expit(-margin) * np.logaddexp(0, margin)
    return float(nats / np.log(2))


def preferred(first: float, second: float) -> float:
    """1 if the first is more probable, 0 if the second is, 1/2 if they are equal."""
    return 0.5 + 0.5 * ((first > second) - (first < second))


@dataclass(frozen=True)
class SentencePairs:
    """The likelihood of whole sentences as plain text, after each of the paper's three instructions."""

    name: str
    pairs: Sequence[Pair]
    preference: str
    """Name of the share of pairs whose first sentence is more probable."""

    @property
    def clusters(self) -> list[Hashable] | None:
        """The group of each pair; None if pairs are independent."""
        known = [pair.cluster for pair in self.pairs]
        return None if None in known else known

    @staticmethod
    def read_crows_pairs(place: str, config: TaxConfig) -> "SentencePairs":
        """The pairs of crows_pairs_anonymized.csv; the first sentence is the more stereotyping one."""

        def pair(at: str, row: Row) -> Pair:
            return Pair(at, text_of(row, "sent_more"), text_of(row, "sent_less"))

        return SentencePairs("crows_pairs", evenly(read_items(place, pair), config.max_items), "stereotype")

    @staticmethod
    def read_winogender(place: str, config: TaxConfig) -> "SentencePairs":
        """The pairs of all_sentences.tsv with "she" (first) and "he".

        Only those that name the other participant: 120, as many as the paper has; the file has 120 more about
        "someone". Pairs of one occupation are resampled together. Raises ValueError if half of a pair is missing.
        """
        sentences = dict(read_items(place, named_sentence))
        pairs = []
        for (occupation, other, answer, gender), (at, text) in sentences.items():
            if other == "someone" or gender == "neutral":
                continue
            if gender == "male":
                if (occupation, other, answer, "female") not in sentences:
                    raise ValueError(f"{at}: the sentence with 'female' instead of 'male' is missing")
                her = sentences[occupation, other, answer, "female"][1]
                pairs.append(Pair(at, her, text, occupation))
            elif (occupation, other, answer, "male") not in sentences:
                raise ValueError(f"{at}: the sentence with 'male' instead of 'female' is missing")
        if not pairs:
            raise ValueError(f"{place}: there is no pair of a sentence with 'male' and one with 'female'")
        return SentencePairs("winogender", evenly(pairs, config.max_items), "female")

    def choices(self, tokenizer: Any, instruction: str) -> list[Choice]:
        """The two sentences of each pair."""
        context = before(instruction)
        return encode_choices(tokenizer, [(pair.place, context, [pair.first, pair.second]) for pair in self.pairs])

    def check(self, model: TaxModel) -> None:
        """Raises ValueError for a sentence that does not fit the model's context."""
        for instruction in INSTRUCTIONS:
            refuse_long(self.choices(model.tokenizer, instruction), model.context, model.name)

    def measure(self, model: TaxModel) -> Measurement:
        """Entropy and preference under each instruction."""
        metrics = {}
        for instruction in INSTRUCTIONS:
            scores = model.likelihoods(self.choices(model.tokenizer, instruction))
            metrics[f"entropy_{instruction}"] = Metric.of([entropy_bits(*row) for row in scores])
            share = Metric.of([preferred(*row) for row in scores], better="neither")
            metrics[f"{self.preference}_{instruction}"] = share
        return Measurement(metrics)


Sentence = tuple[tuple[str, str, str, str], tuple[str, str]]
"""(occupation, other participant, answer, gender) and (`file:line`, sentence)."""


def named_sentence(at: str, row: Row) -> Sentence:
    """A row of all_sentences.tsv. Raises ValueError for a malformed one."""
    name = text_of(row, "sentid")
    if (found := SENTENCE_NAME.fullmatch(name)) is None:
        raise ValueError(f"'sentid' must be occupation.participant.answer.gender.txt, found {name!r}")
    occupation, other, answer, gender = found.groups()
    return (occupation, other, answer, gender), (at, text_of(row, "sentence"))
