"""Prompts and their answers in one forward pass: each prompt is encoded once, and its keys and values are shared by all
its answers.

All tokens lie side by side in a single row without padding, each at the position that it has in the plain sequence;
only attention, which runs as a function of our own, sets answers apart. Exact and differentiable, for full fine-tuning,
adapters and recomputed activations alike. Shapes: P prompts, A answers of all prompts together, N tokens in all, S
tokens of the longest prompt, T of the longest answer, H heads, D head size.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling.attention import attending, refuse_unknown_terms
from modeling.sequences import Sequences, pad_rows, real_columns, take_positions

NAME = "rlhf_ptx_shared_prefix"
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class SharedPrefix:
    """Where in the row the prompts and answers lie. Padded indices point at token 0, and nobody attends to them."""

    ids_1N: Tensor
    position_1N: Tensor
    prompt_PS: Tensor
    answer_AT: Tensor
    prompt_length_P: Tensor
    answer_length_A: Tensor
    owner_A: Tensor
    """Which prompt each answer belongs to."""
    padded_N: Tensor
    """Where each token lies among padded prompts and, after them, padded answers."""
    masks: dict[int | None, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    @staticmethod
    def lay_out(
        prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], device: torch.device
    ) -> "SharedPrefix":
        """Prompt by prompt, each followed by its answers. `answers[p]` are those to `prompts[p]`: none of them empty,
        and perhaps none at all.
        """
        rows = [row for prompt, own in zip(prompts, answers, strict=True) for row in (prompt, *own)]
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row))
        at = iter(starts)
        prompt_starts, answer_starts, positions = [], [], []
        for prompt, own in zip(prompts, answers, strict=True):
            prompt_starts.append(next(at))
            answer_starts += [next(at) for _ in own]
            positions += [range(len(prompt)), *(range(len(prompt), len(prompt) + len(answer)) for answer in own)]
        every_answer = [answer for own in answers for answer in own]
        prompt_PS, prompt_length_P = pad_rows(
            [range(start, start + len(p)) for start, p in zip(prompt_starts, prompts, strict=True)], 0, device
        )
        spans = [range(start, start + len(a)) for start, a in zip(answer_starts, every_answer, strict=True)] or [
            range(0)
        ]
        answer_AT, answer_length_A = (x[: len(every_answer)] for x in pad_rows(spans, 0, device))
        real = torch.cat(
            [
                real_columns(prompt_PS.shape[1], prompt_length_P).flatten(),
                real_columns(answer_AT.shape[1], answer_length_A).flatten(),
            ]
        )
        index = torch.cat([prompt_PS.flatten(), answer_AT.flatten()])
        padded_N = torch.empty(starts[-1], dtype=torch.long, device=device)
        padded_N[index[real]] = real.nonzero().squeeze(1)
        return SharedPrefix(
            ids_1N=torch.tensor([[token for row in rows for token in row]], device=device),
            position_1N=torch.tensor([[position for row in positions for position in row]], device=device),
            prompt_PS=prompt_PS,
            answer_AT=answer_AT,
            prompt_length_P=prompt_length_P,
            answer_length_A=answer_length_A,
            owner_A=torch.tensor(
                [index for index, own in enumerate(answers) for _ in own], dtype=torch.long, device=device
            ),
            padded_N=padded_N,
        )

    @property
    def last_A(self) -> Tensor:
        """Where in the row each answer's last token is."""
        return take_last(self.answer_AT, self.answer_length_A)

    @property
    def state_AT(self) -> Tensor:
        """Where in the row the state before each answer token is; columns beyond an answer hold numbers without
        meaning.
        """
        return torch.cat(
            [take_last(self.prompt_PS, self.prompt_length_P)[self.owner_A][:, None], self.answer_AT[:, :-1]], dim=1
        )

    def masks_of(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """(mask_1SS of prompts or None where plain causal attention is the same, mask_A1TC of answers to their prompt's
        and their own tokens).

        `window` is how far back a token sees, itself included; None is to the start. Where all answers have one prompt,
        A is 1.
        """
        if window not in self.masks:
            self.masks[window] = self._prompt_mask(window), self._answer_mask(window)
        return self.masks[window]

    def _prompt_mask(self, window: int | None) -> Tensor | None:
        length = self.prompt_PS.shape[1]
        if window is None or window >= length:
            return None
        return seen(
            torch.arange(length, device=self.prompt_PS.device)[None],
            torch.arange(length, device=self.prompt_PS.device)[None],
            window,
        )

    def _answer_mask(self, window: int | None) -> Tensor:
        device, prompts = self.prompt_PS.device, self.prompt_length_P
        length_A1 = (prompts if len(prompts) == 1 else prompts[self.owner_A])[:, None]
        own_AT = length_A1 + torch.arange(self.answer_AT.shape[1], device=device)
        before_1S = torch.arange(self.prompt_PS.shape[1], device=device)[None]
        prompt_ATS = seen(own_AT, before_1S.expand(len(length_A1), -1), window) & (before_1S < length_A1)[:, None]
        return torch.cat([prompt_ATS, seen(own_AT, own_AT, window)], dim=2)[:, None]


def seen(query_BQ: Tensor, key_BK: Tensor, window: int | None) -> Tensor:
    """mask_BQK: whether a token at one position sees another: not ahead of itself, and not too far back."""
    distance_BQK = query_BQ[:, :, None] - key_BK[:, None, :]
    return (distance_BQK >= 0) if window is None else (distance_BQK >= 0) & (distance_BQK < window)


def take_last(index_BT: Tensor, length_B: Tensor) -> Tensor:
    """index_B: the last real column of each row."""
    return index_BT.gather(1, length_B[:, None] - 1).squeeze(1)


def attention(
    module: Any, query_1HND: Tensor, key_1HND: Tensor, value_1HND: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0, sliding_window: int | None = None, shared_prefix: SharedPrefix | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The attention of every layer, in transformers' form: (out_1NHD, no weights). Keys may have fewer heads than
    queries.
    """
    if shared_prefix is None or attention_mask is not None:
        raise NotImplementedError("it does not hand on how the row is laid out")
    refuse_unknown_terms(more)
    row = shared_prefix
    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1) for x in (query_1HND, key_1HND, value_1HND))
    if (copies := query_NHD.shape[1] // key_NHD.shape[1]) > 1:
        key_NHD, value_NHD = key_NHD.repeat_interleave(copies, dim=1), value_NHD.repeat_interleave(copies, dim=1)
    prompt_mask, answer_mask = row.masks_of(sliding_window)

    def rows(x_NHD: Tensor, index: Tensor) -> Tensor:
        return x_NHD[index].transpose(1, 2)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
        return out.transpose(1, 2).flatten(0, 1)

    keys_PHSD, values_PHSD = rows(key_NHD, row.prompt_PS), rows(value_NHD, row.prompt_PS)
    of_prompts = attend(rows(query_NHD, row.prompt_PS), keys_PHSD, values_PHSD, prompt_mask)
    if not len(row.owner_A):
        return of_prompts[row.padded_N][None], None
    keys_AHCD = torch.cat([keys_PHSD[row.owner_A], rows(key_NHD, row.answer_AT)], dim=2)
    values_AHCD = torch.cat([values_PHSD[row.owner_A], rows(value_NHD, row.answer_AT)], dim=2)
    of_answers = attend(rows(query_NHD, row.answer_AT), keys_AHCD, values_AHCD, answer_mask)
    return torch.cat([of_prompts, of_answers])[row.padded_N][None], None


AttentionInterface.register(NAME, attention)


@contextlib.contextmanager
def sharing(backbone: Any, read_M: Tensor | None = None) -> Iterator[None]:
    """Within, the backbone attends through `attention`, and wants `shared_prefix` with every call. There is no mask
    then, which other functions would need.

    Where `read_M` are all tokens whose last hidden states will be looked at, the others' are left unfinished.
    """
    with (
        attending(backbone.config, NAME),
        contextlib.nullcontext() if read_M is None else finished_only_at(backbone, read_M),
    ):
        yield


@contextlib.contextmanager
def finished_only_at(backbone: Any, read_M: Tensor) -> Iterator[None]:
    """Within, the last layer's MLP, whose work on one token is nobody else's business, runs at these tokens of the row
    alone.
    """
    last = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)][-1:]
    mlp = getattr(last[0], "mlp", None) if last else None
    if mlp is None:
        yield
        return

    def select(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens[0] = args[0].shape[1]
        return (args[0][:, read_M], *args[1:])

    def put_back(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        found_1MH = output[0] if isinstance(output, tuple) else output
        hidden_1NH = found_1MH.new_zeros(1, tokens[0], found_1MH.shape[-1]).index_copy(1, read_M, found_1MH)
        return (hidden_1NH, *output[1:]) if isinstance(output, tuple) else hidden_1NH

    tokens = [0]
    handles = [mlp.register_forward_pre_hook(select), mlp.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inputs(row: SharedPrefix) -> dict[str, Any]:
    """What to call a model with, within `sharing`."""
    return {"input_ids": row.ids_1N, "position_ids": row.position_1N, "shared_prefix": row, "use_cache": False}


REASONS: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def plain_because(backbone: nn.Module) -> str | None:
    """Why each answer needs a pass of its own over its prompt; None where answers share it. Tried once a backbone."""
    if backbone not in REASONS:
        REASONS[backbone] = why_not(backbone)
    return REASONS[backbone]


@torch.no_grad()
def why_not(backbone: Any) -> str | None:
    """Why answers cannot share their prompt's pass in this architecture, found by trying it on a few tokens; None where
    they can.
    """
    device, settings, name = (
        next(backbone.parameters()).device,
        backbone.config.get_text_config(),
        type(backbone).__name__,
    )
    # What a few tokens would not show: layers that carry something else than attention along the row, and windows wider
    # than these few.
    if (others := set(getattr(settings, "layer_types", None) or ()) - KNOWN_LAYERS) or getattr(
        settings, "attention_chunk_size", None
    ):
        return f"{name} has layers that do more than attend ({', '.join(sorted(others)) or 'attention in chunks'})"
    few = torch.arange(5, 5 + 18, device="cpu").remainder(settings.vocab_size).tolist()
    prompts, answers = [few[:3], few[3:8]], [[few[8:10], few[10:13]], [few[13:14], few[14:18]]]
    plain = Sequences.pad([prompts[0]] * 2 + [prompts[1]] * 2, [answer for own in answers for answer in own], 0, device)
    row = SharedPrefix.lay_out(prompts, answers, device)
    with torch.autocast(device.type, enabled=False):
        expected_A1H = take_positions(
            backbone(input_ids=plain.ids_BS, use_cache=False).last_hidden_state, plain.last_index_B1
        )
        try:
            with sharing(backbone, row.last_A):
                found_AH = backbone(**inputs(row)).last_hidden_state[0, row.last_A]
        except Exception as error:  # whatever an architecture says to a call that it does not know
            return (
                f"{name} cannot be called on answers that share a prompt ({type(error).__name__}: "
                f"{str(error).splitlines()[0]})"
            )
    if (
        getattr(settings, "sliding_window", None)
        and getattr(settings, "use_sliding_window", True)
        and not any(row.masks)
    ):
        return f"{name} does not tell its attention how wide its sliding window is"
    difference, scale = float((found_AH - expected_A1H[:, 0]).abs().max()), float(expected_A1H.abs().max())
    if difference > 1e-4 * scale:
        return f"{name} gives answers that share a prompt other hidden states (by {difference:.2g} of {scale:.2g})"
    return None
