"""Log-probabilities, entropies and text losses, against plain transformers calls on one unpadded row at a time.

pytest tests/modeling/test_logprobs.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.logprobs import chosen_logprobs, entropy, logits_only_at, response_logits, response_logprobs, text_loss
from modeling.sequences import Sequences
from modeling.tiny import ARCHITECTURES

PROMPTS = [[3, 40, 50, 60, 70], [3, 41], [3, 42, 52, 62, 72, 82, 92, 102]]
RESPONSES = [[200, 2], [201, 301, 401, 0, 2], [202, 302, 0]]
FLOAT32 = 2e-5
"""A few thousand roundings at 6e-8 in logits of size 10."""


def plain_logprobs(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> Tensor:
    """Straight from the library, without padding: the log-probability of each response token."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double() / temperature
    return torch.stack([logits[len(prompt) + t - 1].log_softmax(-1)[token] for t, token in enumerate(response)])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_equal_plain_forwards(tiny_causal: Callable[[str], Any], architecture: str, temperature: float) -> None:
    model = tiny_causal(architecture)
    with torch.no_grad():
        ours_BT = response_logprobs(model, Sequences.pad(PROMPTS, RESPONSES, pad_id=0), temperature)
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            plain_T = plain_logprobs(model, prompt, response, temperature)
            torch.testing.assert_close(ours_BT[row, : len(response)].double(), plain_T, atol=FLOAT32, rtol=0)
            assert plain_T.std() > 0.3  # not the near-uniform model for which a shift by one position would hardly show


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padding_changes_nothing(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    rows = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[7] * (width - len(row)) + row for row in rows])
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=seen, position_ids=positions).logits.log_softmax(-1)
        ours_BT = response_logprobs(model, Sequences.pad(PROMPTS, RESPONSES, pad_id=0))
    for row, response in enumerate(RESPONSES):
        start = width - len(response)
        left_T = torch.stack([logits[row, start + t - 1, token] for t, token in enumerate(response)])
        torch.testing.assert_close(ours_BT[row, : len(response)], left_T, atol=FLOAT32, rtol=0)


def test_the_pad_id_and_the_width_of_the_batch_never_enter(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    wide = Sequences.pad([*PROMPTS, [5] * 60], [*RESPONSES, [6] * 20], pad_id=401)
    with torch.no_grad():
        narrow_BT, wide_BT = response_logprobs(model, Sequences.pad(PROMPTS, RESPONSES, pad_id=0)), response_logprobs(model, wide)
    for row, response in enumerate(RESPONSES):
        torch.testing.assert_close(wide_BT[row, : len(response)], narrow_BT[row, : len(response)], atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_equal_those_of_the_naive_formula(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    sequences = Sequences.pad(PROMPTS, RESPONSES, pad_id=0)
    weight_BT = torch.linspace(-1, 2, sequences.mask_BT.numel()).view_as(sequences.mask_BT)

    (response_logprobs(model, sequences, 0.7) * weight_BT * sequences.mask_BT).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        (plain_logprobs(model, prompt, response, 0.7) * weight_BT[row, : len(response)]).sum().backward()
    largest = max(float(parameter.grad.abs().max()) for parameter in model.parameters())
    assert largest > 0.1
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5 * largest, rtol=1e-4, msg=name)


def test_logits_are_computed_only_where_wanted_and_the_model_is_left_as_it_was(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    rows_seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: rows_seen.append(tuple(output.shape[:2])))
    sequences = Sequences.pad(PROMPTS, RESPONSES, pad_id=0)
    with torch.no_grad():
        response_logits(model, sequences)
        with pytest.raises(RuntimeError, match="interrupted"), logits_only_at(model, sequences.state_index_BT):
            raise RuntimeError("interrupted")
        model(input_ids=sequences.ids_BS)
    handle.remove()
    assert rows_seen == [(3, 5), (3, 11)]
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_chosen_logprobs_are_finite_where_softmax_would_overflow() -> None:
    logits_BTV = torch.tensor([[[1e4, 0.0, -1e4]]])
    assert chosen_logprobs(logits_BTV, torch.tensor([[0]])).item() == 0.0
    assert chosen_logprobs(logits_BTV, torch.tensor([[2]])).item() == -2e4


def test_entropy_is_that_of_the_distribution() -> None:
    logits_BTV = 3 * torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
    expected_BT = torch.distributions.Categorical(logits=logits_BTV.double()).entropy()
    torch.testing.assert_close(entropy(logits_BTV).double(), expected_BT, atol=1e-5, rtol=0)
    assert entropy(torch.zeros(1, 1, 40)).item() == pytest.approx(torch.tensor(40.0).log().item(), abs=1e-6)


@pytest.mark.parametrize("pad_id", [0, 303])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_loss_equals_the_librarys_own_on_ragged_chunks(tiny_causal: Callable[[str], Any], architecture: str, pad_id: int) -> None:
    model = tiny_causal(architecture)
    chunks = [[5, 6, 7, 303, 0, 9, 10], [303, 300], [11, 0, 303, 12]]
    loss, tokens = text_loss(model, chunks, pad_id, torch.device("cpu"))
    expected = 0.0
    for chunk in chunks:
        ids = torch.tensor([chunk])
        expected += model(input_ids=ids, labels=ids).loss.item() * (len(chunk) - 1)
    assert tokens == 6 + 1 + 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
