"""Samplers, minibatches and what else a run carries from step to step: the moving average and the learning rate."""

from collections import Counter

import pytest
import torch
from torch import nn

from modeling.generation import Generation
from ppo.config import PPOConfig
from ppo.ema import MovingAverage
from ppo.experience import Rollout
from ppo.optimizers import warmup
from ppo.samplers import Sampler, own_minibatches, shuffled_minibatches
from tests.ppo.conftest import ALONE, PROMPTS


def test_average_has_the_closed_form_of_a_geometric_series():
    weight = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    average = MovingAverage({"w": weight}, decay=0.9)
    seen = [weight.detach().clone()]
    for step in range(5):
        with torch.no_grad():
            weight += step - 1.5
        average.update()
        seen.append(weight.detach().clone())
    expected = 0.9**5 * seen[0] + sum(0.1 * 0.9 ** (5 - k) * seen[k] for k in range(1, 6))
    torch.testing.assert_close(average.average["w"], expected, atol=1e-12, rtol=0)


def test_average_replaces_the_weights_within_in_place_only():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight.fill_(3.0)
    average.update()
    with average.in_place():
        assert weight.item() == 2.0
    assert weight.item() == 3.0


def test_every_pass_takes_every_item_once_in_another_order():
    sampler = Sampler(list(range(20)), seed=1, name="prompts")
    first, second = sampler.take(20), sampler.take(20)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_a_sampler_continues_from_its_position_as_if_it_had_never_stopped():
    whole = Sampler(list(range(7)), 3, "texts").take(40)
    first = Sampler(list(range(7)), 3, "texts")
    taken = first.take(11)
    taken += Sampler(list(range(7)), 3, "texts", position=first.position).take(29)
    assert taken == whole
    assert max(Counter(whole).values()) - min(Counter(whole).values()) <= 1


def test_a_sampler_without_items_is_refused():
    with pytest.raises(ValueError, match="no prompts"):
        Sampler([], 0, "prompts")


def test_learning_rate_rises_from_a_tenth_and_then_stays():
    assert [warmup(i, 10) for i in (0, 5, 10, 400)] == pytest.approx([0.1, 0.55, 1.0, 1.0])
    assert warmup(0, 0) == 1.0


SEVERAL = PPOConfig(responses_per_prompt=4, minibatch_size=16, batch_size=32)


@pytest.mark.parametrize(("processes", "prompts_per_process"), [(1, 8), (2, 4), (3, 8)])
def test_responses_to_one_prompt_stay_in_one_process_if_prompts_divide(processes: int, prompts_per_process: int):
    shares = [own_minibatches(SEVERAL, rank, processes) for rank in range(processes)]
    for number in range(2):
        minibatch = sorted(episode for share in shares for episode in share[number])
        assert minibatch == list(range(16 * number, 16 * number + 16))
    prompts = {episode // 4 for numbers in shares[0] for episode in numbers}
    assert len(prompts) == prompts_per_process


def test_shuffled_minibatches_keep_prompts_together_and_differ_between_epochs_and_iterations():
    found = [shuffled_minibatches(SEVERAL, 0, *place) for place in ((0, 1), (0, 2), (1, 1))]
    for minibatches in found:
        assert sorted(episode for numbers in minibatches for episode in numbers) == list(range(32))
        assert all(len(numbers) == 16 for numbers in minibatches)
        assert all(len({episode // 4 for episode in numbers}) == 4 for numbers in minibatches)
    assert found[0] != found[1]
    assert found[0] != found[2]
    assert shuffled_minibatches(SEVERAL, 0, 0, 1) == found[0]


def test_micro_batches_are_sorted_by_length_and_keep_responses_to_one_prompt_together():
    prompts, lengths = [[1, 1], [2], [1, 1], [3, 3, 3]], [7, 3, 1, 2]
    responses = [Generation([5] * length, None, ended=False) for length in lengths]
    rollout = Rollout(PROMPTS[:4], prompts, responses, ALONE.device)
    rollout.make_micro_batches([[0, 1, 2, 3]], max_tokens=100)
    assert rollout.minibatches == [[(1, 3, 2, 0)]]
    rollout.make_micro_batches([[0, 1], [2, 3]], max_tokens=8)
    assert rollout.minibatches == [[(1,), (0,)], [(3, 2)]]
    assert list(rollout.batches) == [(1,), (0,), (3, 2)]
