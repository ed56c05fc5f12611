"""The key/value cache against plain passes over each sequence alone.

pytest tests/modeling/test_kv_cache.py
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.kv_cache import KVCache
from modeling.tiny import ARCHITECTURES


@torch.no_grad()
def plain_logits(model: Any, sequences: list[list[int]]) -> Tensor:
    """logits_BV after each sequence."""
    return torch.stack([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in sequences])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_plain_passes_whoever_comes_and_leaves(
    tiny_causal: Callable[[str], Any], architecture: str
) -> None:
    model, chance = tiny_causal(architecture).double(), random.Random(0)
    cache, sequences = KVCache(model, slots=6, columns=40), list[list[int]]()
    for round_number in range(12):
        new = [
            tuple(chance.randrange(3, 500) for _ in range(chance.choice([0, 1, 4, 17])))
            for _ in range(chance.randint(0 if sequences else 1, 6 - len(sequences)))
        ]
        if new:
            new[-1] = new[0]
            cache.add(new)
            sequences += map(list, new)
        for _ in range(2):
            tokens = [chance.randrange(3, 500) for _ in sequences]
            found_BV = cache.step(tokens)
            for ids, token in zip(sequences, tokens, strict=True):
                ids.append(token)
            torch.testing.assert_close(found_BV, plain_logits(model, sequences), atol=1e-9, rtol=0)
        finished = sorted(chance.sample(range(len(sequences)), len(sequences) * (round_number % 4) // 3))
        long = [slot for slot, ids in enumerate(sequences) if len(ids) > 30]
        order = cache.remove(sorted({*finished, *long}))
        sequences = [sequences[slot] for slot in order]
        assert cache.lengths == [len(ids) for ids in sequences]


def test_equal_prompts_are_prefilled_once_and_without_their_logits(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    read, computed = list[int](), list[int]()
    model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].numel()))
    model.get_output_embeddings().register_forward_hook(lambda module, _, logits: computed.append(logits.shape[1]))
    cache = KVCache(model, slots=6, columns=8)
    cache.add([(5, 6, 7)] * 4 + [(8, 9), (10,)])
    assert read == [3 * 3], "three distinct prompts, padded to the longest"
    assert computed == [1]
    logits_BV = cache.step([11] * 6)
    expected_BV = plain_logits(model, [[5, 6, 7, 11]] * 4 + [[8, 9, 11], [10, 11]])
    torch.testing.assert_close(logits_BV, expected_BV, atol=1e-4, rtol=0)


@pytest.mark.parametrize("finished", [[], [0], [3], [0, 1, 2, 3, 4], [0, 3, 4], [1, 2], [0, 4]])
def test_only_sequences_from_the_end_move_into_gaps(tiny_causal: Callable[[str], Any], finished: list[int]) -> None:
    cache = KVCache(tiny_causal("llama"), slots=5, columns=4)
    cache.add([()] * 5)
    cache.step([3, 4, 5, 6, 7])
    alive = [slot for slot in range(5) if slot not in finished]
    order = cache.remove(finished)
    assert sorted(order) == alive
    assert all(order[slot] == slot for slot in alive if slot < len(alive))
