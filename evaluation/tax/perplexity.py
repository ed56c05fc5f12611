"""Perplexity of plain text."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.tokenize import chunks_of_documents
from evaluation.tax.choices import Choice
from evaluation.tax.metrics import Measurement, Metric
from evaluation.tax.model import TaxModel


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of examples of at most `tokens` tokens, as in `evaluate`, but with an interval and paired changes. An
    item is a document, since its examples are not independent.
    """

    texts: Sequence[str]
    tokens: int
    """Tokens per example; the last of a text can be shorter."""
    examples: int
    """Number of examples, spread evenly over the texts."""
    name = "perplexity"
    clusters = None

    def chunks(self, tokenizer: Any) -> tuple[list[list[int]], list[int]]:
        """(the examples, the number of each one's document). Raises ValueError if the texts are too short for one."""
        return chunks_of_documents(tokenizer, self.texts, self.tokens, self.examples)

    def check(self, model: TaxModel) -> None:
        """Raises ValueError if the examples are longer than the model's context, or the texts are too short."""
        if self.tokens > model.context:
            raise ValueError(
                f"data.pretraining_tokens={self.tokens} exceeds the context of {model.name}, {model.context}"
            )
        self.chunks(model.tokenizer)

    def measure(self, model: TaxModel) -> Measurement:
        """The perplexity of a token given those before it in its example."""
        chunks, documents = self.chunks(model.tokenizer)
        scores = model.likelihoods([Choice("", chunk[:1], [chunk[1:]]) for chunk in chunks])
        sums: dict[int, list[float]] = {}
        for row, chunk, document in zip(scores, chunks, documents, strict=True):
            logprob, tokens = sums.get(document, [0.0, 0.0])
            sums[document] = [logprob + row[0], tokens + len(chunk) - 1]
        rows = list(sums.values())
        digest = hashlib.sha256(json.dumps([chunks, documents]).encode()).hexdigest()
        return Measurement({"perplexity": Metric(rows, "perplexity", "lower")}, items=digest)
