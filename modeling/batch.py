"""Prompts with responses for one forward pass, without padding where the architecture allows.

All tokens stand in one row, and responses to the same prompt share its pass (modeling/shared_prefix.py); architectures
that cannot do that get padded rows (modeling/sequences.py). Either way the hidden states come back for the tokens that
matter alone: R response tokens of all rows one after the other, or the last one of each of B rows. Shapes: M tokens
read, H hidden size, N all tokens in a row.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from modeling.sequences import Sequences, real_columns
from modeling.shared_prefix import SharedPrefix, inputs, plain_because, sharing
from modeling.trunk import Trunk, recorded

Reading = Literal["states", "last"]
"""`states`: before each response token, where logits predict it and values judge; `last`: the last response token,
where a score stands.
"""


@dataclass
class Batch:
    """B prompts with responses. Responses have a token at least."""

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    pad_id: int
    device: torch.device
    trunk: Trunk | None = None
    trunk_hidden: Tensor | None = None
    """What left the trunk, once a pass has recorded it."""
    shared: bool = True
    """Whether responses to the same prompt share its pass."""

    @cached_property
    def length_B(self) -> Tensor:
        """Response tokens a row."""
        return torch.tensor([len(response) for response in self.responses], device=self.device)

    @cached_property
    def token_R(self) -> Tensor:
        """The response tokens, row after row."""
        return torch.tensor([token for response in self.responses for token in response], device=self.device)

    def __len__(self) -> int:
        """B."""
        return len(self.responses)

    def rows(self, x_R: Tensor) -> Tensor:
        """x_BT: a row a response, zeros beyond it."""
        return torch.nn.utils.rnn.pad_sequence(list(x_R.split(self.length_B.tolist())), batch_first=True)

    def hidden(self, backbone: Any, reading: Reading) -> Tensor:
        """hidden_MH of a backbone's last layer at the tokens that are read."""
        with self.around(backbone, reading):
            if plain_because(backbone) is not None:
                with self._from_trunk(backbone, {"input_ids": self.padded.ids_BS, "use_cache": False}) as given:
                    hidden_BSH = backbone(**given).last_hidden_state
                return hidden_BSH.flatten(0, 1)[self._padded_index[reading]]
            with self._from_trunk(backbone, inputs(self.packed)) as given:
                hidden_1NH = backbone(**given).last_hidden_state
            return hidden_1NH[0, self._packed_index[reading]]

    def around(self, backbone: Any, reading: Reading) -> contextlib.AbstractContextManager[None]:
        """What a forward pass runs in, and the second one where activations are computed again."""
        if plain_because(backbone) is not None:
            return contextlib.nullcontext()
        # Responses to one prompt have their first state in common, which must not be counted twice on the way back.
        return sharing(backbone, self._packed_index[reading].unique())

    @contextlib.contextmanager
    def _from_trunk(self, backbone: Any, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The inputs, or the recorded hidden states in the place of token ids where they are this backbone's own; else
        they are recorded now.
        """
        if self.trunk is None or self.trunk.backbone is not backbone:
            yield given
        elif self.trunk_hidden is None:
            with recorded(self.trunk) as found:
                yield given
            self.trunk_hidden = found[0]
        else:
            with self.trunk.skipped():
                yield {name: value for name, value in given.items() if name != "input_ids"} | {
                    "inputs_embeds": self.trunk_hidden
                }

    @cached_property
    def padded(self) -> Sequences:
        """A padded row a response."""
        return Sequences.pad(self.prompts, self.responses, self.pad_id, self.device)

    @cached_property
    def packed(self) -> SharedPrefix:
        """One row for all: each distinct prompt once, its responses behind it; a prompt with one response is one
        stretch with it.
        """
        if not self._sharing:
            return SharedPrefix.lay_out(
                [[*p, *r] for p, r in zip(self.prompts, self.responses, strict=True)],
                [[] for _ in self.prompts],
                self.device,
            )
        ordered = self._by_prompt
        return SharedPrefix.lay_out(
            list(ordered), [[self.responses[row] for row in rows] for rows in ordered.values()], self.device
        )

    @property
    def _sharing(self) -> bool:
        return self.shared and len(self._by_prompt) < len(self)

    @cached_property
    def _by_prompt(self) -> dict[tuple[int, ...], list[int]]:
        found: dict[tuple[int, ...], list[int]] = {}
        for number, prompt in enumerate(self.prompts):
            found.setdefault(tuple(prompt), []).append(number)
        return found

    @cached_property
    def _padded_index(self) -> dict[Reading, Tensor]:
        rows = self.padded
        start_B1 = torch.arange(len(self), device=self.device)[:, None] * rows.ids_BS.shape[1]
        return {
            "states": (start_B1 + rows.state_index_BT)[rows.mask_BT],
            "last": (start_B1 + rows.last_index_B1).squeeze(1),
        }

    @cached_property
    def _packed_index(self) -> dict[Reading, Tensor]:
        row = self.packed
        if not self._sharing:
            starts = row.prompt_PS[:, 0].tolist()
            spans = [(start + len(p), len(r)) for start, p, r in zip(starts, self.prompts, self.responses, strict=True)]
            states = [torch.arange(begin - 1, begin - 1 + count) for begin, count in spans]
            return {
                "states": torch.cat(states).to(self.device),
                "last": torch.tensor([begin + count - 1 for begin, count in spans], device=self.device),
            }
        # Answers stand prompt by prompt: back into the order of the rows.
        order = [number for numbers in self._by_prompt.values() for number in numbers]
        place = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=self.device)
        state_BT = row.state_AT[place]
        return {"states": state_BT[real_columns(state_BT.shape[1], self.length_B)], "last": row.last_A[place]}


def micro_batches(rows: Sequence[int], tokens: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Rows in groups of at most `max_tokens` tokens (one row at least), in their order. `tokens[row]` counts prompt and
    response.

    Scoring and update must group alike for a ratio of exactly 1 at learning rate 0.
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
