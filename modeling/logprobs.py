"""Log-probabilities of response tokens under a causal language model, with logits only where they are wanted.

Shapes: B rows, S tokens a row, T response tokens a row, V vocabulary, N rows of tokens of any meaning.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling.sequences import Sequences, take_positions
from modeling.trunk import backbone_of


@contextlib.contextmanager
def logits_only_at(model: Any, index_BT: Tensor) -> Iterator[None]:
    """Within, the model's output layer sees only hidden states at these positions, so logits are (B, T, V) instead of (B, S, V).

    Whatever the architecture does to logits afterwards (a scale, a soft cap) still happens.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (take_positions(inputs[0], index_BT),))
    try:
        yield
    finally:
        handle.remove()


def response_logits(model: Any, sequences: Sequences, temperature: float = 1.0) -> Tensor:
    """logits_BTV of the distributions that response tokens were sampled from, in float32, divided by the temperature."""
    with logits_only_at(model, sequences.state_index_BT), sequences.inputs_of(backbone_of(model)) as inputs:
        logits_BTV = model(**inputs, use_cache=False).logits
    return logits_BTV.float() / temperature if temperature != 1.0 else logits_BTV.float()


def chosen_logprobs(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """logprobs_BT: log softmax of the logits at the chosen tokens, without keeping a second (B, T, V)."""
    return logits_BTV.gather(-1, tokens_BT[:, :, None]).squeeze(-1) - logits_BTV.logsumexp(-1)


def response_logprobs(model: Any, sequences: Sequences, temperature: float = 1.0) -> Tensor:
    """logprobs_BT of the response tokens; columns beyond a row's response hold numbers without meaning."""
    return chosen_logprobs(response_logits(model, sequences, temperature), sequences.response_BT)


@torch.no_grad()
def entropy(logits_BTV: Tensor) -> Tensor:
    """entropy_BT in nats of the distributions."""
    return torch.special.entr(logits_BTV.softmax(-1)).sum(-1)


def text_loss(model: Any, chunks: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, int]:
    """(sum of the next-token losses of plain text, how many tokens they are over); padding never enters."""
    length = max(len(chunk) for chunk in chunks)
    ids_NS = torch.tensor([chunk + [pad_id] * (length - len(chunk)) for chunk in chunks], device=device)
    keep_NS = torch.arange(length - 1, device=device) < torch.tensor([len(chunk) - 1 for chunk in chunks], device=device)[:, None]
    logits_NSV = model(input_ids=ids_NS, use_cache=False).logits[:, :-1].float()
    targets_NS = ids_NS[:, 1:].masked_fill(~keep_NS, -100)
    loss = F.cross_entropy(logits_NSV.flatten(0, 1), targets_NS.flatten(), ignore_index=-100, reduction="sum")
    return loss, int(keep_NS.sum())
