"""One draw: exact, and honest about when rounding could have chosen the token.

pytest tests/modeling/engines/test_sampling.py
"""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from modeling.engines import sampling
from modeling.engines.sampling import LEVELS, draw, uniforms

LAST = 1 - 2.0**-53
"""The largest float64 below 1, which is the largest uniform number there is."""


def at(*levels: float) -> Tensor:
    return torch.tensor([levels], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
@pytest.mark.parametrize("vocabulary", [7, 90])
def test_tokens_come_as_often_as_softmax_says(temperature: float, vocabulary: int) -> None:
    logits_V = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
    logits_V[4] = -float("inf")
    draws = 100_000
    uniform_BL = torch.rand((draws, LEVELS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = draw(logits_V.expand(draws, -1), uniform_BL, temperature)
    weights = np.exp(logits_V.double().numpy() / temperature)
    expected = weights / weights.sum()
    counts = np.bincount(drawn.token_B.numpy(), minlength=vocabulary)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], draws * expected[possible]).pvalue > 1e-4
    torch.testing.assert_close(
        drawn.logprob_B.double(), torch.from_numpy(np.log(expected[drawn.token_B.numpy()])), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, 1 - 2.0**-24, LAST])
def test_no_uniform_number_draws_a_word_of_probability_zero(uniform: float) -> None:
    # -200 underflows to zero in float32, as -inf does.
    never = torch.tensor([-float("inf"), -200.0])
    logits_V = torch.cat([never, torch.tensor([0.0]), never, torch.tensor([1.0]), never])
    for first in (0.0, 0.5, LAST):
        drawn = draw(logits_V[None], at(uniform, first, uniform, first), 1.0)
        assert drawn.token_B.item() in (2, 5)
        assert drawn.logprob_B.item() == pytest.approx(
            logits_V.double().log_softmax(-1)[drawn.token_B].item(), abs=1e-6
        )


@pytest.mark.parametrize("vocabulary", [2, 3, 17, 512, 50_000])
def test_the_highest_and_lowest_uniform_numbers_stay_inside_the_vocabulary(vocabulary: int) -> None:
    logits_BV = torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(0))
    logits_BV[:, -1] = logits_BV[:, 0] = -float("inf")
    logits_BV[:, -2] = 1.0
    for uniform in (0.0, LAST):
        drawn = draw(logits_BV, torch.full((16, LEVELS), uniform, dtype=torch.float64), 1.0)
        assert drawn.token_B.max() < vocabulary - 1
        assert drawn.logprob_B.isfinite().all()


def test_the_inverse_distribution_is_taken_at_its_steps() -> None:
    # In base 2, last digit first: 0.25 to even tokens; then 0.5 to token 0 among those, and a third to token 1 among
    # the odd ones.
    logits_BV = torch.tensor([0.125, 0.25, 0.125, 0.5]).log()[None]
    cases = {(0.249, 0.499): 0, (0.249, 0.501): 2, (0.251, 0.333): 1, (0.251, 0.334): 3, (0.0, 0.0): 0, (LAST, LAST): 3}
    for (first, second), token in cases.items():
        assert draw(logits_BV, at(first, second, 0.3, 0.9), 1.0).token_B.item() == token


def test_a_draw_is_close_near_a_border_and_only_there() -> None:
    logits_BV = torch.tensor([0.125, 0.25, 0.125, 0.5]).log()[None]
    # The border at 0.25, between groups of 0.25 and 0.75: spread log 4, deviation sqrt(0.75^2 * 0.25^2 + 0.25^2 *
    # 0.75^2).
    margin = sampling.NOISE * (1 + np.log(4)) * np.sqrt(2) * 0.75 * 0.25
    for uniform, close in (
        (0.25, True),
        (0.25 - 0.9 * margin, True),
        (0.25 + 0.9 * margin, True),
        (0.25 - 1.1 * margin, False),
        (0.26, False),
    ):
        assert draw(logits_BV, at(uniform, 0.9, 0.5, 0.5), 1.0).close_B.item() is close
    # The second choice has borders of its own; those of groups that were not chosen do not count.
    assert draw(logits_BV, at(0.9, 1 / 3, 0.5, 0.5), 1.0).close_B.item()
    assert not draw(logits_BV, at(0.1, 1 / 3, 0.5, 0.5), 1.0).close_B.item()


def test_at_temperature_zero_a_near_tie_is_close() -> None:
    logits_BV = torch.tensor([[0.0, 4.0, 4.0], [0.0, 4.0, 4.0 - 2e-5], [0.0, 4.0, 4.0 - 1e-4], [0.0, 4.0, 3.0]])
    drawn = draw(logits_BV, torch.zeros((4, LEVELS), dtype=torch.float64), 0)
    assert drawn.close_B.tolist() == [True, True, False, False]
    assert drawn.token_B[1:].tolist() == [1, 1, 1]
    torch.testing.assert_close(drawn.logprob_B, logits_BV.log_softmax(-1).gather(1, drawn.token_B[:, None]).squeeze(1))


def test_a_longer_stream_only_goes_on_where_a_shorter_one_stopped() -> None:
    assert uniforms(5, 9)[:4] == uniforms(5, 4)
    assert uniforms(5, 4) != uniforms(6, 4)
    flat = np.array(uniforms(5, 2000)).ravel()
    assert len(set(flat)) == 2000 * LEVELS
    assert flat.min() >= 0
    assert flat.max() < 1
