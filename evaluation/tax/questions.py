"""Questions with reference answers: exact match, F1 and BLEU of greedy answers.

The normalization is SQuAD's (Rajpurkar et al. 2016, 2018).
"""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from data.records import Prompt
from data.sets import evenly
from evaluation.tax.config import TaxConfig
from evaluation.tax.metrics import Measurement, Metric, bleu_row
from evaluation.tax.model import Asked, TaxModel
from evaluation.tax.reading import Row, read_items, text_of

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(answer: str) -> list[str]:
    """The words of an answer in lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split()


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference after normalization, else 0."""
    return float(any(normalized(answer) == normalized(reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """The best F1 of the answer's words with those of a reference. An empty reference matches an empty answer only."""
    return max(word_f1(normalized(answer), normalized(reference)) for reference in references)


def word_f1(words: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of two bags of words."""
    if not words or not expected:
        return float(words == expected)
    return 2 * (Counter(words) & Counter(expected)).total() / (len(words) + len(expected))


@dataclass(frozen=True)
class Question:
    """A question with the answers that count as right."""

    place: str
    text: str
    references: Sequence[str]
    context: str = ""

    @staticmethod
    def of(place: str, row: Row) -> "Question":
        """A row of JSON Lines. Raises ValueError for a malformed one."""
        found = row.get("references")
        if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
            raise ValueError("'references' must be a list of one or more strings; for an empty answer use [\"\"]")
        context = text_of(row, "context") if row.get("context") is not None else ""
        return Question(place, text_of(row, "question"), found, context)

    @property
    def prompt(self) -> Prompt:
        """The user's message."""
        return Prompt(prompt=f"{self.context}\n\n{self.text}" if self.context else self.text)


@dataclass(frozen=True)
class Questions:
    """Greedy answers to questions, each the user's message in the model's chat template, below its context if any."""

    questions: Sequence[Question]
    name = "questions"

    @property
    def clusters(self) -> list[Hashable]:
        """The context of each question: questions about one context are resampled together."""
        return [asked.context or asked.place for asked in self.questions]

    @staticmethod
    def read(place: str, config: TaxConfig) -> "Questions":
        """Raises ValueError for a malformed row."""
        return Questions(evenly(read_items(place, Question.of), config.max_items))

    def asked(self) -> list[Asked]:
        """The prompts."""
        return [Asked(asked.place, asked.prompt) for asked in self.questions]

    def check(self, model: TaxModel) -> None:
        """Raises ValueError for a question that leaves no room for an answer."""
        model.check_room(self.asked())

    def measure(self, model: TaxModel) -> Measurement:
        """Exact match and F1 from 0 to 1, BLEU from 0 to 100, and the answers."""
        texts = model.answers(self.asked(), "questions")
        pairs = [(text, asked.references) for text, asked in zip(texts, self.questions, strict=True)]
        metrics = {
            "exact_match": Metric.of([exact_match(*pair) for pair in pairs]),
            "f1": Metric.of([f1(*pair) for pair in pairs]),
            "bleu": Metric([bleu_row(*pair) for pair in pairs], "bleu"),
        }
        rows = zip(self.questions, texts, strict=True)
        return Measurement(metrics, answers=[{"prompt": asked.prompt.text, "answer": text} for asked, text in rows])
