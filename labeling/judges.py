"""Small judges that need no GPU: similarity of two texts, and offensiveness of one. All of them can be gamed; see
docs/labeling.md.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from profanity_check import predict_prob
from sklearn.feature_extraction.text import HashingVectorizer
from transformers import AutoModel, AutoTokenizer

from demo.assets import SENTENCE_ENCODER


class Closeness(Protocol):
    """Similarity of answers and references, in [0, 1]."""

    def __call__(self, answers: Sequence[str], references: Sequence[str]) -> list[float]: ...


class SentenceEncoder:
    """Cosine similarity of MiniLM sentence embeddings: about 0.7 for two texts on one topic, about 0 for unrelated
    ones.
    """

    def __init__(self, batch_size: int = 64) -> None:
        place = SENTENCE_ENCODER.path()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(place))
        self.model: Any = AutoModel.from_pretrained(str(place), use_safetensors=True, dtype=torch.float32).eval()
        self.batch_size = batch_size

    def __call__(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        texts = sorted({*answers, *references}, key=lambda text: (len(text), text))  # the same batches in every run
        vectors = dict(zip(texts, self.embed(texts), strict=True))
        return [max(0.0, float(vectors[a] @ vectors[r])) for a, r in zip(answers, references, strict=True)]

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Normalized means of the token vectors, of the first 256 tokens as the encoder was trained."""
        batches = []
        for start in range(0, len(texts), self.batch_size):
            tokens = self.tokenizer(
                list(texts[start : start + self.batch_size]),
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            hidden = self.model(**tokens).last_hidden_state
            weight = tokens["attention_mask"][:, :, None].float()
            batches.append(F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1))
        return torch.cat(batches)


class WordOverlap:
    """Cosine similarity of word counts: crude and fast, without a model."""

    def __init__(self) -> None:
        # The default pattern leaves out words of one character, such as the answers "B" and "4".
        pattern = r"(?u)\b\w+\b"
        self.vectorizer = HashingVectorizer(n_features=2**18, alternate_sign=False, token_pattern=pattern)

    def __call__(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        left, right = self.vectorizer.transform(list(answers)), self.vectorizer.transform(list(references))
        return [float(value) for value in np.asarray(left.multiply(right).sum(axis=1)).ravel()]


def closeness_judge(name: str) -> Closeness:
    """The judge with this name, `encoder` or `words`."""
    return SentenceEncoder() if name == "encoder" else WordOverlap()


def profanity(texts: Sequence[str]) -> list[float]:
    """Probability that each text is offensive (alt-profanity-check, a linear model over words)."""
    return [float(value) for value in predict_prob(list(texts))] if texts else []
