"""Rows of prompt, response and padding: where things are, by length alone.

pytest tests/modeling/test_sequences.py
"""

import random

import pytest
import torch
from modeling.sequences import Sequences, take_positions

PROMPTS = [[11, 12, 13], [21], [31, 32]]
RESPONSES = [[14], [22, 23, 24], [33, 34]]


def test_rows_are_laid_out_as_drawn_by_hand() -> None:
    sequences = Sequences.pad(PROMPTS, RESPONSES, pad_id=0)
    assert sequences.ids_BS.tolist() == [[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]]
    assert sequences.prompt_length_B.tolist() == [3, 1, 2]
    assert sequences.response_length_B.tolist() == [1, 3, 2]
    assert sequences.response_tokens == 3
    assert sequences.mask_BT.int().tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    assert sequences.last_index_B1.tolist() == [[3], [3], [3]]
    assert sequences.state_index_BT.tolist() == [[2, 3, 3], [0, 1, 2], [1, 2, 3]]
    assert sequences.response_BT.tolist() == [[14, 14, 14], [22, 23, 24], [33, 34, 34]]


@pytest.mark.parametrize("pad_id", [0, 14, 24, 33])
def test_a_pad_id_that_the_policy_sampled_is_no_padding(pad_id: int) -> None:
    prompts, responses = PROMPTS, [[14, pad_id], [pad_id, 22, pad_id, 23, 24], [pad_id]]
    sequences = Sequences.pad(prompts, responses, pad_id)
    assert sequences.mask_BT.sum(1).tolist() == [2, 5, 1]
    for row, response in enumerate(responses):
        assert sequences.response_BT[row][sequences.mask_BT[row]].tolist() == response


def test_every_index_points_at_its_token_in_random_rows() -> None:
    chance = random.Random(0)
    for _ in range(50):
        prompts = [[chance.randrange(9) for _ in range(chance.randint(1, 6))] for _ in range(4)]
        responses = [[chance.randrange(9) for _ in range(chance.randint(1, 7))] for _ in range(4)]
        sequences = Sequences.pad(prompts, responses, pad_id=chance.randrange(9))
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            whole = prompt + response
            assert sequences.ids_BS[row, : len(whole)].tolist() == whole
            assert sequences.last_index_B1[row].item() == len(whole) - 1
            for t in range(max(map(len, responses))):
                real = t < len(response)
                assert sequences.mask_BT[row, t].item() is real
                state = sequences.state_index_BT[row, t].item()
                # The state before token t ends with token t - 1; beyond the response, any place inside the row will do.
                assert state == len(prompt) + t - 1 if real else state < len(whole)
                if real:
                    assert sequences.response_BT[row, t].item() == whole[state + 1]


def test_positions_are_taken_row_by_row() -> None:
    hidden_BSH = torch.arange(2 * 4 * 3).reshape(2, 4, 3).float()
    taken_BTH = take_positions(hidden_BSH, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(taken_BTH, torch.stack([hidden_BSH[0, [3, 0]], hidden_BSH[1, [1, 1]]]))


def test_unequal_numbers_of_prompts_and_responses_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        Sequences.pad(PROMPTS, RESPONSES[:2], pad_id=0)
