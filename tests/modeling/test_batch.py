"""Layouts of a batch: where each token's state is, by lengths alone, and the hidden states found there.

pytest tests/modeling/test_batch.py
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.architecture import backbone_of
from modeling.batch import Batch, Padded, micro_batches, text_batch
from modeling.models import Encoder
from modeling.shared_prefix import SharedPrefix
from modeling.tiny import ARCHITECTURES

ALONE = [[3, 40, 50, 60, 70], [3, 41], [3, 42, 52, 62, 72, 82, 92, 102], [7]]
TOGETHER = [[3, 40, 50], [3, 41], [3, 40, 50], [3, 40, 50]]
RESPONSES = [[200, 2], [201, 301, 401, 0, 2], [202, 302, 0], [0]]
FLOAT32 = 5e-5
"""A few thousand roundings at 6e-8 in hidden states of size 10."""


def states_of(backbone: Any, prompts: list[list[int]], responses: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(before each response token, at each last one), one unpadded row at a time."""
    states, last = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        hidden = backbone(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        states.append(hidden[len(prompt) - 1 : -1])
        last.append(hidden[-1:])
    return torch.cat(states), torch.cat(last)


@pytest.mark.parametrize("layout", ["shared", "padded", "packed, prompts not shared"])
@pytest.mark.parametrize("prompts", [ALONE, TOGETHER], ids=["alone", "together"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_and_gradients_are_those_of_single_rows(
    tiny_causal: Callable[[str], Any], architecture: str, prompts: list[list[int]], layout: str
) -> None:
    model = tiny_causal(architecture)
    states_RH, last_BH = states_of(backbone_of(model), prompts, RESPONSES)
    weights = (
        torch.linspace(-1, 2, states_RH.numel()).view_as(states_RH),
        torch.linspace(2, -1, last_BH.numel()).view_as(last_BH),
    )
    if layout == "padded":
        backbone_of(model).shared_prefix_reason = "the test says so"
    encoder = Encoder(model)
    assert (encoder.plain_reason is None) is (layout != "padded")
    batch = Batch(prompts, RESPONSES, share_prompts=layout == "shared")
    found = encoder(batch, "state"), encoder(batch, "last")
    gradients = []
    for expected, given in zip((states_RH, last_BH), found, strict=True):
        torch.testing.assert_close(given, expected, atol=FLOAT32, rtol=0)
    for states, last in ((states_RH, last_BH), found):
        ((states * weights[0]).sum() + (last * weights[1]).sum()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    assert largest > 1
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=2e-5 * largest, rtol=1e-4, msg=name)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_every_index_points_at_its_token_in_random_rows(seed: int, packed: bool) -> None:
    chance = random.Random(seed)
    # Few tokens, so that prompts occur several times and padding's id (0) among the tokens.
    prompts = [[chance.randrange(3) for _ in range(chance.randint(1, 3))] for _ in range(6)]
    responses = [[chance.randrange(3) for _ in range(chance.randint(1, 7))] for _ in range(6)]
    batch = Batch(prompts, responses)
    layout = batch.layout(packed)
    if isinstance(layout, SharedPrefix):
        ids_N, position_N = layout.ids_1N[0], layout.position_1N[0]
    else:
        ids_N = layout.ids_BS.flatten()
        position_N = torch.arange(layout.ids_BS.shape[1]).repeat(len(batch))
    before = [[prompt[-1], *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
    positions = [
        range(len(prompt) - 1, len(prompt) + len(response) - 1)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    assert ids_N[layout.state_R].tolist() == [token for row in before for token in row]
    assert position_N[layout.state_R].tolist() == [position for row in positions for position in row]
    assert ids_N[layout.last_B].tolist() == [response[-1] for response in responses]
    assert position_N[layout.last_B].tolist() == [row[-1] + 1 for row in positions]
    assert batch.token_R.tolist() == [token for response in responses for token in response]
    assert batch.layout(packed) is layout


def test_the_padded_layout_by_hand() -> None:
    layout = Padded.of(Batch([[11, 12, 13], [21], [31, 32]], [[14], [22, 23, 24], [33, 34]]))
    assert layout.ids_BS.tolist() == [[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]]
    assert layout.state_R.tolist() == [2, 4, 5, 6, 9, 10]
    assert layout.last_B.tolist() == [3, 7, 11]


def test_a_prompt_is_computed_once_for_all_its_responses() -> None:
    assert Batch(TOGETHER, RESPONSES).layout(packed=True).inputs()["input_ids"].shape[1] == 3 + 2 + 2 + 5 + 3 + 1
    apart = Batch(TOGETHER, RESPONSES, share_prompts=False).layout(packed=True)
    assert apart.inputs()["input_ids"].shape[1] == 3 * 3 + 2 + 2 + 5 + 3 + 1
    assert Batch(ALONE, RESPONSES).layout(packed=True).inputs()["input_ids"].shape[1] == sum(
        map(len, ALONE + RESPONSES)
    )


def test_padded_puts_a_row_s_numbers_back_into_it_and_zeros_after_its_end() -> None:
    batch = Batch(ALONE, RESPONSES)
    rows = batch.padded(batch.token_R + 1000)
    assert rows.tolist() == [
        [1200, 1002, 0, 0, 0], [1201, 1301, 1401, 1000, 1002], [1202, 1302, 1000, 0, 0], [1000, 0, 0, 0, 0],
    ]  # fmt: skip


def test_of_a_text_all_tokens_but_the_first_are_predicted() -> None:
    batch = text_batch([[5, 6, 7], [5, 8]], "cpu")
    assert (batch.prompts, batch.responses, batch.share_prompts) == ([[5], [5]], [[6, 7], [8]], False)


def test_unequal_numbers_of_prompts_and_responses_are_refused() -> None:
    for packed in (True, False):
        with pytest.raises(ValueError, match="zip"):
            Batch([[1, 2], [3]], [[4]], share_prompts=False).layout(packed)


def test_micro_batches_keep_their_order_and_their_limit() -> None:
    tokens = [5, 1, 1, 9, 2, 2]
    assert micro_batches([1, 2, 4, 5, 0, 3], tokens, 5) == [[1, 2, 4], [5], [0], [3]]
    assert micro_batches(range(6), tokens, 1) == [[0], [1], [2], [3], [4], [5]]
    assert micro_batches([], tokens, 5) == []
