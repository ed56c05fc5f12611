"""Perplexity of plain text."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.sets import evenly
from data.tokenize import pretraining_chunks
from evaluation.tax.choices import Choice
from evaluation.tax.metrics import Measurement, Metric
from evaluation.tax.model import TaxModel


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of examples of equal length, as in `evaluate`, but with an interval and paired changes."""

    texts: Sequence[str]
    tokens: int
    """Tokens per example."""
    examples: int
    """Number of examples, spread evenly over the texts."""
    name = "perplexity"
    clusters = None

    def chunks(self, tokenizer: Any) -> list[list[int]]:
        """The examples. Raises ValueError if the texts are too short for one."""
        return evenly(pretraining_chunks(tokenizer, self.texts, self.tokens), self.examples)

    def check(self, model: TaxModel) -> None:
        """Raises ValueError if the examples are longer than the model's context, or the texts are too short."""
        if self.tokens > model.context:
            raise ValueError(
                f"data.pretraining_tokens={self.tokens} exceeds the context of {model.name}, {model.context}"
            )
        self.chunks(model.tokenizer)

    def measure(self, model: TaxModel) -> Measurement:
        """The perplexity of a token given those before it in its example."""
        chunks = self.chunks(model.tokenizer)
        scores = model.likelihoods([Choice("", chunk[:1], [chunk[1:]]) for chunk in chunks])
        rows = [[row[0], len(chunk) - 1.0] for row, chunk in zip(scores, chunks, strict=True)]
        digest = hashlib.sha256(json.dumps(chunks).encode()).hexdigest()
        return Measurement({"perplexity": Metric(rows, "perplexity", "lower")}, items=digest)
