"""Log-probabilities, entropies and their gradients, against plain transformers calls on one unpadded row at a time.

pytest tests/modeling/test_logprobs.py
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from modeling import logprobs
from modeling.architecture import backbone_of
from modeling.batch import Batch, text_batch
from modeling.logprobs import OutputLayer, refuse_unknown_logits, token_logprobs
from modeling.models import policy_model
from modeling.tiny import ARCHITECTURES
from tests.conftest import enliven
from tests.families import FAMILIES, SIZES

PROMPTS = [[3, 40, 50, 60, 70], [3, 41], [3, 41], [3, 42, 52, 62, 72, 82, 92, 102]]
RESPONSES = [[200, 2], [201, 301, 401, 0, 2], [201, 5], [202, 302, 0]]
VOCABULARY = 402
CHANGES: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {"final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 2.5},
}
"""What these architectures do to their logits, strongly enough to show."""
COMPARED = (
    "llama", "gpt2", "qwen2", "gpt_neox", "gemma2", "gemma3_text", "glm4", "cohere", "granite", "opt", "qwen3_moe",
)  # fmt: skip
FLOAT64_THROUGHOUT = ("gpt2", "gpt_neox", "opt")
"""The others compute norms or a softmax in float32 even if the weights are float64."""
FLOAT32 = 2e-5
"""A few thousand roundings at 6e-8 in logits of size 10."""


@pytest.fixture(params=[2**23, VOCABULARY * 3], ids=["one chunk", "chunks of three tokens"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of all tokens at once, and of three at a time."""
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", request.param)


def family(name: str) -> Any:
    """A float64 model of this family, untrained but far from uniform."""
    settings = AutoConfig.for_model(name, vocab_size=VOCABULARY, **SIZES[name] | CHANGES.get(name, {}), pad_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, experts_implementation="eager")
    return enliven(model).double().eval()


