"""Answers that share their prompt's pass, against one plain forward pass for each.

pytest tests/modeling/test_shared_prefix.py
"""

import random
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModel

from modeling.shared_prefix import SharedPrefix, inputs, sharing, why_not
from tests.conftest import enliven

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def backbone(architecture: str, **settings: Any) -> Any:
    """A float64 backbone with opinions, two layers deep."""
    return enliven(AutoModel.from_config(AutoConfig.for_model(architecture, **(SIZES | settings)))).double().eval()


def some_rows(seed: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Three ragged prompts with ragged answers."""
    chance = random.Random(seed)

    def ids(longest: int) -> list[int]:
        return [chance.randrange(64) for _ in range(chance.randint(1, longest))]

    prompts = [ids(12) for _ in range(3)]
    return prompts, [[ids(9) for _ in range(chance.randint(1, 4))] for _ in prompts]


def plain(model: Any, prompts: list[list[int]], answers: list[list[list[int]]]) -> list[Tensor]:
    """hidden_TH of each answer's tokens, from a pass over its prompt and itself alone."""
    rows = [(prompt, answer) for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    return [model(input_ids=torch.tensor([p + a]), use_cache=False).last_hidden_state[0, len(p) :] for p, a in rows]


def shared(model: Any, prompts: list[list[int]], answers: list[list[list[int]]]) -> list[Tensor]:
    """The same from a pass that they share."""
    row = SharedPrefix.lay_out(prompts, answers, CPU)
    with sharing(model):
        hidden_NH = model(**inputs(row)).last_hidden_state[0]
    return [
        hidden_NH[index_T[:length]] for index_T, length in zip(row.answer_AT, row.answer_length_A.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("llama", {"num_key_value_heads": 2}),
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("qwen2", {"num_key_value_heads": 1}),
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
        ("mistral", {"num_key_value_heads": 2, "sliding_window": 4}),
        ("phi", {}),
        ("gemma", {"num_key_value_heads": 2, "head_dim": 8}),
        ("olmo2", {}),
        ("granite", {"attention_multiplier": 0.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}{v}" for k, v in value.items()),
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_answer_token_is_the_same_to_rounding_as_in_a_pass_of_its_own(
    architecture: str, settings: dict[str, Any], seed: int
) -> None:
    model = backbone(architecture, **settings)
    assert why_not(model) is None
    prompts, answers = some_rows(seed)
    expected = plain(model, prompts, answers)
    found = shared(model, prompts, answers)
    assert torch.cat(expected).std() > 0.2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_gradients_are_the_same_too_in_float64() -> None:
    model = backbone("gpt2")
    prompts, answers = some_rows(2)
    gradients = []
    for passes in (plain, shared):
        model.zero_grad()
        # Each token with a weight of its own, so that none can stand in for another.
        hidden = torch.cat(passes(model, prompts, answers))
        (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).reshape(hidden.shape)).sum().backward()
        gradients.append(
            {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
        )
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-10, rtol=1e-8, msg=name)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen2", "olmo2"])
def test_where_last_tokens_alone_are_read_theirs_and_the_gradients_from_them_are_the_same(architecture: str) -> None:
    model = backbone(architecture)
    prompts, answers = some_rows(5)
    row = SharedPrefix.lay_out(prompts, answers, CPU)
    found, whole_NH = [], None
    for read_M in (None, row.last_A):
        model.zero_grad()
        with sharing(model, read_M):
            hidden_NH = model(**inputs(row)).last_hidden_state[0]
        last_AH = hidden_NH[row.last_A]
        (last_AH * torch.linspace(-1, 1, last_AH.numel(), dtype=torch.float64).reshape(last_AH.shape)).sum().backward()
        found.append(
            (last_AH.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
        # Elsewhere the second pass is not finished, or the test would compare a thing with itself.
        assert whole_NH is None or not torch.equal(hidden_NH, whole_NH)
        whole_NH = hidden_NH
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-12, rtol=0)
    assert found[0][1].keys() == found[1][1].keys()
    for name, expected in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], expected, atol=1e-11, rtol=1e-9, msg=name)


def test_a_token_of_one_answer_changes_no_other_answer_and_the_prompt_changes_all_of_its_own() -> None:
    model, (prompts, answers) = backbone("llama"), some_rows(3)
    answers = [[[5, 6, 7], [8, 9], [10]], [[11, 12], [13]], [[14]]]

    def changed(at: int, other: int | None) -> list[bool]:
        before = shared(model, prompts, answers)
        new_prompts, new_answers = [list(p) for p in prompts], [[list(a) for a in own] for own in answers]
        if other is None:
            new_prompts[at][0] ^= 1
        else:
            new_answers[at][other][0] ^= 1
        return [not torch.equal(a, b) for a, b in zip(before, shared(model, new_prompts, new_answers), strict=True)]

    assert changed(0, 1) == [False, True, False, False, False, False]
    assert changed(1, None) == [False, False, False, True, True, False]


def test_the_layout_by_hand() -> None:
    row = SharedPrefix.lay_out([[10, 11, 12], [20]], [[[13], [14, 15]], [[21, 22, 23]]], CPU)
    assert row.ids_1N.tolist() == [[10, 11, 12, 13, 14, 15, 20, 21, 22, 23]]
    assert row.position_1N.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1, 2, 3]]
    assert row.owner_A.tolist() == [0, 0, 1]
    assert row.ids_1N[0, row.last_A].tolist() == [13, 15, 23]
    # The state before an answer's first token is its prompt's last, before the next ones the answer's own.
    states = row.ids_1N[0, row.state_AT]
    assert [states[0, 0].item(), states[1, :2].tolist(), states[2].tolist()] == [12, [12, 14], [20, 21, 22]]
    padded = torch.cat([row.prompt_PS.flatten(), row.answer_AT.flatten()])
    assert padded[row.padded_N].tolist() == list(range(10))


@given(st.data(), st.one_of(st.none(), st.integers(1, 8)))
@settings(deadline=None, max_examples=60)
def test_masks_say_who_sees_whom(data: st.DataObject, window: int | None) -> None:
    length = st.integers(1, 5)
    prompts = [[0] * n for n in data.draw(st.lists(length, min_size=1, max_size=3))]
    answers = [[[0] * n for n in data.draw(st.lists(length, min_size=1, max_size=3))] for _ in prompts]
    row = SharedPrefix.lay_out(prompts, answers, CPU)
    prompt_mask, answer_mask = row.masks_of(window)
    longest = max(map(len, prompts))
    back = window or 1000
    if prompt_mask is None:
        assert back >= longest
    else:
        assert prompt_mask[0].tolist() == [[0 <= q - k < back for k in range(longest)] for q in range(longest)]
    flat = [(len(prompt), len(answer)) for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    widest = row.answer_AT.shape[1]
    for index, (before, own) in enumerate(flat):
        mask_TC = answer_mask[min(index, len(answer_mask) - 1), 0]
        for t in range(own):
            of_prompt = [s < before and before + t - s < back for s in range(longest)]
            of_answer = [k <= t and t - k < back for k in range(widest)]
            assert mask_TC[t].tolist() == of_prompt + of_answer


def test_the_attention_function_is_put_back_even_after_an_error() -> None:
    model = backbone("llama")
    before = model.config._attn_implementation
    with pytest.raises(NotImplementedError), sharing(model):
        model(torch.tensor([[1, 2]]))
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        (
            "lfm2",
            {"layer_types": ["conv", "full_attention"]},
            r"Lfm2Model has layers that do more than attend \(conv\)",
        ),
        (
            "phimoe",
            {"sliding_window": 16, "num_local_experts": 2},
            "PhimoeModel does not tell its attention how wide its sliding window is",
        ),
        ("mamba", {"hidden_size": 32, "intermediate_size": 64, "time_step_rank": 4}, "MambaModel"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "BloomModel"),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 8}, r"Gemma2Model .*its attention has terms of its own"),
    ],
)
def test_architectures_that_cannot_are_found_out_by_trying(
    architecture: str, settings: dict[str, Any], reason: str
) -> None:
    found = why_not(backbone(architecture, **settings).float())
    assert found is not None
    assert re.match(reason, found)


def test_half_precision_stays_near_full_precision() -> None:
    model, (prompts, answers) = backbone("llama").float(), some_rows(4)
    full = torch.cat(plain(model, prompts, answers))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = torch.cat(shared(model, prompts, answers)).float()
        plain_half = torch.cat(plain(model, prompts, answers)).float()
    ours, theirs = (half - full).abs().mean(), (plain_half - full).abs().mean()
    assert 0 < ours < 1.5 * theirs < 0.3
