"""Hidden states of packed rows, of rows that share their prompt, and of padded rows, against one unpadded row at a
time.

pytest tests/modeling/test_batch.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.batch import Batch, micro_batches
from modeling.shared_prefix import REASONS, plain_because
from modeling.tiny import ARCHITECTURES
from modeling.trunk import backbone_of, shared_trunk

CPU = torch.device("cpu")
ALONE = [[3, 40, 50, 60, 70], [3, 41], [3, 42, 52, 62, 72, 82, 92, 102], [7]]
TOGETHER = [[3, 40, 50], [3, 41], [3, 40, 50], [3, 40, 50]]
RESPONSES = [[200, 2], [201, 301, 401, 0, 2], [202, 302, 0], [0]]
FLOAT32 = 5e-5
"""A few thousand roundings at 6e-8 in hidden states of size 10."""


def states_of(backbone: Any, prompts: list[list[int]], responses: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(before each response token, at each last one), a row at a time."""
    states, last = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        hidden = backbone(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        states.append(hidden[len(prompt) - 1 : -1])
        last.append(hidden[-1:])
    return torch.cat(states), torch.cat(last)


@pytest.mark.parametrize("layout", ["packed", "padded", "prompts apart"])
@pytest.mark.parametrize("prompts", [ALONE, TOGETHER], ids=["alone", "together"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_and_gradients_are_those_of_rows_by_themselves(
    tiny_causal: Callable[[str], Any], architecture: str, prompts: list[list[int]], layout: str
) -> None:
    model = tiny_causal(architecture)
    backbone = backbone_of(model)
    if layout == "padded":
        REASONS[backbone] = "the test says so"
    gradients = []
    states_RH, last_BH = states_of(backbone, prompts, RESPONSES)
    weights = (
        torch.linspace(-1, 2, states_RH.numel()).view_as(states_RH),
        torch.linspace(2, -1, last_BH.numel()).view_as(last_BH),
    )
    batch = Batch(prompts, RESPONSES, 0, CPU, shared=layout == "packed")
    found = batch.hidden(backbone, "states"), batch.hidden(backbone, "last")
    for expected, given in zip((states_RH, last_BH), found, strict=True):
        torch.testing.assert_close(given, expected, atol=FLOAT32, rtol=0)
    for states, last in ((states_RH, last_BH), found):
        ((states * weights[0]).sum() + (last * weights[1]).sum()).backward()
        gradients.append({name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None})
        model.zero_grad()
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    assert largest > 1
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=2e-5 * largest, rtol=1e-4, msg=name)


def test_a_prompt_is_computed_once_for_all_its_responses(tiny_causal: Callable[[str], Any]) -> None:
    assert Batch(TOGETHER, RESPONSES, 0, CPU).packed.ids_1N.shape[1] == 3 + 2 + sum(map(len, RESPONSES))
    assert Batch(ALONE, RESPONSES, 0, CPU).packed.ids_1N.shape[1] == sum(map(len, ALONE + RESPONSES))


def test_rows_put_tokens_back_into_rows() -> None:
    batch = Batch(ALONE, RESPONSES, 0, CPU)
    rows = batch.rows(batch.token_R + 1000)
    assert [row[: len(response)].tolist() for row, response in zip(rows, RESPONSES, strict=True)] == [
        [t + 1000 for t in r] for r in RESPONSES
    ]
    assert rows.sum() == sum(t + 1000 for response in RESPONSES for t in response)


@pytest.mark.parametrize("prompts", [ALONE, TOGETHER], ids=["alone", "together"])
def test_what_left_the_trunk_is_recorded_once_and_gone_on_from(
    tiny_causal: Callable[[str], Any], prompts: list[list[int]]
) -> None:
    model = tiny_causal("llama")
    trunk = shared_trunk(model, 1)
    assert trunk is not None
    assert plain_because(trunk.backbone) is None
    calls: list[int] = []
    trunk.backbone.layers[0].register_forward_hook(lambda *given: calls.append(1))
    batch = Batch(prompts, RESPONSES, 0, CPU, trunk=trunk)
    first, again = batch.hidden(trunk.backbone, "states"), batch.hidden(trunk.backbone, "states")
    last = batch.hidden(trunk.backbone, "last")
    assert len(calls) == 1
    assert torch.equal(first, again)
    assert torch.equal(last, Batch(prompts, RESPONSES, 0, CPU).hidden(trunk.backbone, "last"))


def test_micro_batches_keep_their_order_and_their_limit() -> None:
    tokens = [5, 1, 1, 9, 2, 2]
    assert micro_batches([1, 2, 4, 5, 0, 3], tokens, 5) == [[1, 2, 4], [5], [0], [3]]
    assert micro_batches(range(6), tokens, 1) == [[0], [1], [2], [3], [4], [5]]
    assert micro_batches([], tokens, 5) == []
