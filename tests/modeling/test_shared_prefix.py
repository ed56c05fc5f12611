"""Answers that share their prompt's pass, against one plain forward pass for each.

pytest tests/modeling/test_shared_prefix.py
"""

import random
import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModel

from modeling.batch import Batch
from modeling.shared_prefix import NAME, SharedPrefix, enable
from tests.conftest import enliven

LAYER_NORMS = ("gpt2", "gpt_neox", "phi")
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


def batch_of(prompts: list[list[int]], answers: list[list[list[int]]]) -> Batch:
    """Every answer with its prompt, in an order in which answers to one prompt are not neighbours."""
    rows = [(prompt, answer) for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    order = random.Random(len(rows)).sample(range(len(rows)), len(rows))
    return Batch([rows[row][0] for row in order], [rows[row][1] for row in order])


def plain(model: Any, batch: Batch) -> Tensor:
    """The hidden states before each answer token, then those of last tokens, from a pass over each row alone."""
    states, last = [], []
    for prompt, answer in zip(batch.prompts, batch.responses, strict=True):
        hidden = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).last_hidden_state[0]
        states.append(hidden[len(prompt) - 1 : -1])
        last.append(hidden[-1:])
    return torch.cat([*states, *last])


def shared(model: Any, batch: Batch) -> Tensor:
    """The same from a pass that they share, of a model whose attention is `attention`."""
    row = SharedPrefix.of(batch)
    assert len(row.owner_A) == len(batch)
    hidden_NH: Tensor = model(**row.inputs(), use_cache=False).last_hidden_state[0]
    return hidden_NH[torch.cat([row.state_R, row.last_B])]


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
def test_states_and_gradients_are_those_of_a_pass_for_each_row_in_float64(
    architecture: str, settings: dict[str, Any], seed: int
) -> None:
    model = backbone(architecture, **settings)
    batch = batch_of(*some_rows(seed))
    found = []
    for passes in (plain, shared):
        model.zero_grad()
        hidden = passes(model, batch)
        # Each number with a weight of its own, so that none can stand in for another.
        (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).reshape(hidden.shape)).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((hidden.detach(), gradients))
        assert passes is shared or enable(model) is None
    (expected, expected_gradients), (ours, our_gradients) = found
    assert expected.std() > 0.2
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)
    # RMSNorms compute in float32.
    tolerance = 1e-11 if architecture in LAYER_NORMS else 2e-6
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    assert our_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=tolerance * largest, rtol=0)


def test_an_answer_changes_no_other_answer_and_a_prompt_changes_all_of_its_own() -> None:
    model = backbone("llama")
    assert enable(model) is None
    prompts = [[1, 2], [3], [1, 2], [1, 2], [3]]
    answers = [[5, 6, 7], [11, 12], [8, 9], [10], [13]]

    def last(prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
        row = SharedPrefix.of(Batch(prompts, answers))
        found: Tensor = model(**row.inputs()).last_hidden_state[0, row.last_B]
        return found

    def changed(prompts_now: list[list[int]], answers_now: list[list[int]]) -> list[bool]:
        pairs = zip(last(prompts, answers), last(prompts_now, answers_now), strict=True)
        return [not torch.equal(before, after) for before, after in pairs]

    assert changed(prompts, [*answers[:2], [20, 9], *answers[3:]]) == [False, False, True, False, False]
    assert changed([[1, 2], [4], [1, 2], [1, 2], [4]], answers) == [False, True, False, False, True]


def test_the_layout_by_hand() -> None:
    row = SharedPrefix.of(Batch([[10, 11, 12], [20], [10, 11, 12]], [[13], [21, 22, 23], [14, 15]]))
    assert row.ids_1N.tolist() == [[10, 11, 12, 13, 14, 15, 20, 21, 22, 23]]
    assert row.position_1N.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1, 2, 3]]
    assert row.owner_A.tolist() == [0, 0, 1]
    # In the order of the batch, the state before an answer's first token is its prompt's last.
    assert row.state_R.tolist() == [2, 6, 7, 8, 2, 4]
    assert row.ids_1N[0, row.last_B].tolist() == [13, 23, 15]
    padded = torch.cat([row.prompt_PS.flatten(), row.response_AT.flatten()])
    assert padded[row.unpad_N].tolist() == list(range(10))


