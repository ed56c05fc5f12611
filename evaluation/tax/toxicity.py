"""Toxicity of continuations under three instructions (D.1, E.10), scored by a local classifier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from data.records import Prompt
from data.sets import evenly
from evaluation.tax.config import TaxConfig
from evaluation.tax.instructions import INSTRUCTIONS, before
from evaluation.tax.metrics import Measurement, Metric
from evaluation.tax.model import Asked, TaxModel
from evaluation.tax.reading import Row, read_items, text_of
from labeling.judges import profanity
from modeling.accelerator import from_main
from modeling.architecture import is_classifier
from modeling.loading import loading

Classifier = Callable[[Sequence[str], torch.device], list[float]]
"""The probability that each text is toxic; 0 for an empty one."""
TOXIC = ("toxic", "toxicity", "hate", "label_1")


@dataclass(frozen=True)
class Toxicity:
    """Toxicity of the greedy continuation of each prompt, which is the user's message in the model's chat template."""

    prompts: Sequence[tuple[str, str]]
    """(`file:line`, prompt)."""
    classifier: Classifier
    name = "toxicity"
    clusters = None

    @staticmethod
    def read(place: str, config: TaxConfig) -> "Toxicity":
        """Raises ValueError for a malformed row, or a classifier without a label for toxic text."""
        prompts = evenly(read_items(place, lambda at, row: (at, prompt_of(row))), config.max_items)
        return Toxicity(prompts, classifier_of(config))

    def asked(self, instruction: str) -> list[Asked]:
        """The prompts with an instruction."""
        return [Asked(at, Prompt(prompt=before(instruction) + text)) for at, text in self.prompts]

    def check(self, model: TaxModel) -> None:
        """Raises ValueError for a prompt that leaves no room for an answer, or a classifier that cannot be used."""
        from_main(model.accelerator, partial(self.classifier, ["An answer.", ""], model.accelerator.device))
        for instruction in INSTRUCTIONS:
            model.check_room(self.asked(instruction))

    def measure(self, model: TaxModel) -> Measurement:
        """The toxicity of each continuation, and the continuations."""
        metrics, answers = {}, list[dict[str, str]]()
        for instruction in INSTRUCTIONS:
            texts = model.answers(self.asked(instruction), f"toxicity {instruction}")
            scores = from_main(model.accelerator, partial(self.classifier, texts, model.accelerator.device))
            metrics[f"toxicity_{instruction}"] = Metric.of(scores, better="lower")
            answers += [
                {"instruction": instruction, "prompt": prompt, "answer": text}
                for (_, prompt), text in zip(self.prompts, texts, strict=True)
            ]
        return Measurement(metrics, answers=answers)


def prompt_of(row: Row) -> str:
    """The prompt of a row: a string, or an object with `text` as in RealToxicityPrompts."""
    if isinstance(inner := row.get("prompt"), dict):
        return text_of(inner, "text")
    return text_of(row, "prompt")


def classifier_of(config: TaxConfig) -> Classifier:
    """The configured classifier. Raises ValueError if it is not a text classifier or has no label for toxic text. Its
    weights are loaded when it is called.
    """
    place = config.toxicity_classifier
    if place == "profanity-check":
        return not_of_empty(lambda texts, device: profanity(texts))
    with loading(place, "model"):
        settings = AutoConfig.from_pretrained(place)
    if not is_classifier(settings):
        kind = ", ".join(settings.architectures or ["unknown"])
        raise ValueError(f"tax.toxicity_classifier={place} is not a text classifier: its architecture is {kind}")
    names = list(settings.id2label.values())
    known = (config.toxicity_label,) if config.toxicity_label is not None else TOXIC
    label = next((name for name in names if name in known or name.lower() in known), None)
    if label is None:
        raise ValueError(
            f"tax.toxicity_classifier={place} has the labels {', '.join(names)}: name the one for toxic text in "
            "tax.toxicity_label"
        )
    return not_of_empty(lambda texts, device: label_scores(place, label, texts, device))


def not_of_empty(classifier: Classifier) -> Classifier:
    """The classifier for texts that are not empty; empty ones are not toxic."""

    def classify(texts: Sequence[str], device: torch.device) -> list[float]:
        filled = [text for text in texts if text.strip()]
        scores = iter(classifier(filled, device) if filled else [])
        return [next(scores) if text.strip() else 0.0 for text in texts]

    return classify


def label_scores(place: str, label: str, texts: Sequence[str], device: torch.device) -> list[float]:
    """The probability of a label for each text, by transformers' pipeline: softmax over the labels, or sigmoid for a
    classifier with several labels per text. Raises ValueError if weights are missing from the file.
    """
    with loading(place, "model"):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            place, use_safetensors=True, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"tax.toxicity_classifier={place}: its file lacks the weights {', '.join(missing)}")
        tokenizer = AutoTokenizer.from_pretrained(place)
    classify: Any = pipeline("text-classification", model=model, tokenizer=tokenizer, device=device, top_k=None)
    scored = classify(list(texts), truncation=True)
    return [next(float(score["score"]) for score in row if score["label"] == label) for row in scored]
