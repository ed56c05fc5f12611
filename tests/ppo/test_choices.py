"""The adaptive KL coefficient, the scale of scores and the KL penalty in the loss: by hand, and in float64."""

import math
from statistics import pstdev
from typing import Any

import pytest
import torch

from ppo.config import PPOConfig
from ppo.kl import KLController, kl_loss
from ppo.scaling import ScoreScale


def test_a_fixed_coefficient_stays():
    controller = KLController.make(PPOConfig(kl_coef=0.02))
    controller.update(1000.0, 512)
    assert controller.coef == 0.02


def test_an_adaptive_coefficient_moves_towards_its_target_with_the_error_clipped_to_a_fifth():
    controller = KLController.make(PPOConfig(kl_coef=0.1, kl_target=6.0, kl_horizon=10_000))
    controller.update(6.6, 512)
    assert controller.coef == pytest.approx(0.1 * (1 + 0.1 * 512 / 10_000), rel=1e-12)
    before = controller.coef
    controller.update(600.0, 512)
    assert controller.coef == pytest.approx(before * (1 + 0.2 * 512 / 10_000), rel=1e-12)
    before = controller.coef
    controller.update(0.0, 1000)
    assert controller.coef == pytest.approx(before * (1 - 0.2 * 0.1), rel=1e-12)
    resumed = KLController.make(PPOConfig(kl_target=6.0))
    resumed.load_state_dict(controller.state_dict())
    assert resumed.coef == controller.coef


def test_scores_are_divided_by_the_standard_deviation_of_all_so_far():
    scale, seen = ScoreScale(PPOConfig(score_scaling="running")), list[float]()
    for part in ([1.0, 2.0, 4.0], [10.0, -3.0], [0.5] * 4):
        seen += part
        found = scale(torch.tensor(part, dtype=torch.float64))
        assert found.tolist() == pytest.approx([score / pstdev(seen) for score in part], rel=1e-12)
        resumed = ScoreScale(PPOConfig(score_scaling="running"))
        resumed.load_state_dict(scale.state_dict())
        scale = resumed


def test_equal_scores_stay_finite_and_clipping_comes_after_scaling():
    assert ScoreScale(PPOConfig(score_scaling="running"))(torch.full((3,), 1.25)).tolist() == [1.25] * 3
    assert ScoreScale(PPOConfig(score_clip=1.5))(torch.tensor([-9.0, 0.5, 2.0])).tolist() == [-1.5, 0.5, 1.5]
    both = ScoreScale(PPOConfig(score_scaling="running", score_clip=1.0))
    assert both(torch.tensor([100.0, -100.0, 50.0])).tolist() == pytest.approx(
        [1.0, -1.0, 50 / pstdev([100, -100, 50])]
    )
    assert ScoreScale(PPOConfig())(torch.tensor([-9.0])).item() == -9.0


def test_the_expected_gradient_of_the_kl_loss_is_that_of_the_exact_kl():
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    reference_V = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)
    logprobs_V = logits_V.log_softmax(-1)
    exact = (logprobs_V.exp() * (logprobs_V - reference_V)).sum()
    (expected_V,) = torch.autograd.grad(0.3 * exact, logits_V, retain_graph=True)
    # In expectation over tokens drawn from the policy: every token, weighted by its probability.
    each = [kl_loss(logprobs_V[None, [v]], reference_V[None, [v]], torch.ones(1, 1), 0.3) for v in range(5)]
    loss = sum(p * term for p, term in zip(logprobs_V.exp().tolist(), each, strict=True))
    (found_V,) = torch.autograd.grad(loss, logits_V)
    torch.testing.assert_close(found_V, expected_V, atol=1e-12, rtol=0)


def test_the_kl_loss_is_half_the_squared_log_ratio_over_unmasked_tokens():
    logprobs_BT, reference_BT = torch.tensor([[-1.0, -2.0, math.nan]]), torch.tensor([[-1.5, -1.0, 7.0]])
    found = kl_loss(logprobs_BT, reference_BT, torch.tensor([[1, 1, 0]]), kl_coef=0.5, normalizer=4.0)
    assert found.item() == pytest.approx(0.5 * 0.5 * (0.25 + 1.0) / 4)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kl_target": 6.0, "kl_coef": 0.0}, "0 stays 0"),
        (
            {"kl_target": 6.0, "kl_horizon": 1000, "batch_size": 8000, "total_episodes": 8000},
            "kl_horizon=1000 must be above",
        ),
        ({"engine": "vllm"}, "ppo.engine=vllm needs vLLM"),
        ({"engine": "transformers", "old_logprobs": "rollout"}, "old_logprobs=rollout needs ppo.engine=native"),
        ({"responses_per_prompt": 3}, "ppo.responses_per_prompt=3 does not divide ppo.minibatch_size=64"),
        ({"ptx_examples_per_episode": 0.3}, "ppo.ptx_examples_per_episode=0.3 times ppo.minibatch_size=64 is 19.2"),
        ({"total_episodes": 1000}, "ppo.batch_size=512 does not divide ppo.total_episodes=1000"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], why: str):
    with pytest.raises(ValueError, match=why):
        PPOConfig(**changes).validate()
