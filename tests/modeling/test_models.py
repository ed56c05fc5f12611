"""Policy, value and reward models, against transformers' own classes used as anyone would use them.

pytest tests/modeling/test_models.py
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from modeling.adapters import add_lora
from modeling.architecture import backbone_of
from modeling.batch import Batch, Padded
from modeling.config import LoraSettings
from modeling.models import Encoder, PolicyModel, ValueModel, initialize_head, policy_model, reward_model
from modeling.tiny import ARCHITECTURES

PROMPTS = [[3, 40, 50, 60, 70], [3, 41], [3, 41], [3, 42, 52, 62, 72, 82]]
ENDED = [[200, 2], [201, 301, 401, 2], [201, 5, 2], [202, 302, 303, 304, 305, 306, 2]]
CUT_OFF = [[200, 210], [201, 301, 401, 411], [201, 5], [202, 302, 303, 304, 305, 306, 307]]
FLOAT32 = 2e-5


@pytest.mark.parametrize("responses", [ENDED, CUT_OFF], ids=["ended", "cut_off"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_the_librarys_own_pooling(
    tiny_scalar: Callable[[str], Any], tiny_tokenizer: Any, architecture: str, responses: list[list[int]]
) -> None:
    model = tiny_scalar(architecture)
    rows = [prompt + response for prompt, response in zip(PROMPTS, responses, strict=True)]
    padded = tiny_tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
    assert tiny_tokenizer.eos_token_id == 2 != tiny_tokenizer.pad_token_id
    with torch.no_grad():
        pooled_B = model(**padded).logits[:, 0]
        alone_B = torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
        scores_B = reward_model(model)(Batch(PROMPTS, responses))
    torch.testing.assert_close(scores_B, pooled_B, atol=FLOAT32, rtol=0)
    torch.testing.assert_close(scores_B, alone_B, atol=FLOAT32, rtol=0)
    assert scores_B.std() > 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_a_response_that_ends_in_the_pad_id_is_still_read_at_its_last_token(
    tiny_scalar: Callable[[str], Any], shared: bool
) -> None:
    model = tiny_scalar("llama")
    if not shared:
        model.model.shared_prefix_reason = "the test says so"
    responses = [[*response, 0, 0] for response in CUT_OFF]
    with torch.no_grad():
        scores_B = reward_model(model)(Batch(PROMPTS, responses))
        for row, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
            hidden = model.model(input_ids=torch.tensor([[*prompt, *response]])).last_hidden_state[0, -1]
            assert scores_B[row].item() == pytest.approx(float(model.score(hidden)), abs=FLOAT32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_value_depends_on_the_text_before_its_token_only(
    tiny_scalar: Callable[[str], Any], architecture: str
) -> None:
    model = tiny_scalar(architecture)
    with torch.no_grad():
        values_R = ValueModel(Encoder(model))(Batch(PROMPTS, ENDED))
        expected = [
            model(input_ids=torch.tensor([prompt + response[:t]])).logits.item()
            for prompt, response in zip(PROMPTS, ENDED, strict=True)
            for t in range(len(response))
        ]
    assert values_R.tolist() == pytest.approx(expected, abs=FLOAT32)
    assert values_R.std() > 0.1


def test_the_bias_of_the_config_is_subtracted_from_scores_and_values(tiny_scalar: Callable[[str], Any]) -> None:
    model, batch = tiny_scalar("llama"), Batch(PROMPTS, ENDED)
    for make in (reward_model, lambda model: ValueModel(Encoder(model))):
        with torch.no_grad():
            model.config.score_bias = 0.0
            without = make(model)(batch)
            model.config.score_bias = 1.75
            torch.testing.assert_close(make(model)(batch), without - 1.75, atol=1e-6, rtol=0)


def test_under_autocast_scores_are_read_in_float32(tiny_scalar: Callable[[str], Any]) -> None:
    model, batch = tiny_scalar("llama"), Batch(PROMPTS, ENDED)
    model.config.score_bias = 300.0
    reward = reward_model(model, torch.bfloat16)
    with torch.no_grad():
        hidden_BH = reward.encoder(batch, "last")
        expected_B = hidden_BH.double() @ model.score.weight[0].double() - 300
        scores_B = reward(batch)
    # bfloat16 rounds a score near 300 to 2, and one of size 3 to 0.02.
    torch.testing.assert_close(scores_B.double(), expected_B, atol=1e-4, rtol=0)


def test_the_head_has_variance_one_over_width_plus_one() -> None:
    width, seeds = 3, 4000
    model = SimpleNamespace(score=nn.Linear(width, 1, bias=False))
    drawn = []
    for seed in range(seeds):
        initialize_head(model, seed)
        drawn.append(model.score.weight.detach().clone().flatten())
    weights = torch.cat(drawn).double()
    count = width * seeds
    # Five standard errors; 1/width would be off by a third, 1/(width + 2) by a fifth.
    assert weights.pow(2).mean().item() * (width + 1) == pytest.approx(1.0, abs=5 * (2 / count) ** 0.5)
    assert weights.mean().item() == pytest.approx(0.0, abs=5 * (1 / (width + 1) / count) ** 0.5)


def test_the_head_depends_on_its_seed_and_on_no_other_random_numbers(tiny_scalar: Callable[[str], Any]) -> None:
    model = tiny_scalar("llama")
    heads = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        initialize_head(model, seed)
        assert torch.equal(torch.get_rng_state(), before)
        heads.append(model.score.weight.detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_architecture_without_a_score_head_is_refused_by_name() -> None:
    config = BertConfig(
        vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, num_labels=1
    )
    with pytest.raises(ValueError, match="BertForSequenceClassification has no module `score`"):
        reward_model(BertForSequenceClassification(config))


def test_one_pass_encodes_each_prompt_and_each_response_once(tiny_scalar: Callable[[str], Any]) -> None:
    model = tiny_scalar("llama")
    reward = reward_model(model)
    sizes: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, inputs, named: sizes.append(named["input_ids"].numel()), with_kwargs=True
    )
    reward(Batch([[5] * 20] * 9 + [[5] * 18] * 2, [[6] * n for n in (*range(3, 12), 12, 2)]))
    assert sizes == [20 + sum(range(3, 12)) + 18 + 12 + 2]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_that_share_a_base_each_compute_with_their_own_adapter(
    tiny_causal: Callable[[str], Any], architecture: str
) -> None:
    batch = Batch(PROMPTS, ENDED)
    base = tiny_causal(architecture)
    plain = policy_model(base)
    with torch.no_grad():
        before_R, _ = plain(batch)
    model = add_lora(base, LoraSettings(rank=4, alpha=8), "policy")
    model.add_adapter("other", model.peft_config["policy"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    policy, other, reference = (PolicyModel(Encoder(model, adapter)) for adapter in ("policy", "other", None))
    policy_R, _ = policy(batch)
    with torch.no_grad():
        other_R, reference_R = other(batch)[0], reference(batch)[0]
        assert torch.equal(policy(batch)[0], policy_R)
    assert torch.equal(reference_R, before_R)
    assert all((a - b).abs().max() > 0.1 for a, b in ((policy_R, other_R), (policy_R, before_R), (other_R, before_R)))
    # The reference ran last; the policy's gradient is its own all the same.
    policy_R.sum().backward()
    assert {name.split(".")[-2] for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        "policy"
    }


def gradients_and_kept(model: Any, checkpointed: bool) -> tuple[dict[str, Tensor], int]:
    """(gradients of a sum over scores, bytes that the graph holds when the backward pass begins)."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    reward = reward_model(model)
    if checkpointed:
        reward.encoder.enable_checkpointing()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores_B = reward(Batch(PROMPTS, ENDED))
    (scores_B * torch.linspace(-1, 2, len(scores_B))).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found, sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_checkpointing_keeps_fewer_activations_and_changes_no_gradient(
    tiny_scalar: Callable[[str], Any], architecture: str, adapter: str, layout: str
) -> None:
    model = tiny_scalar(architecture)
    if layout == "padded":
        backbone_of(model).shared_prefix_reason = "the test says so"
    if adapter == "lora":
        model = add_lora(model, LoraSettings(rank=4, alpha=8))
        model.get_base_model().score.requires_grad_(True)
    expected, whole = gradients_and_kept(model, checkpointed=False)
    found, part = gradients_and_kept(model, checkpointed=True)
    assert found.keys() == expected.keys()
    assert len(expected) == sum(parameter.requires_grad for parameter in model.parameters())
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    assert part < 0.5 * whole


def test_an_architecture_that_cannot_recompute_its_activations_is_refused(
    tiny_scalar: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_scalar("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    said = "LlamaForSequenceClassification cannot recompute activations: set activation_checkpointing to false"
    with pytest.raises(ValueError, match=said):
        reward_model(model).encoder.enable_checkpointing()


def test_a_backbone_that_cannot_share_prompts_gets_a_padded_row_for_each_response(
    tiny_scalar: Callable[[str], Any],
) -> None:
    model, batch = tiny_scalar("llama"), Batch(PROMPTS, ENDED)
    with torch.no_grad():
        shared_B = reward_model(model)(batch)
        model.model.shared_prefix_reason = "the test says so"
        apart = reward_model(model)
        assert apart.encoder.plain_reason == "the test says so"
        torch.testing.assert_close(apart(batch), shared_B, atol=FLOAT32, rtol=0)
    assert isinstance(batch.layout(packed=False), Padded)
