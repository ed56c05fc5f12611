"""What a run carries from step to step: the moving average, the streams of prompts, the learning rate."""

from collections import Counter

import pytest
import torch
from ppo.streams import Stream
from ppo.update import warmup
from torch import nn

from ppo.ema import MovingAverage


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
    assert torch.allclose(average.average["w"], expected, atol=1e-12, rtol=0)


def test_average_is_put_in_place_and_taken_out_again():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight.fill_(3.0)
    average.update()
    with average.in_place():
        assert weight.item() == 2.0
    assert weight.item() == 3.0


def test_every_pass_sees_every_item_once_in_another_order():
    stream = Stream(list(range(20)), seed=1, name="prompts")
    first, second = stream.take(20), stream.take(20)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_a_stream_goes_on_from_its_position_as_if_it_had_never_stopped():
    whole = Stream(list(range(7)), 3, "texts").take(40)
    first = Stream(list(range(7)), 3, "texts")
    taken = first.take(11)
    taken += Stream(list(range(7)), 3, "texts", position=first.position).take(29)
    assert taken == whole
    assert max(Counter(whole).values()) - min(Counter(whole).values()) <= 1


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="no prompts"):
        Stream([], 0, "prompts")


def test_learning_rate_rises_from_a_tenth_and_then_stays():
    assert [warmup(i, 10) for i in (0, 5, 10, 400)] == pytest.approx([0.1, 0.55, 1.0, 1.0])
    assert warmup(0, 0) == 1.0
