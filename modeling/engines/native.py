"""Our own decoder: exact sampling, a separate random stream for every response, and recorded log-probabilities.

Prompts are sorted by length and decoded in `batch_size` KV-cache slots (lanes). A finished response frees its slot at
once; when enough slots are free, waiting prompts are prefilled in one pass. In float32 the text depends only on the
seed, not on the batch size, the order of the prompts or the number of processes: if rounding could change a draw
(modeling/engines/sampling.py), the token is chosen from a separate pass over this row, which depends only on the row's
tokens. Under bfloat16 the backbone's rounding is some 65,000 times coarser: no separate passes are made, and a text may
differ with the batch. The output layer and the softmax still run in float32, so the sampling distribution is not
rounded to bfloat16. A log-probability recorded here then differs from a recomputed one, because the backbone rounds
differently in another batch shape: do not subtract them.
Shapes: B alive rows, V vocabulary, L levels of a draw.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from modeling.adapters import merged_weights
from modeling.engines.cache import GrowingCache, Lanes, in_float32
from modeling.engines.packed import packed_weights
from modeling.engines.sampling import OVERFLOW, WIDEST, draw, uniforms
from modeling.engines.types import Generation, Sampling, by_length, check_room
from modeling.finite import require_finite
from modeling.logprobs import head_outside_autocast, logits_only_at

REFILL = 0.2
"""Waiting prompts come in when this part of the lanes is free: a pass for a few has a cost of its own, a batch with
gaps too. Where rows end with probability p a step, the cost is least at about sqrt(2 p)."""
log = logging.getLogger(__name__)


@dataclass
class Row:
    """One response in the making."""

    number: int
    """Its prompt's."""
    prompt: tuple[int, ...]
    uniforms: list[list[float]]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class NativeEngine:
    """Our own decoder as an engine."""

    records_logprobs = True

    def __init__(self, merge_adapters: bool = True) -> None:
        self.merge_adapters = merge_adapters

    def generate(
        self, model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling,
        stop_ids: Collection[int], pad_id: int,
        on_batch: Callable[[int], object] | None = None,
    ) -> list[Generation]:  # fmt: skip
        """See `Engine`."""
        return generate(model, prompts, seeds, sampling, stop_ids, pad_id, on_batch, self.merge_adapters)


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    stop_ids: Collection[int],
    pad_id: int,
    on_batch: Callable[[int], object] | None = None,
    merge_adapters: bool = True,
) -> list[Generation]:
    """A response to each prompt, in order. `on_batch` is told how many prompts have been answered since it was last
    called.

    In float32 the response to a prompt depends on its tokens and its seed alone. `merge_adapters` decodes from LoRA's
    merged weights, which is quicker and takes memory for a second copy of the adapted maps. Raises ValueError when a
    prompt is empty or leaves no room for an answer in the model's context, and when the model keeps something else than
    keys and values of past tokens.
    """
    check_room(model, prompts, sampling)
    if not prompts:
        return []
    waiting = deque(by_length(prompts))
    lanes = min(sampling.batch_size, len(prompts))
    results: dict[int, Generation] = {}
    weights = merged_weights(model) if merge_adapters else nullcontext()
    with weights, packed_weights(model), head_outside_autocast(model):
        rows_of = memory(model, lanes, len(prompts[waiting[0]]) + sampling.max_new_tokens - 1, pad_id)
        settles = in_float32(model)
        rows: list[Row] = []
        logits_BV: Tensor | None = None
        while rows or waiting:
            free = lanes - len(rows)
            if waiting and (not rows or (rows_of.joins and free >= min(REFILL * lanes, len(waiting)))):
                newcomers = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                coming = [
                    Row(index, tuple(prompts[index]), uniforms(seeds[index], sampling.max_new_tokens))
                    for index in newcomers
                ]
                # Those who come draw their first tokens from their prompts' pass, while the others have drawn theirs
                # already.
                fresh_BV = rows_of.join([row.prompt for row in coming])
                rows += coming
                logits_BV = fresh_BV if logits_BV is None else torch.cat([logits_BV, fresh_BV])
            assert logits_BV is not None
            tokens = choose(model, rows, logits_BV, sampling.temperature, settles)
            alive = [
                place
                for place, row in enumerate(rows)
                if tokens[place] not in stop_ids and len(row.ids) < sampling.max_new_tokens
            ]
            if len(alive) < len(rows):
                for place in set(range(len(rows))) - set(alive):
                    row = rows[place]
                    results[row.number] = Generation(row.ids, row.logprobs, ended=row.ids[-1] in stop_ids)
                if on_batch is not None:
                    on_batch(len(rows) - len(alive))
                alive = closed_up(alive)
                rows_of.keep(alive)
                rows, tokens = [rows[place] for place in alive], [tokens[place] for place in alive]
            logits_BV = rows_of.step(tokens) if rows else None
    return [results[number] for number in range(len(prompts))]


