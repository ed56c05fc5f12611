"""Key/value cache with one slot per sequence, written in place.

A sequence starts at column 0 of its slot, so columns are positions; columns beyond its length are masked. Unfinished
sequences occupy the first slots. Shapes: B unfinished sequences, U distinct prompts, P tokens of the longest of
them, C columns, G key/value heads, D head size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from modeling.shared_prefix import pad_rows, real_columns


class KVCache(Cache):
    """Decodes with a model whose only state is keys and values of past tokens."""

    def __init__(self, model: Any, slots: int, columns: int) -> None:
        """Room for `slots` sequences of at most `columns` tokens."""
        super().__init__(layers=[])
        self.model, self.slots, self.columns = model, slots, columns
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.states: list[tuple[Tensor, Tensor]] = []
        """(keys, values) of each layer, (slots, G, C, D)."""
        self.lengths: list[int] = []
        """Number of cached tokens of each sequence."""
        self.width = 0
        """Columns in use, during a step and after it."""
        self.prefilling: tuple[slice, Tensor] | None = None
        """During a prefill: the slots to fill, and the index of the distinct prompt for each."""
        self.slot_B = self.length_B = torch.empty(0, dtype=torch.long, device=self.device)

    @torch.no_grad()
    def add(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Prefills the next slots with prompts, which may be empty. Equal prompts share one pass."""
        distinct = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        slots = slice(len(self.lengths), len(self.lengths) + len(prompts))
        assert slots.stop <= self.slots
        self.lengths += map(len, prompts)
        ids_UP, _ = pad_rows(list(distinct), self.device)  # on the right, where no token attends to it
        if ids_UP.shape[1]:
            self.prefilling = slots, torch.tensor([distinct[prompt] for prompt in prompts], device=self.device)
            self.model(input_ids=ids_UP, past_key_values=self, use_cache=True, logits_to_keep=1)
            self.prefilling = None

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """logits_BV after one more token of each sequence."""
        self.slot_B = torch.arange(len(tokens), device=self.device)
        self.length_B = torch.tensor(self.lengths, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        self.width = max(self.lengths)
        assert self.width <= self.columns
        logits_BV: Tensor = self.model(
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            attention_mask=real_columns(self.width, self.length_B + 1).long(),
            position_ids=self.length_B[:, None],
            past_key_values=self,
            use_cache=True,
        ).logits[:, -1]
        return logits_BV

    def remove(self, finished: Sequence[int]) -> list[int]:
        """Frees slots and moves the last sequences into the gaps. Returns the old slots of the remaining sequences."""
        count = len(self.lengths) - len(finished)
        order, gaps = list(range(count)), [slot for slot in finished if slot < count]
        if gaps:
            last = sorted(set(range(count, len(self.lengths))) - set(finished))
            for gap, slot in zip(gaps, last, strict=True):
                order[gap] = slot
            for layer in self.states:
                for states in layer:
                    states[gaps, :, : self.width] = states[last, :, : self.width]
        self.lengths = [self.lengths[slot] for slot in order]
        return order

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Writes (U, G, P, D) of a prefill or (B, G, 1, D) of a step; returns what the new tokens attend to."""
        new = key_states, value_states
        if layer_idx == len(self.states):
            sizes = ((self.slots, states.shape[1], self.columns, states.shape[3]) for states in new)
            keys, values = (states.new_zeros(size) for states, size in zip(new, sizes, strict=True))
            self.states.append((keys, values))  # zeros, since masked values are multiplied by 0 and must be finite
        for kept, states in zip(self.states[layer_idx], new, strict=True):
            if self.prefilling is not None:
                slots, prompt_B = self.prefilling
                kept[slots, :, : states.shape[2]] = states[prompt_B]
            else:
                kept[self.slot_B, :, self.length_B] = states[:, :, 0]
        if self.prefilling is not None:
            return new
        return tuple(kept[: len(self.slot_B), :, : self.width] for kept in self.states[layer_idx])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of columns before the new tokens."""
        return 0 if self.prefilling is not None else self.width - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(number of columns that the new tokens attend to, the first one)."""
        return self.get_seq_length() + query_length, 0
