"""Keys and values of rows that are decoded side by side, in memory laid out beforehand and written in place.

Alive rows are always the first ones: a row that has ended is overwritten by the last, a newcomer is put behind them.
Each row starts at column 0 and grows by itself, so nothing is shifted and a row's columns are its positions; what lies
beyond a row's length is masked, whoever left it there. Attention looks at all columns that are laid out, which are few
more than the longest row has tokens: a part of them would not be contiguous. Shapes: B alive rows, U distinct prompts
of newcomers, P tokens of the longest of them, C columns, H heads, G key/value heads, D size of a head.
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from modeling.attention import attending, refuse_unknown_terms
from modeling.logprobs import logits_only_at
from modeling.sequences import pad_rows

NAME = "rlhf_ptx_one_token"
GROWTH = 32
"""Columns are laid out for at least so many tokens more at a time, until the longest row that can come has room: most
responses end early.
"""


def attention(
    module: Any, query_BH1D: Tensor, key_BGCD: Tensor, value_BGCD: Tensor, mask_B11C: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The attention of one token a row, in transformers' form: (out_B1HD, no weights).

    Heads that share keys are one matrix product, and keys are read where they lie; PyTorch's own on a processor takes
    two to four times as long.
    """
    refuse_unknown_terms(more)
    rows, heads, _, size = query_BH1D.shape
    groups = key_BGCD.shape[1]
    query_BGRD = query_BH1D.view(rows, groups, heads // groups, size) * (size**-0.5 if scaling is None else scaling)
    score_BGRC = torch.matmul(query_BGRD, key_BGCD.transpose(2, 3)).add_(mask_B11C)
    return torch.matmul(score_BGRC.softmax(-1), value_BGCD).view(rows, 1, heads, -1), None


AttentionInterface.register(NAME, attention)


class Lanes:
    """Rows of a model whose attention keeps plain keys and values."""

    joins = True
    """Whether newcomers may come while others are decoded."""

    def __init__(self, model: Any, count: int, columns: int, pad_id: int, own_attention: bool = True) -> None:
        """Room for `count` rows of at most `columns` tokens. The model attends as it always does unless `own_attention`
        and in float32 on a CPU.
        """
        self.model, self.count, self.most_columns, self.pad_id = model, count, columns, pad_id
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.columns = 0
        self.lengths: list[int] = []
        self.newcomers: tuple[slice, Tensor] | None = None
        self.row_B = self.column_B = torch.empty(0, dtype=torch.long, device=self.device)
        self.attends = own_attention and self.device.type == "cpu" and in_float32(model)
        self.cache = Cache(layer_class_to_replicate=partial(LaneLayer, self))
        self.additive = torch.promote_types(model.dtype, torch.float16)

    @torch.no_grad()
    def join(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """logits_BV after each prompt, whose rows come behind those there are. Equal prompts share one pass."""
        number_of = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        owner_B = torch.tensor([number_of[prompt] for prompt in prompts], device=self.device)
        ids_UP, length_U = pad_rows(list(number_of), self.pad_id, self.device)
        start = len(self.lengths)
        self.lengths += [len(prompt) for prompt in prompts]
        assert len(self.lengths) <= self.count
        self._make_room(max(self.lengths))
        self.newcomers = slice(start, len(self.lengths)), owner_B
        with logits_only_at(self.model, length_U[:, None] - 1):
            logits_UV: Tensor = self.model(input_ids=ids_UP, past_key_values=self.cache, use_cache=True).logits[:, 0]
        self.newcomers = None
        return logits_UV if len(number_of) == len(prompts) else logits_UV[owner_B]

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """logits_BV after one more token of each row."""
        self._make_room(max(self.lengths) + 1)
        self.row_B = torch.arange(len(tokens), device=self.device)
        self.column_B = torch.tensor(self.lengths, device=self.device)
        hidden_B1C = torch.arange(self.columns, device=self.device) > self.column_B[:, None, None]
        # Made once for all layers, in the form in which attention adds it.
        mask_B11C = torch.zeros(hidden_B1C.shape, dtype=self.additive, device=self.device).masked_fill_(
            hidden_B1C, -torch.inf
        )[:, None]
        with attending(self.model.config, NAME) if self.attends else contextlib.nullcontext():
            logits_BV: Tensor = self.model(
                input_ids=torch.tensor(tokens, device=self.device)[:, None],
                position_ids=self.column_B[:, None],
                attention_mask=mask_B11C,
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, 0]
        self.lengths = [length + 1 for length in self.lengths]
        return logits_BV

    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes what row rows[i] was; all others leave. Only rows that move are copied."""
        moved = [(place, row) for place, row in enumerate(rows) if place != row]
        if moved:
            width = max(self.lengths[row] for _, row in moved)
            target, source = (torch.tensor(side, device=self.device) for side in zip(*moved, strict=True))
            for layer in self.cache.layers:
                layer.keys[target, :, :width] = layer.keys[source, :, :width]
                layer.values[target, :, :width] = layer.values[source, :, :width]
        self.lengths = [self.lengths[row] for row in rows]

    def _make_room(self, width: int) -> None:
        assert width <= self.most_columns
        if width > self.columns:
            self.columns = min(max(width + GROWTH, width * 5 // 4), self.most_columns)


class LaneLayer(CacheLayerMixin):
    """Keys and values of one layer, (count, G, C, D)."""

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, lanes: Lanes) -> None:
        super().__init__()
        self.lanes = lanes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Zeros, since what is masked is still multiplied by 0."""
        count, columns = self.lanes.count, self.lanes.columns
        self.keys, self.values = (
            states.new_zeros((count, states.shape[1], columns, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes newcomers' (U, G, P, D), or one more column of each row, and returns what attention is to see."""
        lanes = self.lanes
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        elif self.keys.shape[2] < lanes.columns:
            self.keys, self.values = (widened(states, lanes.columns) for states in (self.keys, self.values))
        if lanes.newcomers is not None:
            rows, owner_B = lanes.newcomers
            width = key_states.shape[2]
            self.keys[rows, :, :width] = key_states[owner_B]
            self.values[rows, :, :width] = value_states[owner_B]
            return key_states, value_states
        count = len(lanes.row_B)
        self.keys[lanes.row_B, :, lanes.column_B] = key_states[:, :, 0]
        self.values[lanes.row_B, :, lanes.column_B] = value_states[:, :, 0]
        return self.keys[:count], self.values[:count]

    def get_seq_length(self) -> int:
        """Tokens before the ones that are read: none for newcomers."""
        return 0 if self.lanes.newcomers is not None else self.lanes.columns - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns that attention sees, where they start)."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Columns at most."""
        return self.lanes.most_columns


class GrowingCache:
    """The same for models whose attention takes no mask of ours: transformers' DynamicCache, a copy at every step, and
    no newcomers on the way.

    Prompts are right-padded to the longest, and padding stays in the cache as a masked gap.
    """

    joins = False

    def __init__(self, model: Any, count: int, columns: int, pad_id: int) -> None:
        """What is known of the rows beforehand is of no use here."""
        self.model, self.pad_id = model, pad_id
        self.device: torch.device = model.get_input_embeddings().weight.device

    @torch.no_grad()
    def join(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """logits_BV after each prompt; rows of before are gone. Equal prompts share one pass."""
        number_of = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        owner_B = torch.tensor([number_of[prompt] for prompt in prompts], device=self.device)
        ids_UP, length_U = pad_rows(list(number_of), self.pad_id, self.device)
        self.cache = DynamicCache()
        with logits_only_at(self.model, length_U[:, None] - 1):
            logits_UV: Tensor = self.model(input_ids=ids_UP, past_key_values=self.cache, use_cache=True).logits[:, 0]
        self.cache.batch_select_indices(owner_B)
        self.length_B = length_U[owner_B]
        self.seen_BS = torch.arange(ids_UP.shape[1], device=self.device) < self.length_B[:, None]
        return logits_UV[owner_B]

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """logits_BV after one more token of each row."""
        self.seen_BS = torch.cat([self.seen_BS, torch.ones_like(self.seen_BS[:, :1])], dim=1)
        logits_BV: Tensor = self.model(
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            position_ids=self.length_B[:, None],
            attention_mask=self.seen_BS.long(),
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, 0]
        self.length_B = self.length_B + 1
        return logits_BV

    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes what row rows[i] was; all others leave."""
        index_B = torch.tensor(rows, dtype=torch.long, device=self.device)
        self.cache.batch_select_indices(index_B)
        self.length_B, self.seen_BS = self.length_B[index_B], self.seen_BS[index_B]


def in_float32(model: Any) -> bool:
    """Whether forward passes are computed in float32."""
    weight = model.get_input_embeddings().weight
    return weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)


def widened(states: Tensor, columns: int) -> Tensor:
    """The same with zeros up to so many columns."""
    return torch.nn.functional.pad(states, (0, 0, 0, columns - states.shape[2]))
