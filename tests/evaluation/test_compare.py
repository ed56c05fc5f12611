"""Win rates that favour neither side, and KL against plain transformers."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.intervals import Bootstrap
from data.records import Demonstration
from data.tokenize import encode_prompt
from evaluation.compare import (
    Answer,
    among,
    both_end,
    by_scores,
    kl_between,
    like_length,
    parts_table,
    preference,
    rubric_win_rates,
    scores_of,
    win_rate,
)
from evaluation.likelihood import answered_prompts, likelihoods
from labeling.config import LabelsConfig, RubricWeights
from modeling.config import GenerationSettings, ModelConfig
from modeling.generation import Generation, NativeGenerator
from modeling.load import autocast, load_causal
from modeling.models import policy_model
from tests.conftest import enliven
from tests.fakes import FakeAccelerator

ALONE = FakeAccelerator()
PROMPTS = [
    Demonstration(prompt=text, completion="So it is.")
    for text in ("Why?", "What is the capital of France?", "Write a poem.")
]
ROWS = st.lists(st.lists(st.integers(-32, 32).map(lambda n: n / 16), min_size=1, max_size=3), min_size=1, max_size=8)


def verdicts(ours: list[list[Answer]], theirs: list[list[Answer]], width: float = 0.0) -> Any:
    return by_scores(scores_of(ours), scores_of(theirs), width)


def rate(ours: list[list[Answer]], theirs: list[list[Answer]], width: float = 0.0) -> dict[str, float]:
    found = win_rate(verdicts(ours, theirs, width), Bootstrap(20))
    assert found is not None
    return found


def rate_among(ours: list[list[Answer]], theirs: list[list[Answer]], counts: Any) -> dict[str, float] | None:
    return win_rate(among(verdicts(ours, theirs), ours, theirs, counts), Bootstrap(20))


def answers(scores: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]] | None = None) -> list[list[Answer]]:
    lengths = tokens or [[1] * len(row) for row in scores]
    return [
        [Answer("", True, length, {"score": score}) for score, length in zip(row, part, strict=True)]
        for row, part in zip(scores, lengths, strict=True)
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "width", "expected"),
    [
        (1.0, 0.0, 0.5, 1.0),
        (0.0, 1.0, 0.5, 0.0),
        (0.3, 0.4, 0.5, 0.5),
        (0.4, 0.6, 0.5, 0.0),
        (0.3, 0.3, 0.0, 0.5),
        (0.30001, 0.3, 0.0, 1.0),
    ],
)
def test_a_preference_is_one_half_or_none(ours: float, theirs: float, width: float, expected: float) -> None:
    assert preference(ours, theirs, width) == expected


@settings(max_examples=50, deadline=None)
@given(data=st.data(), ours=ROWS, width=st.sampled_from([0.0, 0.25]))
def test_swapping_the_two_models_gives_one_minus_the_rate(
    data: st.DataObject, ours: list[list[float]], width: float
) -> None:
    theirs = [data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0]), min_size=1, max_size=3)) for _ in ours]
    won = rate(answers(ours), answers(theirs), width)["mean"]
    assert won + rate(answers(theirs), answers(ours), width)["mean"] == pytest.approx(1, abs=1e-12)

    def better(a: float, b: float) -> float:
        left, right = (math.floor(a * 4), math.floor(b * 4)) if width else (a, b)
        return 1.0 if left > right else 0.5 if left == right else 0.0

    means = []
    for left, right in zip(ours, theirs, strict=True):
        pairs = [better(a, b) for a in left for b in right]
        means.append(sum(pairs) / len(pairs))
    assert won == pytest.approx(sum(means) / len(means), abs=1e-12), (
        "a mean over prompts, whatever the number of answers"
    )


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, width=st.sampled_from([0.0, 0.05, 0.25]))
def test_a_model_against_itself_wins_exactly_half(rows: list[list[float]], width: float) -> None:
    found = rate(answers(rows), answers(rows), width)
    assert (found["mean"], found["low"], found["high"]) == (0.5, 0.5, 0.5)
    matched = rate_among(answers(rows), answers(rows), like_length)
    assert matched is not None
    assert matched["mean"] == 0.5


def test_only_pairs_of_like_length_count_when_length_is_matched() -> None:
    ours = answers([[1.0, 0.0], [1.0], [0.0]], [[10, 20], [100], [8]])
    theirs = answers([[0.5, 0.5], [0.0], [1.0]], [[8, 30], [10], [10]])
    # 10 and 8 match (2 <= 0.25 * 10), a win; 20 and 30 do not (10 > 7.5); 20 and 8, 10 and 30 do not. Nothing in the
    # second. A loss in the third.
    assert rate_among(ours, theirs, like_length) == pytest.approx({"mean": 0.5, "low": 0.0, "high": 1.0, "n": 2})
    # 20 and 30 match too at a third: a loss, which makes the first prompt a half.
    found = rate_among(ours, theirs, partial(like_length, slack=1 / 3))
    assert found is not None
    assert found["mean"] == pytest.approx((0.5 + 0) / 2)


def test_no_pair_of_like_length_gives_no_number() -> None:
    assert rate_among(answers([[1.0]], [[10]]), answers([[0.0]], [[40]]), like_length) is None


def test_pairs_without_a_verdict_are_left_out_and_swapping_sides_still_gives_one_minus_the_rate() -> None:
    found = [[[1.0, None], [0.5, None]], [[None, None]], [[0.0, 1.0, 0.25]]]
    # A win and a tie; nothing; a loss, a win and one labeler of four: means 3/4 and 5/12.
    rates = win_rate(found, Bootstrap(50, ["ann", "ann", "ben"]))
    assert rates is not None
    assert (rates["mean"], rates["n"], rates["users"]) == (pytest.approx((3 / 4 + 5 / 12) / 2), 2, 2)
    swapped = [[[None if v is None else 1 - v for v in column] for column in zip(*rows, strict=True)] for rows in found]
    other = win_rate(swapped, Bootstrap(50))
    assert other is not None
    assert rates["mean"] + other["mean"] == pytest.approx(1)
    assert win_rate([[[None]], []], Bootstrap(50)) is None


def rated(closeness: float, ended: bool, repetition: float = 0.0, profanity: float = 0.0) -> Answer:
    """By the default rubric: 1.0 closeness + 0.3 complete - 0.3 repetition - 0.5 profanity, without copying."""
    score = closeness + 0.3 * ended - 0.3 * repetition - 0.5 * profanity
    parts = {"closeness": closeness, "complete": float(ended), "repetition": repetition, "profanity": profanity}
    return Answer("", ended, 5, parts | {"copying": 0.0, "score": score})


def test_a_win_due_to_the_bonus_for_ending_disappears_without_it() -> None:
    ours = [[rated(0.4, True)], [rated(0.5, True)], [rated(0.6, True, profanity=0.2)], [rated(0.72, True)]]
    theirs = [[rated(0.4, False)], [rated(0.6, False)], [rated(0.7, True)], [rated(0.72, True, repetition=0.5)]]
    found = rubric_win_rates(ours, theirs, LabelsConfig(), Bootstrap(50))
    means = {
        name: {part: rate["mean"] for part, rate in found[name].items()}
        for name in ("win_rate_without", "win_rate_by_part")
    }
    # Whole: win, win (0.8 against 0.6), loss (0.8 against 1.0), win (1.02 against 0.87).
    assert rate(ours, theirs, 0.05)["mean"] == 3 / 4
    # Without ending: tie, loss, loss, win. Without closeness: 0.3, 0, then 0.2 and 0.3, then 0.3 and 0.15.
    # Without repetition the last is a tie; without profanity the third is still a loss, 0.9 against 1.0.
    assert list(means["win_rate_without"].values()) == [3 / 4, 1.5 / 4, 2.5 / 4, 3 / 4, 3 / 4]
    # Alone: tie, loss, loss, tie; win, win, tie, tie; tie, tie, tie, win; four ties; tie, tie, loss, tie.
    assert list(means["win_rate_by_part"].values()) == [1 / 4, 3 / 4, 2.5 / 4, 2 / 4, 1.5 / 4]
    # Both end in the last two alone: a loss and a win.
    ending = rate_among(ours, theirs, both_end)
    assert ending is not None
    assert (ending["mean"], ending["n"]) == (1 / 2, 2)


def test_parts_without_weight_are_left_out_and_cut_off_answers_give_no_pair_that_ends() -> None:
    ours, theirs = [[rated(0.4, True)]], [[rated(0.1, False)]]
    found = rubric_win_rates(
        ours, theirs, LabelsConfig(weights=RubricWeights(repetition=0.0, copying=0.0, profanity=0.0)), Bootstrap(20)
    )
    assert list(found["win_rate_without"]) == list(found["win_rate_by_part"]) == ["closeness", "complete"]
    assert rate_among(ours, theirs, both_end) is None
    alone = LabelsConfig(weights=RubricWeights(complete=0.0, repetition=0.0, copying=0.0, profanity=0.0))
    assert rubric_win_rates(ours, theirs, alone, Bootstrap(20))["win_rate_without"] == {}, "nothing would judge"


def test_the_table_of_parts_is_a_mean_over_prompts() -> None:
    names = ("closeness", "complete", "repetition", "copying", "profanity", "score", "chrf")
    rows = [
        [Answer("", True, 2, dict.fromkeys(names, 0.0)), Answer("", True, 4, dict.fromkeys(names, 1.0))],
        [Answer("", True, 7, dict.fromkeys(names, 1.0))],
    ]
    table = parts_table({"sft": rows, "ppo": rows[::-1]}, Bootstrap(20))
    assert set(table["sft"]) == {*names, "tokens"}
    assert {table[model][name]["mean"] for model in table for name in names} == {0.75}
    assert table["sft"]["tokens"]["mean"] == table["ppo"]["tokens"]["mean"] == 5.0


@pytest.fixture(scope="module")
def model(tiny: Any, model_config: ModelConfig, tiny_tokenizer: Any) -> Any:
    return enliven(load_causal(tiny("llama"), model_config, tiny_tokenizer))


@pytest.fixture(scope="module")
def other(tiny: Any, model_config: ModelConfig, tiny_tokenizer: Any) -> Any:
    """The same model after a few steps of some training."""
    other = enliven(load_causal(tiny("llama"), model_config, tiny_tokenizer))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return other


def sampled(model: Any, tokenizer: Any, temperature: float) -> list[list[Generation]]:
    prompts = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS for _ in range(2)]
    flat = NativeGenerator().generate(model, prompts, list(range(6)), GenerationSettings(7, temperature))
    return [flat[0:2], flat[2:4], flat[4:6]]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("max_tokens", [1, 4000])
def test_kl_is_the_mean_log_ratio_worked_out_with_plain_transformers(
    model: Any, other: Any, tiny_tokenizer: Any, temperature: float, max_tokens: int
) -> None:
    given = sampled(model, tiny_tokenizer, temperature)
    given[0][1] = Generation(
        given[0][1].ids[:3], given[0][1].logprobs[:3], False
    )  # ragged, so that padding could do harm
    items = answered_prompts(tiny_tokenizer, PROMPTS, given)
    ours, theirs = (likelihoods(policy_model(of), items, max_tokens, ALONE, temperature) for of in (model, other))
    found = kl_between(ours, theirs)

    def logprob(of: Any, prompt: list[int], response: list[int]) -> float:
        logits = of(torch.tensor([prompt + response])).logits[0].double() / temperature
        return sum(float(logits[len(prompt) + t - 1].log_softmax(-1)[token]) for t, token in enumerate(response))

    with torch.no_grad():
        for prompt, row, value in zip(PROMPTS, given, found, strict=True):
            ids = encode_prompt(tiny_tokenizer, prompt)
            ratios = [logprob(model, ids, g.ids) - logprob(other, ids, g.ids) for g in row]
            # float32 log-probabilities of about 6 nats, seven of them: each off by a few 1e-7 of that
            assert value == pytest.approx(sum(ratios) / 2, abs=5e-5)
    assert max(map(abs, found)) > 0.05, "the two models differ, so the test can fail"


def test_under_bfloat16_the_kl_to_an_equal_model_is_exactly_zero(
    model: Any,
    tiny: Any,
    tiny_tokenizer: Any,
    model_config: ModelConfig,
) -> None:
    config = replace(model_config, precision="bfloat16")
    copy = enliven(load_causal(tiny("llama"), config, tiny_tokenizer))
    policies = [policy_model(of, torch.bfloat16) for of in (model, copy)]
    with autocast(config, ALONE.device):
        given = sampled(model, tiny_tokenizer, 0.6)
    items = answered_prompts(tiny_tokenizer, PROMPTS, given)
    ours, theirs = (likelihoods(of, items, 4000, ALONE, 0.6) for of in policies)
    assert kl_between(ours, theirs) == [0.0, 0.0, 0.0]
    # 14 tokens at about 6 nats; log-probabilities recorded while decoding come from another computation.
    assert ours[0] != [sum(answer.logprobs or ()) for answer in given[0]]
