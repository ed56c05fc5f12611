"""Prompts with their responses as padded tensors. Masks come from lengths, never from token ids.

Rows are `prompt + response + padding`: padding stands on the right only, where causal attention never looks back at it,
so no attention mask is needed. Shapes: B rows, S tokens a row, T response tokens a row, H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(ids, right-padded; lengths)."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=pad_id
    )
    return ids.to(device), torch.tensor([len(row) for row in rows], device=device)


def real_columns(width: int, length_B: Tensor) -> Tensor:
    """mask_BT of so many columns: true where a row of that length has a token."""
    return torch.arange(width, device=length_B.device) < length_B[:, None]


@dataclass(frozen=True)
class Sequences:
    """B prompts with responses."""

    ids_BS: Tensor
    prompt_length_B: Tensor
    response_length_B: Tensor

    @staticmethod
    def pad(
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        pad_id: int,
        device: torch.device | str = "cpu",
    ) -> "Sequences":
        """Lays out rows of ids side by side."""
        ids_BS, _ = pad_rows(
            [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)], pad_id, device
        )
        return Sequences(
            ids_BS=ids_BS,
            prompt_length_B=torch.tensor([len(prompt) for prompt in prompts], device=device),
            response_length_B=torch.tensor([len(response) for response in responses], device=device),
        )

    @property
    def response_tokens(self) -> int:
        """T, the longest response."""
        return int(self.response_length_B.max())

    @property
    def mask_BT(self) -> Tensor:
        """True on response tokens up to and including EOS."""
        return real_columns(self.response_tokens, self.response_length_B)

    @property
    def state_index_BT(self) -> Tensor:
        """Where in the row the state before each response token is: logits there predict the token, values there judge
        the state.

        Columns beyond a row's response point at its last token; the mask leaves them out.
        """
        offset_T = torch.arange(self.response_tokens, device=self.ids_BS.device)
        last_B1 = (self.prompt_length_B + self.response_length_B - 1)[:, None]
        return torch.minimum(self.prompt_length_B[:, None] - 1 + offset_T, last_B1)

    @property
    def last_index_B1(self) -> Tensor:
        """Where in the row the last response token is; a reward model reads its score there."""
        return (self.prompt_length_B + self.response_length_B - 1)[:, None]

    @property
    def response_BT(self) -> Tensor:
        """Response token ids; columns beyond a row's response repeat its last token."""
        last_B1 = (self.prompt_length_B + self.response_length_B - 1)[:, None]
        return self.ids_BS.gather(1, torch.minimum(self.state_index_BT + 1, last_B1))


def take_positions(hidden_BSH: Tensor, index_BT: Tensor) -> Tensor:
    """hidden_BTH: row b holds hidden_BSH[b, index_BT[b]]."""
    return hidden_BSH.gather(1, index_BT[:, :, None].expand(-1, -1, hidden_BSH.shape[-1]))