def choose(model: Any, rows: Sequence[Row], logits_BV: Tensor, temperature: float, settles: bool) -> list[int]:
    """The next token of each row, which is added to it with its log-probability."""
    uniform_BL = torch.tensor(
        [row.uniforms[len(row.ids)] for row in rows], dtype=torch.float64, device=logits_BV.device
    )
    drawn = draw(logits_BV, uniform_BL, temperature)
    tokens, logprobs, close = drawn.token_B.tolist(), drawn.logprob_B.tolist(), drawn.close_B.tolist()
    for place, row in enumerate(rows):
        if settles and close[place]:
            alone = draw(logits_alone(model, [*row.prompt, *row.ids]), uniform_BL[place : place + 1], temperature)
            tokens[place], logprobs[place] = int(alone.token_B), float(alone.logprob_B)
        row.ids.append(tokens[place])
        row.logprobs.append(logprobs[place])
    return tokens


def logits_alone(model: Any, ids: Sequence[int]) -> Tensor:
    """logits_BV, B = 1, after these tokens, from a pass over them alone: a function of the tokens."""
    ids_BS = torch.tensor([list(ids)], device=model.get_input_embeddings().weight.device)
    with logits_only_at(model, torch.tensor([[len(ids) - 1]], device=ids_BS.device)):
        logits_BV: Tensor = model(input_ids=ids_BS, use_cache=False).logits[:, 0]
    return logits_BV


def closed_up(alive: Sequence[int]) -> list[int]:
    """The places that stay, so ordered that as few as possible move: gaps are filled from the end."""
    count = len(alive)
    last = [place for place in alive if place >= count]
    staying = {place for place in alive if place < count}
    return [place if place in staying else last.pop() for place in range(count)]


Memory = Callable[[Any, int, int, int], Lanes | GrowingCache]
WAYS: tuple[Memory, ...] = (Lanes, partial(Lanes, own_attention=False), GrowingCache)
"""From the quickest to the one that asks least of a model."""
_verdicts: "WeakKeyDictionary[Any, Memory | str]" = WeakKeyDictionary()
"""For each model that has been tried, how it is decoded or why it cannot be."""


def memory(model: Any, lanes: int, columns: int, pad_id: int) -> Lanes | GrowingCache:
    """Where rows of this model are kept. Raises ValueError when it can be decoded in no way."""
    way = verdict(model)
    if isinstance(way, str):
        raise ValueError(f"{way}: use the transformers engine")
    return way(model, lanes, columns, pad_id)


def why_not_native(model: Any) -> str | None:
    """Why this engine cannot decode the model; None if it can."""
    way = verdict(model)
    return way if isinstance(way, str) else None


def verdict(model: Any) -> Memory | str:
    """`way_to_decode`, tried once per model."""
    if model not in _verdicts:
        _verdicts[model] = way_to_decode(model)
    return _verdicts[model]


@torch.no_grad()
def way_to_decode(model: Any) -> Memory | str:
    """The first of WAYS that agrees with a pass over the whole text on a few tokens, or the reason if none does.

    It is tried because architectures may treat a mask in any way.
    """
    device = model.get_input_embeddings().weight.device
    words = model.get_input_embeddings().num_embeddings
    texts = [tuple(token % words for token in text) for text in ((1, 2, 3, 4, 5), (6, 7))]
    eight, nine = 8 % words, 9 % words
    reason = ""
    with torch.autocast(device.type, enabled=False):
        expected_BV = torch.cat([logits_alone(model, [*text, eight, nine]) for text in texts]).float()
        require_finite({"a logit": float(expected_BV.sum())}, "decoding", OVERFLOW)
        seen = expected_BV[expected_BV >= expected_BV.amax() - WIDEST]
        tolerance = float(seen.amax() - seen.amin()) * (1e-3 if model.dtype == torch.float32 else 0.1)
        for way in WAYS:
            rows = way(model, len(texts), 7, 0)
            try:
                rows.join(texts)
                rows.step([eight] * 2)
                far = float((rows.step([nine] * 2).float() - expected_BV).abs().max())
            except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
                reason = reason or f"{type(error).__name__}: {error}"
                continue
            if far <= tolerance:
                if not rows.joins:
                    log.warning(
                        "%s is decoded with a growing cache and without refilling lanes (%s)",
                        type(model).__name__,
                        reason,
                    )
                return way
            reason = reason or f"its logits are off by {far:.2g} when its cache is written in place"
    kept = "which has other state than the keys and values of past tokens"
    return f"the native engine cannot decode {type(model).__name__}, {kept} ({reason})"