@pytest.mark.parametrize("share_prompts", [True, False])
def test_where_no_prompt_is_shared_prompt_and_answer_are_one_sequence(share_prompts: bool) -> None:
    prompts = [[10, 11, 12], [20] if share_prompts else [10, 11, 12]]
    row = SharedPrefix.of(Batch(prompts, [[13], [21, 22]], share_prompts=share_prompts))
    assert row.ids_1N.tolist() == [[*prompts[0], 13, *prompts[1], 21, 22]]
    assert len(row.owner_A) == 0
    assert row.state_R.tolist() == [2, 3 + len(prompts[1]), 4 + len(prompts[1])]
    assert row.last_B.tolist() == [3, 5 + len(prompts[1])]


@given(st.data(), st.one_of(st.none(), st.integers(1, 8)))
@settings(deadline=None, max_examples=60)
def test_masks_say_which_token_attends_to_which(data: st.DataObject, window: int | None) -> None:
    length = st.integers(1, 5)
    prompts = [[number] * n for number, n in enumerate(data.draw(st.lists(length, min_size=1, max_size=3)))]
    answers = [[[0] * n for n in data.draw(st.lists(length, min_size=1, max_size=3))] for _ in prompts]
    rows = [(prompt, answer) for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    assume(len(rows) > len(prompts))
    row = SharedPrefix.of(Batch([prompt for prompt, _ in rows], [answer for _, answer in rows]))
    prompt_mask, answer_mask = row.masks_of(window)
    longest = max(map(len, prompts))
    back = window or 1000
    if prompt_mask is None:
        assert back >= longest
    else:
        assert prompt_mask[0].tolist() == [[0 <= q - k < back for k in range(longest)] for q in range(longest)]
    flat = [(len(prompt), len(answer)) for prompt, answer in rows]
    widest = row.response_AT.shape[1]
    for index, (before, own) in enumerate(flat):
        mask_TC = answer_mask[min(index, len(answer_mask) - 1), 0]
        for t in range(own):
            of_prompt = [s < before and before + t - s < back for s in range(longest)]
            of_answer = [k <= t and t - k < back for k in range(widest)]
            assert mask_TC[t].tolist() == of_prompt + of_answer


def test_without_a_layout_attention_is_the_backbone_s_own() -> None:
    model, ids = backbone("qwen2"), torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    before = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert enable(model) is None
    assert model.config._attn_implementation == NAME
    assert torch.equal(model(input_ids=ids, attention_mask=mask).last_hidden_state, before)


def test_a_backbone_is_tried_once() -> None:
    model = backbone("llama")
    calls: list[int] = []
    model.register_forward_hook(lambda *given: calls.append(1))
    assert enable(model) is None
    assert len(calls) == 2
    assert enable(model) is None
    assert len(calls) == 2


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
            "PhimoeModel does not pass the width of its sliding window to its attention",
        ),
        ("mamba", {"hidden_size": 32, "intermediate_size": 64, "time_step_rank": 4}, "MambaModel"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "BloomModel"),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 8}, r"Gemma2Model .*its attention has additional terms"),
    ],
)
def test_architectures_that_cannot_are_found_by_a_trial_and_keep_their_attention(
    architecture: str, settings: dict[str, Any], reason: str
) -> None:
    model = backbone(architecture, **settings).float()
    before = model.config._attn_implementation
    found = enable(model)
    assert found is not None
    assert re.match(reason, found)
    assert model.config._attn_implementation == before


def test_half_precision_stays_near_full_precision() -> None:
    model, batch = backbone("llama").float(), batch_of(*some_rows(4))
    full = plain(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain_half = plain(model, batch).float()
        assert enable(model) is None
        half = shared(model, batch).float()
    ours, theirs = (half - full).abs().mean(), (plain_half - full).abs().mean()
    assert 0 < ours < 1.5 * theirs < 0.3
