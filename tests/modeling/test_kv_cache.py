"""The key/value cache against plain passes over each sequence alone.

pytest tests/modeling/test_kv_cache.py
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modeling.kv_cache import KVCache


@torch.no_grad()
def plain_logits(model: Any, sequences: list[list[int]]) -> Tensor:
    """logits_BV after each sequence."""
    return torch.stack([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in sequences])


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
