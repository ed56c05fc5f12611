"""Log-probabilities, entropies and text losses, against plain transformers calls on one unpadded row at a time.

pytest tests/modeling/test_logprobs.py
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3MoeConfig,
)

from modeling import logprobs
from modeling.batch import Batch
from modeling.logprobs import (
    accumulate_gradient,
    adding_in_place,
    chosen,
    output_layer,
    response_logprobs,
    text_loss,
)
from modeling.tiny import ARCHITECTURES
from modeling.trunk import backbone_of
from tests.conftest import enliven

PROMPTS = [[3, 40, 50, 60, 70], [3, 41], [3, 42, 52, 62, 72, 82, 92, 102]]
RESPONSES = [[200, 2], [201, 301, 401, 0, 2], [202, 302, 0]]
CPU = torch.device("cpu")
TINY = {"vocab_size": 402, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT = OPTConfig(**TINY, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=64)
"""Its head finds the embeddings through the backbone."""
FLOAT32 = 2e-5
"""A few thousand roundings at 6e-8 in logits of size 10."""


@pytest.fixture(params=[2**23, 402 * 3], ids=["whole", "in pieces of three tokens"], autouse=True)
def size_of_a_piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of all tokens at once, and of three at a time."""
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", request.param)


def opt() -> Any:
    return enliven(AutoModelForCausalLM.from_config(OPT).eval())


def rows_of(
    model: Any, prompts: list[list[int]], responses: list[list[int]], temperature: float = 1.0, pad_id: int = 0
) -> Tensor:
    """logprobs_BT."""
    batch = Batch(prompts, responses, pad_id, CPU)
    return batch.rows(response_logprobs(model, batch, temperature))


