"""transformers' own `generate` as an engine: for architectures that the native one cannot decode, and as a second
opinion.

Sampling is exact at the temperature, but a batch shares one stream of random numbers, so a text depends on its
neighbours.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from modeling.adapters import merged_weights
from modeling.engines.types import Generation, Sampling, by_length, check_room
from modeling.logprobs import head_outside_autocast
from modeling.seeds import derive_seed


class TransformersEngine:
    """`GenerationMixin.generate`, in batches of like length, padded on the left."""

    records_logprobs = False

    @torch.no_grad()
    def generate(
        self, model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling,
        stop_ids: Collection[int], pad_id: int,
        on_batch: Callable[[int], object] | None = None,
    ) -> list[Generation]:  # fmt: skip
        """See `Engine`. The same call gives the same texts; another batch size, order or number of processes gives
        others.
        """
        check_room(model, prompts, sampling)
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        device = base.get_input_embeddings().weight.device
        order, results = by_length(prompts), {}
        own_settings = only_settings(base, settings(sampling, stop_ids, pad_id))
        with (
            merged_weights(model),
            head_outside_autocast(base),
            own_settings,
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            for start in range(0, len(order), sampling.batch_size):
                batch = order[start : start + sampling.batch_size]
                torch.manual_seed(derive_seed("transformers", *(seeds[number] for number in batch)))
                ids_BP, seen_BP = left_padded([prompts[number] for number in batch], pad_id)
                made_BS = base.generate(input_ids=ids_BP.to(device), attention_mask=seen_BP.to(device))
                for number, ids in zip(batch, made_BS[:, ids_BP.shape[1] :].tolist(), strict=True):
                    results[number] = until_end(ids, stop_ids)
                if on_batch is not None:
                    on_batch(len(batch))
        return [results[number] for number in range(len(prompts))]


def settings(sampling: Sampling, stop_ids: Collection[int], pad_id: int) -> GenerationConfig:
    """Exact sampling at the temperature, with nothing cut off; the likeliest token at temperature 0."""
    drawn = (
        {"do_sample": False}
        if sampling.temperature == 0
        else {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    )
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, eos_token_id=sorted(stop_ids), pad_token_id=pad_id, **drawn
    )


@contextmanager
def only_settings(model: Any, chosen: GenerationConfig) -> Iterator[None]:
    """Within, these are the model's own settings: whatever is not set would else come from the file that it was loaded
    with, a top_p say.
    """
    saved = model.generation_config
    model.generation_config = chosen
    try:
        yield
    finally:
        model.generation_config = saved


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_BP, seen_BP): every prompt ends in the last column."""
    width = max(map(len, prompts))
    ids_BP = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    seen_BP = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids_BP, seen_BP


def until_end(ids: Sequence[int], stop_ids: Collection[int]) -> Generation:
    """The response up to and including its first end token."""
    length = next((place for place, token in enumerate(ids, start=1) if token in stop_ids), None)
    return Generation(list(ids[:length]), None, length is not None)
