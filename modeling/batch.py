"""A batch of prompts with responses, and how its tokens are laid out for one forward pass.

There are two layouts. `SharedPrefix` (modeling/shared_prefix.py) packs all tokens into one row without padding and
encodes a prompt once for all its responses. `Padded` has one right-padded row per response, for architectures that
cannot run the first. Shapes: B responses, R response tokens of all responses concatenated, T tokens of the longest
response, S tokens of the longest prompt with its response.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modeling.shared_prefix import SharedPrefix, pad_rows


@dataclass
class Batch:
    """B prompts with responses, as token ids. A prompt may occur several times; a score needs a response that is not
    empty.
    """

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    device: torch.device | str = "cpu"
    share_prompts: bool = True
    """Whether a prompt is encoded once for all its responses."""
    frozen_hidden: Tensor | None = None
    """Output of the frozen lower layers, stored by the first pass (modeling/frozen_layers.py)."""
    _layouts: dict[bool, "SharedPrefix | Padded"] = field(default_factory=dict)

    def __len__(self) -> int:
        """B."""
        return len(self.responses)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each response."""
        return [len(response) for response in self.responses]

    @property
    def token_R(self) -> Tensor:
        """The response tokens."""
        tokens = [token for response in self.responses for token in response]
        return torch.tensor(tokens, dtype=torch.long, device=self.device)

    def padded(self, x_R: Tensor) -> Tensor:
        """x_BT: one row per response, zeros after its end."""
        return torch.nn.utils.rnn.pad_sequence(list(x_R.split(self.lengths)), batch_first=True)

    def layout(self, packed: bool) -> "SharedPrefix | Padded":
        """The input of a transformer; built on the first call and cached."""
        if packed not in self._layouts:
            make = SharedPrefix.of if packed else Padded.of
            self._layouts[packed] = make(self)
        return self._layouts[packed]


@dataclass(frozen=True)
class Padded:
    """One row per response. Padding is on the right, where causal attention never attends, so no mask is needed."""

    ids_BS: Tensor
    state_R: Tensor
    """Index, into the B * S tokens, of the hidden state that predicts each response token."""
    last_B: Tensor
    """Index of the last token of each response."""

    @staticmethod
    def of(batch: Batch) -> "Padded":
        """The layout of a batch."""
        rows = [[*prompt, *response] for prompt, response in zip(batch.prompts, batch.responses, strict=True)]
        ids_BS, _ = pad_rows(rows, batch.device)
        starts = [number * ids_BS.shape[1] + len(prompt) for number, prompt in enumerate(batch.prompts)]
        return Padded(ids_BS, *response_index(starts, starts, batch))

    def inputs(self) -> dict[str, Any]:
        """The arguments of the transformer."""
        return {"input_ids": self.ids_BS}


def response_index(starts: Sequence[int], before: Sequence[int], batch: Batch) -> tuple[Tensor, Tensor]:
    """(state_R, last_B) of responses whose tokens begin at `starts` and whose prompts end just before `before`."""
    states, last = [], []
    for start, end_of_prompt, length in zip(starts, before, batch.lengths, strict=True):
        states += [end_of_prompt - 1, *range(start, start + length - 1)][:length]
        last.append(start + length - 1)
    return torch.tensor(states, dtype=torch.long, device=batch.device), torch.tensor(last, device=batch.device)


def text_batch(chunks: Sequence[Sequence[int]], device: torch.device | str) -> Batch:
    """Plain text as a batch: every token except the first is a response token."""
    return Batch([chunk[:1] for chunk in chunks], [chunk[1:] for chunk in chunks], device, share_prompts=False)


def micro_batches(rows: Sequence[int], tokens: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Splits rows, in order, into groups of at most `max_tokens` tokens (at least one row); `tokens[row]` is a row's
    size.
    """
    groups: list[list[int]] = []
    room = 0
    for row in rows:
        if groups and tokens[row] <= room:
            groups[-1].append(row)
        else:
            groups.append([row])
            room = max_tokens
        room -= tokens[row]
    return groups
