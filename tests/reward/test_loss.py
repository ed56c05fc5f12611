"""The ranking loss, against enumeration in float64.

pytest tests/reward/test_loss.py
"""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reward.loss import pairwise_loss, preference_mask, ranking_loss

Prompt = tuple[list[float], list[int | None]]


def enumerated(prompts: list[Prompt]) -> float:
    """Equation 1 with ties left out, by hand: scores and ranks of one prompt after the other."""
    means = []
    for scores, ranks in prompts:
        terms = []
        for better, high in zip(scores, ranks, strict=True):
            for worse, low in zip(scores, ranks, strict=True):
                if high is not None and low is not None and high < low:
                    terms.append(math.log1p(math.exp(-(better - worse))))
        if terms:
            means.append(sum(terms) / len(terms))
    return sum(means) / len(means) if means else 0.0


def tensors(prompts: list[Prompt], width: int = 0, fill: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(scores_BK, ranks_BK, mask_BK) in float64; an answer without a rank is masked and keeps `fill` as its score."""
    width = max([width, *(len(scores) for scores, _ in prompts)])
    scores_BK = torch.full((len(prompts), width), fill, dtype=torch.float64)
    ranks_BK, mask_BK = (
        torch.zeros((len(prompts), width), dtype=torch.long),
        torch.zeros((len(prompts), width), dtype=torch.bool),
    )
    for row, (scores, ranks) in enumerate(prompts):
        for column, (score, rank) in enumerate(zip(scores, ranks, strict=True)):
            if rank is not None:
                scores_BK[row, column], ranks_BK[row, column], mask_BK[row, column] = score, rank, True
    return scores_BK, ranks_BK, mask_BK


def some_prompts(seed: int, count: int = 6) -> list[Prompt]:
    """Ragged K from 2 to 9, with ties and answers that nobody ranked; the first has a strict pair for certain."""
    chance = random.Random(seed)
    prompts: list[Prompt] = [([0.3, -0.9, 1.1], [2, 1, 2])]
    for _ in range(count - 1):
        answers = chance.randint(2, 9)
        prompts.append(
            (
                [chance.gauss(0, 2) for _ in range(answers)],
                [chance.choice([None, 1, 2, 3, 4, 5]) for _ in range(answers)],
            )
        )
    return prompts


@pytest.mark.parametrize("seed", range(20))
def test_it_equals_enumeration(seed: int) -> None:
    prompts = some_prompts(seed)
    assert ranking_loss(*tensors(prompts)).item() == pytest.approx(enumerated(prompts), rel=1e-12)


def test_two_prompts_by_hand() -> None:
    # Three strict pairs with margins 1, 3 and 2; then one with margin -1, beside a tie that drops out.
    first = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-3)) + math.log1p(math.exp(-2))) / 3
    second = (math.log1p(math.exp(1)) + math.log1p(math.exp(-1))) / 2
    scores_BK = torch.tensor([[3.0, 2.0, 0.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    ranks_BK = torch.tensor([[1, 2, 3], [1, 2, 1]])
    assert ranking_loss(scores_BK, ranks_BK, torch.ones(2, 3)).item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_two_answers_are_the_usual_pairwise_loss() -> None:
    scores_BK = torch.tensor([[2.0, -1.0], [0.5, 0.75], [-3.0, -3.5]], dtype=torch.float64)
    ranks_BK = torch.tensor([[1, 2], [1, 2], [2, 1]])
    chosen, rejected = scores_BK.gather(1, ranks_BK.argsort(1)).unbind(1)
    expected = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    torch.testing.assert_close(ranking_loss(scores_BK, ranks_BK, torch.ones(3, 2)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_equal_scores_cost_log_two(seed: int) -> None:
    scores_BK, ranks_BK, mask_BK = tensors(some_prompts(seed))
    assert ranking_loss(torch.full_like(scores_BK, 4.2), ranks_BK, mask_BK).item() == pytest.approx(
        math.log(2), rel=1e-14
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_constant_a_prompt_and_the_order_of_answers_and_prompts_change_nothing(seed: int) -> None:
    scores_BK, ranks_BK, mask_BK = tensors(some_prompts(seed))
    expected = ranking_loss(scores_BK, ranks_BK, mask_BK).item()
    generator = torch.Generator().manual_seed(seed)
    shift_B1 = 10 * torch.randn(scores_BK.shape[0], 1, generator=generator, dtype=torch.float64)
    assert ranking_loss(scores_BK + shift_B1, ranks_BK, mask_BK).item() == pytest.approx(expected, rel=1e-12)
    order_K, order_B = (
        torch.randperm(scores_BK.shape[1], generator=generator),
        torch.randperm(scores_BK.shape[0], generator=generator),
    )
    shuffled = [tensor[order_B][:, order_K] for tensor in (scores_BK, ranks_BK, mask_BK)]
    assert ranking_loss(*shuffled).item() == pytest.approx(expected, rel=1e-12)
    # Only the order of the ranks counts, not their distance.
    assert ranking_loss(scores_BK, ranks_BK**3, mask_BK).item() == pytest.approx(expected, rel=1e-12)


def test_all_tied_costs_nothing_and_moves_nothing() -> None:
    scores_BK = torch.tensor([[1.0, -2.0, 30.0], [5.0, 5.0, 5.0]], requires_grad=True)
    for ranks_BK, mask_BK in (
        (torch.full((2, 3), 2), torch.ones(2, 3)),
        (torch.tensor([[1, 2, 3]] * 2), torch.tensor([[1, 0, 0], [0, 0, 0]])),
    ):
        loss = ranking_loss(scores_BK, ranks_BK, mask_BK)
        (gradient,) = torch.autograd.grad(loss, scores_BK)
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros(2, 3))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_what_stands_in_masked_scores_never_enters_loss_or_gradient(poison: float) -> None:
    prompts = some_prompts(1)
    found = []
    for fill in (0.0, poison):
        scores_BK, ranks_BK, mask_BK = tensors(prompts, width=10, fill=fill)
        assert not mask_BK.all()
        scores_BK.requires_grad_(True)
        loss = ranking_loss(scores_BK, ranks_BK, mask_BK)
        (gradient,) = torch.autograd.grad(loss, scores_BK)
        found.append((loss, gradient))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not found[1][1][~mask_BK].any()


def test_nan_in_an_answer_that_nobody_compared_never_enters_the_pairwise_loss() -> None:
    scores_BK = torch.tensor([[1.0, float("nan"), 0.0]], requires_grad=True)
    preference_mask_BKK = torch.zeros(1, 3, 3, dtype=torch.bool)
    preference_mask_BKK[0, 0, 2] = True
    loss = pairwise_loss(scores_BK, preference_mask_BKK)
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)
    assert scores_BK.grad is not None
    assert scores_BK.grad.tolist()[0] == pytest.approx([-1 / (1 + math.e), 0.0, 1 / (1 + math.e)], rel=1e-6)


def test_a_nan_that_was_compared_does_not_hide() -> None:
    assert ranking_loss(torch.tensor([[float("nan"), 1.0]]), torch.tensor([[1, 2]]), torch.ones(1, 2)).isnan()


@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_the_derivative_by_hand(seed: int) -> None:
    prompts = some_prompts(seed)
    scores_BK, ranks_BK, mask_BK = tensors(prompts)
    scores_BK.requires_grad_(True)
    ranking_loss(scores_BK, ranks_BK, mask_BK).backward()
    expected_BK = torch.zeros_like(scores_BK)
    paired = 0
    for row, (scores, ranks) in enumerate(prompts):
        pairs = [
            (i, j)
            for i, high in enumerate(ranks)
            for j, low in enumerate(ranks)
            if high is not None and low is not None and high < low
        ]  # fmt: skip
        paired += bool(pairs)
        for i, j in pairs:
            slope = 1 / (1 + math.exp(scores[i] - scores[j])) / len(pairs)
            expected_BK[row, i] -= slope
            expected_BK[row, j] += slope
    torch.testing.assert_close(scores_BK.grad, expected_BK.detach() / paired, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("parts", [[1, 5], [2, 2, 2], [1] * 6])
def test_parts_add_up_to_the_whole(parts: list[int]) -> None:
    prompts = [*some_prompts(2, count=5), ([1.0, 2.0], [1, 1])]
    scores_BK, ranks_BK, mask_BK = tensors(prompts)
    paired = sum(1 for prompt in prompts if enumerated([prompt]) != 0.0)
    assert paired < len(prompts), "one prompt without a pair, which must not count"
    pieces = zip(scores_BK.split(parts), ranks_BK.split(parts), mask_BK.split(parts), strict=True)
    total = sum(ranking_loss(*piece, normalizer=paired).item() for piece in pieces)
    assert total == pytest.approx(enumerated(prompts), rel=1e-12)


def test_margins_far_from_zero_stay_finite_and_exact() -> None:
    scores_BK = torch.tensor([[0.0, 500.0], [500.0, 0.0]], requires_grad=True)
    loss = ranking_loss(scores_BK, torch.tensor([[1, 2], [1, 2]]), torch.ones(2, 2))
    loss.backward()
    assert loss.item() == pytest.approx(250.0)
    assert scores_BK.grad is not None
    assert scores_BK.grad.tolist() == [[-0.5, 0.5], [0.0, 0.0]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(1, 4)), st.booleans()), min_size=2, max_size=7))
def test_pairs_are_strict_between_answers_that_are_there_and_never_both_ways(
    answers: list[tuple[int | None, bool]],
) -> None:
    ranks_BK = torch.tensor([[rank or 0 for rank, _ in answers]])
    mask_BK = torch.tensor([[rank is not None and there for rank, there in answers]])
    preference_mask_KK = preference_mask(ranks_BK, mask_BK)[0]
    for i, (high, i_there) in enumerate(answers):
        for j, (low, j_there) in enumerate(answers):
            expected = i_there and j_there and high is not None and low is not None and high < low
            assert preference_mask_KK[i, j].item() is expected
    assert not (preference_mask_KK & preference_mask_KK.T).any()
