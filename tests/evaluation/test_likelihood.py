"""Likelihoods of answers and the perplexity of texts, against a plain forward pass and log softmax for each.

pytest tests/evaluation/test_likelihood.py
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import Ranking
from evaluation.likelihood import likelihoods, per_token, perplexity, sft_baselines
from modeling.architecture import backbone_of
from modeling.config import ModelConfig
from modeling.load import load_causal
from modeling.models import policy_model
from modeling.tiny import ARCHITECTURES
from reward.batches import ranking_example
from tests.fakes import FakeAccelerator
from tests.reward.test_scoring import some_examples

ALONE = FakeAccelerator()


def by_hand(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(answer))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_they_are_the_sum_and_mean_of_the_answers_own_log_probabilities(
    tiny_causal: Callable[[str], Any], architecture: str, shared: bool
) -> None:
    model, items = tiny_causal(architecture), some_examples(1, 5)
    if not shared:
        backbone_of(model).shared_prefix_reason = "the test says so"
    totals = likelihoods(policy_model(model), items, 60, ALONE)
    means = per_token(totals, items)
    for item, total, mean in zip(items, totals, means, strict=True):
        expected = [by_hand(model, item.prompt, answer) for answer in item.answers]
        assert total == pytest.approx(expected, abs=2e-3)
        assert mean == pytest.approx(
            [e / len(answer) for e, answer in zip(expected, item.answers, strict=True)], abs=2e-3
        )


def test_the_sft_model_reads_rankings_with_its_own_tokenizer(
    tiny: Callable[[str], Path], tiny_tokenizer: Any, model_config: ModelConfig
) -> None:
    rankings = [
        Ranking(
            prompt="What is the capital of France?", completions=["Paris", "I do not know", "Paris"], ranks=[1, 2, 3]
        )
    ]
    items = [ranking_example(tiny_tokenizer, ranking) for ranking in rankings]
    # A reward model of another tokenizer sees other ids of the same record.
    foreign = [type(item)([1, 2, 3], [[4]] * 3, item.preference_mask_KK, ranking=item.ranking) for item in items]
    found = sft_baselines(tiny("gpt2"), model_config, foreign, 1000, ALONE)
    model = load_causal(tiny("gpt2"), model_config, tiny_tokenizer)
    expected = [by_hand(model, items[0].prompt, answer) for answer in items[0].answers]
    assert found["sft_likelihood"][0] == pytest.approx(expected, abs=1e-3)
    assert found["sft_likelihood_per_token"][0][1] == pytest.approx(expected[1] / len(items[0].answers[1]), abs=1e-3)
    assert expected[0] == expected[2] != expected[1]


@pytest.mark.parametrize("max_tokens", [1, 20, 4000])
def test_perplexity_is_over_tokens_and_padding_never_enters(
    tiny_causal: Callable[[str], Any], tiny_tokenizer: Any, max_tokens: int
) -> None:
    model = tiny_causal("llama")
    chunks = [
        tiny_tokenizer(text)["input_ids"]
        for text in ("A language model reads a text and guesses.", "The sky is blue.", "Paris, France")
    ]
    total, count = 0.0, 0
    with torch.no_grad():
        for chunk in chunks:
            ids = torch.tensor([chunk])
            total += float(model(ids, labels=ids).loss) * (len(chunk) - 1)
            count += len(chunk) - 1
    found = perplexity(policy_model(model), chunks, max_tokens, ALONE)
    assert found == pytest.approx(math.exp(total / count), rel=1e-5)
