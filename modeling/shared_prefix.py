"""Packs prompts and their responses into one row: each distinct prompt is encoded once for all its responses.

Every token has the position id of its unpacked sequence, and an attention function registered with transformers
separates the sequences: a response attends to its own prompt and to itself. The result is exact and differentiable,
also with adapters and gradient checkpointing. Shapes: P prompts, A responses, N tokens in the row, S tokens of the
longest prompt, T of the longest response, C = S + T, H heads, D head size, B responses, R response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from modeling.architecture import ATTENTION_LAYERS

if TYPE_CHECKING:
    from modeling.batch import Batch

NAME = "rlhf_ptx_shared_prefix"
UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
"""Terms that some architectures add to attention and that `attention` does not compute."""


def pad_rows(rows: Sequence[Sequence[int]], device: torch.device | str, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """(rows right-padded to the longest, their lengths)."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad_id)
    return ids.to(device), torch.tensor([len(row) for row in rows], device=device)


def real_columns(width: int, length_B: Tensor) -> Tensor:
    """mask_BT of `width` columns: true in the first `length_B` of each row."""
    return torch.arange(width, device=length_B.device) < length_B[:, None]


@dataclass(frozen=True)
class SharedPrefix:
    """The layout. Padded indices point at token 0 and are masked.

    If no prompt has several responses, a prompt and its response are one sequence: they are laid out as P "prompts"
    without responses (A = 0), since plain causal attention is faster.
    """

    ids_1N: Tensor
    position_1N: Tensor
    prompt_PS: Tensor
    """Index of each prompt's tokens in the row."""
    response_AT: Tensor
    prompt_length_P: Tensor
    owner_A: Tensor
    """The prompt of each response."""
    unpad_N: Tensor
    """Index of each token in the padded prompts and padded responses, concatenated."""
    state_R: Tensor
    """Index of the hidden state that predicts each response token, in the order of the batch."""
    last_B: Tensor
    """Index of the last token of each response, in the order of the batch."""
    masks: dict[int | None, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(batch: "Batch") -> "SharedPrefix":
        """The layout of a batch."""
        from modeling.batch import response_index

        of_prompt: dict[tuple[int, ...], list[int]] = {}
        for number, prompt in enumerate(batch.prompts):
            of_prompt.setdefault(tuple(prompt), []).append(number)
        if not batch.share_prompts or len(of_prompt) == len(batch):
            pairs = list(zip(batch.prompts, batch.responses, strict=True))
            row = _Row([[*prompt, *response] for prompt, response in pairs], [[] for _ in pairs])
            starts = [start + len(prompt) for start, (prompt, _) in zip(row.prompt_starts, pairs, strict=True)]
            return row.layout(*response_index(starts, starts, batch), batch.device)
        row = _Row(list(of_prompt), [[batch.responses[number] for number in own] for own in of_prompt.values()])
        order = [number for own in of_prompt.values() for number in own]
        starts, before = [0] * len(batch), [0] * len(batch)
        for number, start, owner in zip(order, row.response_starts, row.owners, strict=True):
            starts[number] = start
            before[number] = row.prompt_starts[owner] + len(row.prompts[owner])
        return row.layout(*response_index(starts, before, batch), batch.device)

    def inputs(self) -> dict[str, Any]:
        """The arguments of a transformer whose attention is `attention`.

        transformers passes a 4-dimensional mask through unchanged instead of building an N x N one; `attention`
        ignores it.
        """
        unused = torch.zeros(1, 1, 1, 1, device=self.ids_1N.device)
        return {
            "input_ids": self.ids_1N, "position_ids": self.position_1N, "attention_mask": unused, "shared_prefix": self,
        }  # fmt: skip

    def masks_of(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """(mask_1SS between prompt tokens, or None for plain causal attention; mask_A1TC of responses over their prompt
        and themselves). A is 1 if there is only one prompt.

        Args:
            window: size of the sliding window, the token itself included; None for full attention.
        """
        if window not in self.masks:
            self.masks[window] = self._prompt_mask(window), self._response_mask(window)
        return self.masks[window]

    def _prompt_mask(self, window: int | None) -> Tensor | None:
        position_1S = torch.arange(self.prompt_PS.shape[1], device=self.prompt_PS.device)[None]
        if window is None or window >= position_1S.shape[1]:
            return None
        return attends(position_1S, position_1S, window)

    def _response_mask(self, window: int | None) -> Tensor:
        device, lengths_P = self.prompt_PS.device, self.prompt_length_P
        length_A1 = (lengths_P if len(lengths_P) == 1 else lengths_P[self.owner_A])[:, None]
        own_AT = length_A1 + torch.arange(self.response_AT.shape[1], device=device)
        before_1S = torch.arange(self.prompt_PS.shape[1], device=device)[None]
        prompt_ATS = attends(own_AT, before_1S.expand(len(length_A1), -1), window) & (before_1S < length_A1)[:, None]
        return torch.cat([prompt_ATS, attends(own_AT, own_AT, window)], dim=2)[:, None]


class _Row:
    """The tokens of the row: each prompt followed by its responses."""

    def __init__(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]) -> None:
        self.prompts = prompts
        self.responses = [response for own in responses for response in own]
        self.owners = [owner for owner, own in enumerate(responses) for _ in own]
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.prompt_starts: list[int] = []
        self.response_starts: list[int] = []
        for prompt, own in zip(prompts, responses, strict=True):
            self.prompt_starts.append(self._append(prompt, 0))
            self.response_starts += [self._append(response, len(prompt)) for response in own]

    def _append(self, tokens: Sequence[int], position: int) -> int:
        start = len(self.ids)
        self.ids += tokens
        self.positions += range(position, position + len(tokens))
        return start

    def layout(self, state_R: Tensor, last_B: Tensor, device: torch.device | str) -> SharedPrefix:
        """The tensors."""

        def spans(starts: Sequence[int], rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
            found = [range(start, start + len(row)) for start, row in zip(starts, rows, strict=True)]
            index, lengths = pad_rows(found or [range(0)], device)
            return index[: len(rows)], lengths[: len(rows)]

        prompt_PS, length_P = spans(self.prompt_starts, self.prompts)
        response_AT, length_A = spans(self.response_starts, self.responses)
        parts = ((prompt_PS, length_P), (response_AT, length_A))
        real = torch.cat([real_columns(index.shape[1], lengths).flatten() for index, lengths in parts])
        unpad_N = torch.empty(len(self.ids), dtype=torch.long, device=device)
        unpad_N[torch.cat([prompt_PS.flatten(), response_AT.flatten()])[real]] = real.nonzero().squeeze(1)
        return SharedPrefix(
            ids_1N=torch.tensor([self.ids], device=device),
            position_1N=torch.tensor([self.positions], device=device),
            prompt_PS=prompt_PS,
            response_AT=response_AT,
            prompt_length_P=length_P,
            owner_A=torch.tensor(self.owners, dtype=torch.long, device=device),
            unpad_N=unpad_N,
            state_R=state_R,
            last_B=last_B,
        )


def attends(query_BQ: Tensor, key_BK: Tensor, window: int | None) -> Tensor:
    """mask_BQK: whether a query position attends to a key position: causal, and within the window."""
    distance_BQK = query_BQ[:, :, None] - key_BK[:, None, :]
    return (distance_BQK >= 0) if window is None else (distance_BQK >= 0) & (distance_BQK < window)


def attention(
    module: Any, query_1HND: Tensor, key_1HND: Tensor, value_1HND: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: (out_1NHD, None). Plain sdpa attention without `shared_prefix`."""
    row: SharedPrefix | None = given.pop("shared_prefix", None)
    if row is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_1HND, key_1HND, value_1HND, attention_mask, **given
        )
        return found
    if any(given.get(name) is not None for name in UNKNOWN_TERMS):
        raise NotImplementedError("its attention has additional terms")
    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1) for x in (query_1HND, key_1HND, value_1HND))
    if (copies := query_NHD.shape[1] // key_NHD.shape[1]) > 1:  # grouped-query attention
        key_NHD, value_NHD = key_NHD.repeat_interleave(copies, dim=1), value_NHD.repeat_interleave(copies, dim=1)
    prompt_mask, response_mask = row.masks_of(given.get("sliding_window"))

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = F.scaled_dot_product_attention(
            query, key, value, mask, given.get("dropout", 0.0), is_causal=mask is None, scale=given.get("scaling")
        )
        return out.transpose(1, 2).flatten(0, 1)

    query_P, key_P, value_P = (x[row.prompt_PS].transpose(1, 2) for x in (query_NHD, key_NHD, value_NHD))
    out = attend(query_P, key_P, value_P, prompt_mask)
    if len(row.owner_A):
        query_A, key_A, value_A = (x[row.response_AT].transpose(1, 2) for x in (query_NHD, key_NHD, value_NHD))
        key_AHCD = torch.cat([key_P[row.owner_A], key_A], dim=2)
        value_AHCD = torch.cat([value_P[row.owner_A], value_A], dim=2)
        out = torch.cat([out, attend(query_A, key_AHCD, value_AHCD, response_mask)])
    return out[row.unpad_N][None], None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def enable(backbone: Any) -> str | None:
    """Sets the backbone's attention to `attention` if it then computes the same hidden states.

    This is checked on a few tokens, once per backbone. If the check fails, the backbone keeps its own attention and the
    reason is returned.
    """
    if not hasattr(backbone, "shared_prefix_reason"):
        before = backbone.config._attn_implementation
        backbone.shared_prefix_reason = why_not(backbone)
        if backbone.shared_prefix_reason is not None:
            backbone.set_attn_implementation(before)
    reason: str | None = backbone.shared_prefix_reason
    return reason


@torch.no_grad()
def why_not(backbone: Any) -> str | None:
    """Why the backbone cannot run this layout; None if it can, and then its attention is `attention`."""
    from modeling.batch import Batch

    settings, name = backbone.config.get_text_config(), type(backbone).__name__
    # The check on a few tokens detects neither layers with other state than attention nor windows wider than that.
    others = set(getattr(settings, "layer_types", None) or ()) - ATTENTION_LAYERS
    if others or getattr(settings, "attention_chunk_size", None):
        return f"{name} has layers that do more than attend ({', '.join(sorted(others)) or 'attention in chunks'})"
    few = torch.arange(5, 5 + 18).remainder(settings.vocab_size).tolist()
    batch = Batch(
        [few[:3], few[:3], few[3:8], few[3:8]],
        [few[8:10], few[10:13], few[13:14], few[14:18]],
        next(backbone.parameters()).device,
    )
    row = batch.layout(packed=True)
    assert isinstance(row, SharedPrefix)

    def last_states(packed: bool) -> Tensor:
        layout = batch.layout(packed)
        hidden = backbone(**layout.inputs(), use_cache=False).last_hidden_state.flatten(0, 1)
        found: Tensor = hidden[layout.last_B]
        return found

    with torch.autocast(row.ids_1N.device.type, enabled=False):
        expected_BH = last_states(packed=False)
        try:
            backbone.set_attn_implementation(NAME)
            found_BH = last_states(packed=True)
        except Exception as error:  # model code may raise anything
            first = str(error).splitlines()[0] if str(error) else ""
            return f"{name} cannot share a prompt's pass ({type(error).__name__}: {first})"
    has_window = getattr(settings, "sliding_window", None) and getattr(settings, "use_sliding_window", True)
    if has_window and not any(row.masks):
        return f"{name} does not pass the width of its sliding window to its attention"
    difference, scale = float((found_BH - expected_BH).abs().max()), float(expected_BH.abs().max())
    if difference > 1e-4 * scale:
        return f"{name} computes other hidden states with shared prompts (by {difference:.2g} of {scale:.2g})"
    return None