def plain(model: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """(logprob_R, entropy_R) by transformers and torch alone, without padding."""
    found, entropies = [], []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / temperature
        of_each = torch.distributions.Categorical(logits=logits)
        found.append(of_each.log_prob(torch.tensor(response)))
        entropies.append(of_each.entropy())
    return torch.cat(found), torch.cat(entropies).detach()


def gradients_of(model: Any, logprob_R: Tensor) -> dict[str, Tensor]:
    """The gradient of a weighted sum, in which no token can stand in for another."""
    model.zero_grad()
    (logprob_R * torch.linspace(-1, 2, len(logprob_R), dtype=logprob_R.dtype)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.usefixtures("chunks")
def test_logprobs_entropies_and_gradients_are_transformers_own_in_float64(name: str) -> None:
    model, temperature = family(name), 0.7
    tolerance = 1e-11 if name in FLOAT64_THROUGHOUT else 2e-6
    expected_R, expected_entropy_R = plain(model, temperature)
    expected = gradients_of(model, expected_R)
    policy = policy_model(model)
    logprob_R, entropy_R = policy(Batch(PROMPTS, RESPONSES), temperature)
    assert logprob_R.dtype == torch.float64
    assert expected_R.std() > 0.1  # a shift by one position would show
    torch.testing.assert_close(logprob_R, expected_R, atol=tolerance, rtol=0)
    torch.testing.assert_close(entropy_R, expected_entropy_R, atol=tolerance, rtol=0)
    assert not entropy_R.requires_grad
    found = gradients_of(model, logprob_R)
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0.1
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=tolerance * largest, rtol=0)
    assert not policy(Batch(PROMPTS, RESPONSES), temperature, with_entropy=False)[1].any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padding_changes_nothing(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    rows = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[7] * (width - len(row)) + row for row in rows])
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        left = model(input_ids=ids, attention_mask=seen, position_ids=positions).logits.log_softmax(-1)
        expected_R = torch.stack(
            [
                left[row, width - len(response) + t - 1, token]
                for row, response in enumerate(RESPONSES)
                for t, token in enumerate(response)
            ]
        )
        logprob_R, _ = policy_model(model)(Batch(PROMPTS, RESPONSES))
    torch.testing.assert_close(logprob_R, expected_R, atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("chunks")
def test_under_autocast_the_output_layer_is_float32(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    policy = policy_model(model, torch.bfloat16)
    batch = Batch(PROMPTS, RESPONSES)
    with torch.no_grad():
        hidden_RH = policy.encoder(batch, "state")
    logprob_R, _ = policy(batch, 0.7)
    (-logprob_R.sum()).backward()
    gradient = model.get_output_embeddings().weight.grad.clone()
    head = deepcopy(model.get_output_embeddings()).double().requires_grad_()
    head.zero_grad()
    oracle_RV = (head(hidden_RH.double()) / 0.7).log_softmax(-1)
    oracle_R = oracle_RV.gather(1, batch.token_R[:, None]).squeeze(1)
    with torch.no_grad():
        exact_R = policy_model(model)(batch, 0.7)[0]
    assert (logprob_R - exact_R).abs().max() > 1e-3, "the backbone computes in bfloat16"
    # A bfloat16 output layer rounds logits of size 10 to 0.06.
    torch.testing.assert_close(logprob_R.double(), oracle_R, atol=FLOAT32, rtol=0)
    if not model.config.tie_word_embeddings:
        (-oracle_R.sum()).backward()
        torch.testing.assert_close(gradient.double(), head.weight.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("chunks")
def test_under_autocast_the_probabilities_of_all_tokens_add_up_to_one(
    tiny_causal: Callable[[str], Any], architecture: str
) -> None:
    model = tiny_causal(architecture)
    tokens = model.get_output_embeddings().weight.shape[0]
    every_token = Batch([PROMPTS[0]] * tokens, [[token] for token in range(tokens)])
    with torch.no_grad():
        total = policy_model(model, torch.bfloat16)(every_token, 0.7)[0].double().exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-5)


def test_scoring_and_updating_give_the_same_bits(
    tiny_causal: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy ratio is exactly 1 as long as the weights are unchanged."""
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", VOCABULARY * 3)
    policy = policy_model(tiny_causal("llama"), torch.bfloat16)
    with torch.no_grad():
        scored = policy(Batch(PROMPTS, RESPONSES), 0.7)[0]
    assert torch.equal(policy(Batch(PROMPTS, RESPONSES), 0.7)[0], scored)


def test_logits_are_computed_for_response_tokens_only_and_never_for_more_than_a_chunk(
    tiny_causal: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_causal("llama")
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 5 * model.config.vocab_size)
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    logprob_R, _ = policy_model(model)(Batch(PROMPTS, RESPONSES))
    assert rows == [5, 5, 2]
    logprob_R.sum().backward()
    assert sorted(rows[3:]) == [2, 5, 5], "each chunk is computed once more in the backward pass"


class Logits:
    """An output layer that returns given logits."""

    vocabulary = 1

    def __init__(self, logits_NV: Tensor) -> None:
        self.logits_NV = logits_NV

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        return self.logits_NV


def test_logprobs_are_finite_where_softmax_would_overflow_and_a_token_is_excluded() -> None:
    def of(logits: list[float], token: int) -> tuple[float, float]:
        layer: Any = Logits(torch.tensor([logits]))
        logprob_N, entropy_N = token_logprobs(layer, torch.zeros(1, 1), torch.tensor([token]))
        return logprob_N.item(), entropy_N.item()

    assert of([1e4, 0.0, -1e4], 0)[0] == 0.0
    assert of([1e4, 0.0, -1e4], 2)[0] == -2e4
    assert of([0.0, float("-inf"), 0.0], 0)[1] == pytest.approx(torch.tensor(2.0).log().item())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("chunks")
def test_the_loss_of_ragged_texts_is_the_librarys_own(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    texts = [[5, 6, 7, 303, 0, 9, 10], [303, 300], [11, 0, 303, 12]]
    expected = 0.0
    for text in texts:
        ids = torch.tensor([text])
        expected += model(input_ids=ids, labels=ids).loss.item() * (len(text) - 1)
    with torch.no_grad():
        logprob_R, _ = policy_model(model)(text_batch(texts, "cpu"), with_entropy=False)
    assert len(logprob_R) == 6 + 1 + 3
    assert -logprob_R.sum().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_logits_of_every_known_family_are_accepted(name: str) -> None:
    model = family(name).float()
    refuse_unknown_logits(model, "x")


@pytest.mark.parametrize("change", ["scale", "cap", "shift", "hidden"])
def test_an_architecture_that_changes_its_logits_in_another_way_is_refused(change: str) -> None:
    model = family("llama").float()
    forward = model.forward

    def changed(**arguments: Any) -> Any:
        found = forward(**arguments)
        logits = found.logits
        if change == "hidden":
            logits = model.lm_head(1.01 * backbone_of(model)(**arguments).last_hidden_state)
        found.logits = {"scale": 1.01 * logits, "cap": 30 * torch.tanh(logits / 30), "shift": logits + 0.01}.get(
            change, logits
        )
        return found

    model.forward = changed
    with pytest.raises(ValueError, match=r"model\.base=x changes its logits in a way that is not known \(LlamaForC"):
        refuse_unknown_logits(model, "model.base=x")


def test_a_soft_cap_that_the_output_layer_leaves_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("gemma2").float()
    monkeypatch.setattr(OutputLayer, "__call__", lambda layer, hidden_NH: layer.head(hidden_NH))
    with pytest.raises(ValueError, match="Gemma2ForCausalLM"):
        refuse_unknown_logits(model, "x")