def plain_logprobs(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> Tensor:
    """Straight from the library, without padding: the log-probability of each response token."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double() / temperature
    return torch.stack([logits[len(prompt) + t - 1].log_softmax(-1)[token] for t, token in enumerate(response)])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_equal_plain_forwards(
    tiny_causal: Callable[[str], Any], architecture: str, temperature: float
) -> None:
    model = tiny_causal(architecture)
    with torch.no_grad():
        ours_BT = rows_of(model, PROMPTS, RESPONSES, temperature)
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
        ours_BT = rows_of(model, PROMPTS, RESPONSES)
    for row, response in enumerate(RESPONSES):
        start = width - len(response)
        left_T = torch.stack([logits[row, start + t - 1, token] for t, token in enumerate(response)])
        torch.testing.assert_close(ours_BT[row, : len(response)], left_T, atol=FLOAT32, rtol=0)


def test_the_pad_id_and_the_width_of_the_batch_never_enter(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    narrow_BT = rows_of(model, PROMPTS, RESPONSES)
    wide_BT = rows_of(model, [*PROMPTS, [5] * 60], [*RESPONSES, [6] * 20], pad_id=401)
    for row, response in enumerate(RESPONSES):
        torch.testing.assert_close(wide_BT[row, : len(response)], narrow_BT[row, : len(response)], atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "opt"])
def test_gradients_equal_those_of_the_naive_formula(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = opt() if architecture == "opt" else tiny_causal(architecture)
    batch = Batch(PROMPTS, RESPONSES, 0, CPU)
    weight_R = torch.linspace(-1, 2, len(batch.token_R))
    loss, logprobs_R, entropy_R = accumulate_gradient(
        model, batch, lambda logprobs_N, part: (logprobs_N * weight_R[part]).sum(), 0.7
    )
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    plain_R = torch.cat(
        [plain_logprobs(model, prompt, response, 0.7) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    )
    (plain_R * weight_R).sum().backward()
    assert loss.item() == pytest.approx(float((plain_R * weight_R).sum().detach()), abs=1e-4)
    torch.testing.assert_close(logprobs_R.double(), plain_R.detach(), atol=FLOAT32, rtol=0)
    assert not any(x.requires_grad for x in (loss, logprobs_R, entropy_R))
    largest = max(float(parameter.grad.abs().max()) for parameter in model.parameters())
    assert largest > 0.1
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5 * largest, rtol=1e-4, msg=name)


def test_an_output_layer_s_gradient_is_added_to_what_is_there(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("gpt_neox")
    head = model.get_output_embeddings()
    batch = Batch(PROMPTS, RESPONSES, 0, CPU)
    accumulate_gradient(model, batch, lambda logprobs_N, part: logprobs_N.sum())
    once = head.weight.grad.clone()
    accumulate_gradient(model, batch, lambda logprobs_N, part: -3 * logprobs_N.sum())
    torch.testing.assert_close(head.weight.grad, -2 * once, atol=1e-4, rtol=1e-4)
    assert "forward" not in vars(head)


def test_only_an_output_layer_that_is_a_plain_trained_map_adds_in_place() -> None:
    plain, with_bias, frozen = (
        torch.nn.Linear(3, 5, bias=False),
        torch.nn.Linear(3, 5),
        torch.nn.Linear(3, 5, bias=False).requires_grad_(False),
    )
    for head, expected in ((plain, True), (with_bias, False), (frozen, False)):
        with adding_in_place(head):
            assert ("forward" in vars(head)) is expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_under_autocast_logits_are_not_bfloat16(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    batch = Batch(PROMPTS, RESPONSES, 0, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            hidden_RH = batch.hidden(backbone_of(model), "states")
        ours_R = response_logprobs(model, batch, 0.7)
        words = model.get_output_embeddings().weight.shape[0]
        every_word = Batch([PROMPTS[0]] * words, [[word] for word in range(words)], 0, CPU)
        total = response_logprobs(model, every_word, 0.7).double().exp().sum()
    _, trained_R, _ = accumulate_gradient(
        model, batch, lambda logprobs_N, part: -logprobs_N.sum(), 0.7, lambda: torch.autocast("cpu", torch.bfloat16)
    )
    gradient = model.get_output_embeddings().weight.grad.clone()
    head = deepcopy(model.get_output_embeddings()).double().requires_grad_()
    oracle_RV = (head(hidden_RH.double()) / 0.7).log_softmax(-1)
    oracle_R = oracle_RV.gather(1, batch.token_R[:, None]).squeeze(1)
    torch.testing.assert_close(ours_R.double(), oracle_R, atol=FLOAT32, rtol=0)
    assert torch.equal(trained_R, ours_R), "the update computes what scoring has computed"
    assert float(total) == pytest.approx(1, abs=1e-5)
    if not model.config.tie_word_embeddings:
        (-oracle_R.sum()).backward()
        torch.testing.assert_close(gradient.double(), head.weight.grad, atol=1e-4, rtol=1e-4)


def test_logits_are_computed_only_where_wanted_and_the_model_is_left_as_it_was(
    tiny_causal: Callable[[str], Any],
) -> None:
    model = tiny_causal("llama")
    backbone, rows_seen = model.model, []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: rows_seen.append(output.shape[-2])
    )
    batch = Batch(PROMPTS, RESPONSES, 0, CPU)
    response_logprobs(model, batch)
    assert sum(rows_seen) == 2 + 5 + 3
    with pytest.raises(RuntimeError, match="interrupted"), output_layer(model):
        raise RuntimeError("interrupted")
    model(input_ids=batch.padded.ids_BS)
    handle.remove()
    assert rows_seen[-1] == 11
    assert model.model is backbone
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_chosen_logprobs_are_finite_where_softmax_would_overflow() -> None:
    logits_NV = torch.tensor([[1e4, 0.0, -1e4]])
    assert chosen(logits_NV, torch.tensor([0]))[0].item() == 0.0
    assert chosen(logits_NV, torch.tensor([2]))[0].item() == -2e4
    ruled_out_NV = torch.tensor([[0.0, float("-inf"), 0.0]])
    assert chosen(ruled_out_NV, torch.tensor([0]))[1].item() == pytest.approx(torch.tensor(2.0).log().item())


def test_chosen_is_log_softmax_with_its_gradient_and_the_entropy() -> None:
    logits_NV = (
        3 * torch.randn(7, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).requires_grad_()
    token_N = torch.tensor([3, 0, 39, 3, 11, 12, 13])
    logprob_N, entropy_N = chosen(logits_NV, token_N)
    weight_N = torch.linspace(-2, 3, 7, dtype=torch.float64)
    (ours_NV,) = torch.autograd.grad((logprob_N * weight_N).sum(), logits_NV)
    (naive_NV,) = torch.autograd.grad((logits_NV.log_softmax(-1)[torch.arange(7), token_N] * weight_N).sum(), logits_NV)
    torch.testing.assert_close(ours_NV, naive_NV, atol=1e-12, rtol=0)
    logprob_N, entropy_N = chosen(logits_NV, token_N)
    expected = torch.distributions.Categorical(logits=logits_NV)
    torch.testing.assert_close(logprob_N, expected.log_prob(token_N), atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy_N, expected.entropy(), atol=1e-12, rtol=0)
    assert not entropy_N.requires_grad
    single = logits_NV.detach().float()
    torch.testing.assert_close(chosen(single, token_N)[1].double(), expected.entropy().detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pad_id", [0, 303])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_loss_equals_the_librarys_own_on_ragged_chunks(
    tiny_causal: Callable[[str], Any], architecture: str, pad_id: int
) -> None:
    model = tiny_causal(architecture)
    chunks = [[5, 6, 7, 303, 0, 9, 10], [303, 300], [11, 0, 303, 12]]
    loss, tokens = text_loss(model, chunks, pad_id, torch.device("cpu"))
    expected = 0.0
    for chunk in chunks:
        ids = torch.tensor([chunk])
        expected += model(input_ids=ids, labels=ids).loss.item() * (len(chunk) - 1)
    assert tokens == 6 + 1 + 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)


MOE = TINY | {"num_key_value_heads": 2, "intermediate_size": 48}


@pytest.mark.parametrize(
    "settings",
    [
        MixtralConfig(**MOE, num_local_experts=4, num_experts_per_tok=2),
        Qwen3MoeConfig(
            **MOE, head_dim=8, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1
        ),
        OPT,
        MambaConfig(vocab_size=402, hidden_size=32, num_hidden_layers=2, state_size=4),
        Gemma2Config(**MOE, head_dim=8, final_logit_softcapping=3.0),
        CohereConfig(**MOE, logit_scale=0.3),
    ],
    ids=lambda settings: settings.model_type,
)
def test_heads_that_ask_more_of_their_backbone_or_change_its_logits_give_the_same(settings: Any) -> None:
    torch.manual_seed(0)
    model = enliven(AutoModelForCausalLM.from_config(settings).eval())
    ours_BT = rows_of(model, PROMPTS, RESPONSES)
    with torch.no_grad():
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            plain_T = plain_logprobs(model, prompt, response)
            torch.testing.assert_close(ours_BT[row, : len(response)].double(), plain_T, atol=1e-4, rtol=0)
            assert plain_T.std() > 0.01
