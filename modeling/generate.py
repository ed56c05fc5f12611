"""Sampling responses. Every episode draws from a random stream of its own, and its log-probabilities are kept as it is decoded.

Prompts of like length are decoded side by side, right-padded, each row at its own positions; rows that have ended leave the batch.
Sampling inverts the cumulative distribution at one uniform number a token: exact at the temperature, no top-k, no top-p.
Shapes: B rows, U distinct prompts among them, P tokens of the longest prompt, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from modeling.load import context_length
from modeling.logprobs import logits_only_at
from modeling.sequences import pad_rows

COMPACT_BELOW = 0.8
"""Ended rows leave when fewer than this fraction of the rows are still alive; leaving costs a copy of the cache."""


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    batch_size: int = 64


@dataclass
class Generation:
    """One response."""

    ids: list[int]
    """Up to and including EOS, if it came."""
    logprobs: list[float]
    """Of each token in the distribution that it was sampled from."""
    ended: bool
    """Whether EOS came."""


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    eos_id: int,
    pad_id: int,
    on_batch: Callable[[int], object] | None = None,
) -> list[Generation]:
    """A response to each prompt, in order. `on_batch` is told how many prompts have been answered since it was last called.

    The response to a prompt depends on its seed, not on its neighbours (up to the rounding of batched arithmetic).
    Raises ValueError when a prompt leaves no room for an answer in the model's context.
    """
    room = context_length(model.config)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if longest + sampling.max_new_tokens > room:
        raise ValueError(f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones do not fit the model's context of {room}")
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: dict[int, Generation] = {}
    for start in range(0, len(order), sampling.batch_size):
        lane = order[start : start + sampling.batch_size]
        generations = _decode(model, [prompts[i] for i in lane], [seeds[i] for i in lane], sampling, eos_id, pad_id)
        results.update(zip(lane, generations, strict=True))
        if on_batch is not None:
            on_batch(len(lane))
    return [results[index] for index in range(len(prompts))]


def _decode(model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, eos_id: int, pad_id: int) -> list[Generation]:
    device = model.get_input_embeddings().weight.device
    steps = sampling.max_new_tokens
    uniforms = torch.stack([torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds])
    uniforms_BT = uniforms.to(device, torch.float32)
    # Several answers to one prompt share a single pass over it.
    number_of = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    owner_B = torch.tensor([number_of[tuple(prompt)] for prompt in prompts], device=device)
    ids_UP, length_U = pad_rows(list(number_of), pad_id, device)

    cache = DynamicCache()
    with logits_only_at(model, length_U[:, None] - 1):
        logits_UV = model(input_ids=ids_UP, past_key_values=cache, use_cache=True).logits[:, 0]
    cache.batch_select_indices(owner_B)
    logits_BV, length_B = logits_UV[owner_B], length_U[owner_B]
    seen_BS = torch.arange(ids_UP.shape[1], device=device) < length_B[:, None]

    row_B = torch.arange(len(prompts), device=device)
    tokens_BT = torch.full((len(prompts), steps), pad_id, device=device)
    logprobs_BT = torch.zeros((len(prompts), steps), device=device)
    ended_at_B = torch.full((len(prompts),), steps, device=device)
    alive_B = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for step in range(steps):
        token_B, logprob_B = sample(logits_BV, uniforms_BT[row_B, step], sampling.temperature)
        tokens_BT[row_B, step], logprobs_BT[row_B, step] = token_B, logprob_B
        ended_at_B[row_B[alive_B & (token_B == eos_id)]] = step
        alive_B = alive_B & (token_B != eos_id)
        alive = int(alive_B.sum())
        if alive == 0 or step == steps - 1:
            break
        if alive < COMPACT_BELOW * len(row_B):
            keep = alive_B.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            row_B, token_B, seen_BS, length_B, alive_B = row_B[keep], token_B[keep], seen_BS[keep], length_B[keep], alive_B[keep]
        seen_BS = torch.cat([seen_BS, torch.ones_like(seen_BS[:, :1])], dim=1)
        logits_BV = model(
            input_ids=token_B[:, None],
            position_ids=(length_B + step)[:, None],
            attention_mask=seen_BS.long(),
            past_key_values=cache,
            use_cache=True,
        ).logits[:, 0]

    generations = []
    for tokens, logprobs, end in zip(tokens_BT.tolist(), logprobs_BT.tolist(), ended_at_B.tolist(), strict=True):
        count = min(end + 1, steps)
        generations.append(Generation(tokens[:count], logprobs[:count], ended=end < steps))
    return generations


def sample(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(token_B, logprob_B): the token where the cumulative distribution passes the uniform number; the likeliest one at temperature 0."""
    logits_BV = logits_BV.float()
    if temperature == 0:
        token_B = logits_BV.argmax(-1)
        return token_B, logits_BV.log_softmax(-1).gather(1, token_B[:, None]).squeeze(1)
    if temperature != 1.0:
        logits_BV = logits_BV / temperature
    probability_BV = logits_BV.softmax(-1)
    cumulative_BV = probability_BV.cumsum(-1)
    # The sum ends near 1 but not on it: scaling by it keeps a uniform number of almost 1 inside the vocabulary. A 64-bit one may have been
    # rounded to 1, which would fall behind the last token that has a probability.
    height_B1 = uniform_B[:, None].clamp(max=1 - 2**-24) * cumulative_BV[:, -1:]
    token_B1 = torch.searchsorted(cumulative_BV, height_B1, right=True).clamp_(max=logits_BV.shape[1] - 1)
    return token_B1.squeeze(1), probability_BV.gather(1, token_B1).log().squeeze(1)
