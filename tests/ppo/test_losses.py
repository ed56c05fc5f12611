"""PPO's losses, rewards, advantages and whitening against loops in float64, written apart from the code they judge."""

import math

import pytest
import torch

from ppo.advantages import gae, whiten
from ppo.kl import kl_estimates
from ppo.losses import largest_ratio, policy_loss, policy_sums, value_loss
from ppo.rewards import token_rewards

LENGTHS = [5, 1, 3, 7]
MASK = torch.arange(7) < torch.tensor(LENGTHS)[:, None]


def random_BT(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def poisoned(x_BT: torch.Tensor, value: float = 1e9) -> torch.Tensor:
    return torch.where(MASK, x_BT, torch.full_like(x_BT, value))


def test_policy_loss_is_the_clipped_surrogate_of_every_token():
    new, old, advantages = random_BT(0, 0.4), random_BT(1, 0.4), random_BT(2)
    terms = []
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            ratio = math.exp(float(new[b, t] - old[b, t]))
            clipped = min(max(ratio, 0.8), 1.2)
            terms.append(-min(ratio * float(advantages[b, t]), clipped * float(advantages[b, t])))
    assert any(
        abs(math.exp(float(new[b, t] - old[b, t])) - 1) > 0.2 for b, n in enumerate(LENGTHS) for t in range(n)
    ), "nothing was clipped"
    assert policy_loss(new, old, advantages, MASK, 0.2).item() == pytest.approx(sum(terms) / 16, rel=1e-12)
    assert policy_loss(new, old, advantages, MASK, 0.2, normalizer=10).item() == pytest.approx(
        sum(terms) / 10, rel=1e-12
    )


def test_clipping_stops_the_gradient_only_where_the_move_would_pay():
    new = torch.tensor([[0.5, 0.5, -0.5, -0.5]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    policy_loss(new, torch.zeros(1, 4, dtype=torch.float64), advantages, torch.ones(1, 4), 0.2).backward()
    assert new.grad is not None
    assert (new.grad != 0).tolist() == [[False, True, True, False]]


def test_value_loss_is_half_the_larger_squared_error():
    values, old, returns = random_BT(3), random_BT(4), random_BT(5)
    terms = []
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            v, o, r = float(values[b, t]), float(old[b, t]), float(returns[b, t])
            clipped = min(max(v, o - 0.2), o + 0.2)
            terms.append(0.5 * max((v - r) ** 2, (clipped - r) ** 2))
    assert value_loss(values, old, returns, MASK, 0.2).item() == pytest.approx(sum(terms) / 16, rel=1e-12)
    assert value_loss(values, old, returns, MASK, 0.2, normalizer=4.0).item() == pytest.approx(
        sum(terms) / 4, rel=1e-12
    )


@pytest.mark.parametrize("poison", [1e9, -1e9, float("nan"), float("inf")])
def test_padding_never_enters_a_loss_or_its_gradient(poison: float):
    old, advantages, returns = random_BT(1), random_BT(2), random_BT(5)
    for loss, others in ((policy_loss, (old, advantages)), (value_loss, (old, returns))):
        clean = random_BT(0).requires_grad_()
        loss(clean, *others, MASK, 0.2).backward()
        dirty = random_BT(0).masked_fill(~MASK, poison).requires_grad_()
        result = loss(dirty, *(poisoned(x, poison) for x in others), MASK, 0.2)
        result.backward()
        assert result.item() == loss(clean, *others, MASK, 0.2).item()
        assert torch.equal(clean.grad, dirty.grad)


def test_parts_of_a_minibatch_add_up_to_the_whole():
    new, old, advantages, returns = random_BT(0), random_BT(1), random_BT(2), random_BT(5)
    count = float(MASK.sum())
    for loss, others in ((policy_loss, (old, advantages)), (value_loss, (old, returns))):
        parts = sum(
            loss(new[i : i + 1], *(x[i : i + 1] for x in others), MASK[i : i + 1], 0.2, normalizer=count)
            for i in range(4)
        )
        assert float(parts) == pytest.approx(float(loss(new, *others, MASK, 0.2)), rel=1e-12)


def test_ratio_is_exactly_one_where_nothing_moved():
    logprobs = random_BT(0)
    assert largest_ratio(logprobs, logprobs.clone(), MASK) == 1.0
    sums = policy_sums(logprobs, logprobs.clone(), MASK, 0.2)
    assert (float(sums["clipped"]), float(sums["approximate_kl"])) == (0.0, 0.0)


def test_watched_sums_count_real_tokens_alone():
    new, old = random_BT(0, 0.4), random_BT(1, 0.4)
    ratios = [math.exp(float(new[b, t] - old[b, t])) for b, n in enumerate(LENGTHS) for t in range(n)]
    sums = policy_sums(poisoned(new), old, MASK, 0.2)
    assert int(sums["clipped"]) == sum(abs(r - 1) > 0.2 for r in ratios)
    assert float(sums["approximate_kl"]) == pytest.approx(sum(r - 1 - math.log(r) for r in ratios), rel=1e-12)
    assert largest_ratio(poisoned(new), old, MASK) == pytest.approx(max(max(r, 1 / r) for r in ratios), rel=1e-12)


def test_score_stands_at_the_last_response_token_and_rewards_add_up():
    scores, new, ref = random_BT(6)[:, 0], random_BT(0), random_BT(1)
    rewards = token_rewards(scores, poisoned(new), ref, MASK, 0.05)
    for b, length in enumerate(LENGTHS):
        for t in range(7):
            expected = -0.05 * float(new[b, t] - ref[b, t]) if t < length else 0.0
            expected += float(scores[b]) if t == length - 1 else 0.0
            assert rewards[b, t].item() == pytest.approx(expected, abs=1e-12)
        log_ratio = float((new - ref)[b, :length].sum())
        assert rewards[b].sum().item() == pytest.approx(float(scores[b]) - 0.05 * log_ratio, abs=1e-12)


def test_kl_estimates_are_sums_over_the_episode():
    new, ref = random_BT(0), random_BT(1)
    found = kl_estimates(poisoned(new), ref, MASK)
    k1, k3 = found["kl"], found["kl_k3"]
    for b, length in enumerate(LENGTHS):
        ratios = [math.exp(float(ref[b, t] - new[b, t])) for t in range(length)]
        assert k1[b].item() == pytest.approx(-sum(math.log(r) for r in ratios), rel=1e-12)
        assert k3[b].item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios), rel=1e-12)
    assert (k3 >= 0).all()


@pytest.mark.parametrize(("discount", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_gae_is_the_weighted_sum_of_all_n_step_advantages(discount: float, lam: float):
    rewards, values = random_BT(7), random_BT(8)
    advantages, returns = gae(poisoned(rewards), poisoned(values), MASK, discount, lam)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            # Schulman et al. 2016, eq. 16 as a plain sum: every later surprise, discounted by (discount * lambda)^k.
            total = 0.0
            for k in range(length - t):
                following = float(values[b, t + k + 1]) if t + k + 1 < length else 0.0
                total += (discount * lam) ** k * (
                    float(rewards[b, t + k]) + discount * following - float(values[b, t + k])
                )
            assert advantages[b, t].item() == pytest.approx(total, abs=1e-12)
            assert returns[b, t].item() == pytest.approx(total + float(values[b, t]), abs=1e-12)
    assert not advantages[~MASK].any()
    assert not returns[~MASK].any()


def test_lambda_one_gives_returns_minus_values():
    rewards, values = random_BT(7), random_BT(8)
    advantages, returns = gae(rewards, values, MASK, 1.0, 1.0)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            to_come = float(rewards[b, t:length].sum())
            assert returns[b, t].item() == pytest.approx(to_come, abs=1e-12)
            assert advantages[b, t].item() == pytest.approx(to_come - float(values[b, t]), abs=1e-12)


def test_whitening_is_over_real_tokens_and_leaves_zeros_elsewhere():
    x = random_BT(9, 3.0) + 5
    white = whiten(poisoned(x), MASK)
    kept = [float(white[b, t]) for b, n in enumerate(LENGTHS) for t in range(n)]
    mean = sum(kept) / len(kept)
    assert mean == pytest.approx(0, abs=1e-12)
    assert sum((v - mean) ** 2 for v in kept) / len(kept) == pytest.approx(1, abs=1e-7)
    assert not white[~MASK].any()
    order = torch.tensor([float(x[b, t]) for b, n in enumerate(LENGTHS) for t in range(n)]).argsort()
    assert torch.equal(torch.tensor(kept).argsort(), order)


def test_equal_advantages_whiten_to_zeros():
    assert not whiten(torch.full((4, 7), 3.0), MASK).any()
