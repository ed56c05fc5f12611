"""The native engine: exact, reproducible row by row whatever stands beside a row, with the log-probabilities that a
plain forward pass gives.

pytest tests/modeling/engines/test_native.py
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM

from modeling.adapters import adapter_parameters, add_lora
from modeling.config import LoraSettings
from modeling.engines import cache, native
from modeling.engines.cache import GrowingCache, Lanes
from modeling.engines.make import make_engine
from modeling.engines.native import NativeEngine, generate
from modeling.engines.types import Generation, Sampling
from modeling.seeds import derive_seed
from modeling.tiny import ARCHITECTURES, CONTEXT_LENGTH
from tests.conftest import enliven

"""As EOS: never said."""
PROMPTS = [
    [3 + (5 * row + column) % 400 for column in range(length)]
    for row, length in enumerate((5, 1, 9, 5, 2, 30, 3, 4, 17, 6))
]
SEEDS = [derive_seed("test", row) for row in range(len(PROMPTS))]
FLOAT32 = 5e-5


def few_words(model: Any, words: int = 8) -> Any:
    """The model, left with a vocabulary of so many words: the last ones get logits of nearly minus infinity."""
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: output.index_fill(-1, torch.arange(words, 512), -1e4)
    )
    return model


def texts(generations: list[Generation]) -> list[list[int]]:
    return [generation.ids for generation in generations]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recorded_logprobs_equal_a_plain_forward_of_the_whole_text(
    tiny_causal: Callable[[str], Any], architecture: str, temperature: float
) -> None:
    model = tiny_causal(architecture)
    made = generate(model, PROMPTS, SEEDS, Sampling(12, temperature, batch_size=4), stop_ids=(), pad_id=0)
    for prompt, generation in zip(PROMPTS, made, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + generation.ids])).logits[0].double() / temperature
        expected = [logits[len(prompt) + t - 1].log_softmax(-1)[token].item() for t, token in enumerate(generation.ids)]
        assert generation.logprobs == pytest.approx(expected, abs=FLOAT32)
        assert len(generation.ids) == len(generation.logprobs) == 12
        assert not generation.ended


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_text_depends_on_prompt_and_seed_and_not_on_neighbours(
    tiny_causal: Callable[[str], Any], architecture: str
) -> None:
    model = tiny_causal(architecture)
    alone = [
        generate(model, [p], [s], Sampling(10), stop_ids=(), pad_id=0)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    for batch_size, pad_id in ((3, 0), (64, 0), (64, alone[2].ids[3])):
        together = generate(model, PROMPTS, SEEDS, Sampling(10, batch_size=batch_size), stop_ids=(), pad_id=pad_id)
        assert texts(together) == texts(alone)
        for one, other in zip(alone, together, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=FLOAT32)
    backwards = generate(model, PROMPTS[::-1], SEEDS[::-1], Sampling(10, batch_size=4), stop_ids=(), pad_id=0)
    assert texts(backwards[::-1]) == texts(alone)


def test_the_same_prompt_with_another_seed_gets_another_answer(tiny_causal: Callable[[str], Any]) -> None:
    made = generate(tiny_causal("llama"), [PROMPTS[0]] * 6, [1, 2, 3, 1, 2, 3], Sampling(10), stop_ids=(), pad_id=0)
    assert texts(made[:3]) == texts(made[3:])
    assert len({tuple(ids) for ids in texts(made)}) == 3


def test_a_longer_limit_only_goes_on_where_a_shorter_one_stopped(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    short = generate(model, PROMPTS, SEEDS, Sampling(4), stop_ids=(), pad_id=0)
    long = generate(model, PROMPTS, SEEDS, Sampling(9), stop_ids=(), pad_id=0)
    assert [ids[:4] for ids in texts(long)] == texts(short)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eos_ends_and_rows_that_leave_or_come_change_nothing(
    tiny_causal: Callable[[str], Any], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = few_words(tiny_causal(architecture))
    endless = generate(model, PROMPTS, SEEDS, Sampling(15), stop_ids=(), pad_id=0)
    eos_id = Counter(token for ids in texts(endless) for token in ids).most_common()[1][0]
    beside: list[int] = []
    original = Lanes.join
    monkeypatch.setattr(
        Lanes, "join", lambda lanes, prompts: (beside.append(len(lanes.lengths)), original(lanes, prompts))[1]
    )
    monkeypatch.setattr(cache, "GROWTH", 5)
    for pad_id, batch_size in ((0, 64), (eos_id, 64), (0, 4), (0, 1)):
        beside.clear()
        made = generate(model, PROMPTS, SEEDS, Sampling(15, batch_size=batch_size), stop_ids=[eos_id], pad_id=pad_id)
        assert (max(beside) > 0) is (batch_size == 4), (
            "newcomers should come beside others with few lanes, or this test shows nothing"
        )
        for whole, generation in zip(endless, made, strict=True):
            length = whole.ids.index(eos_id) + 1 if eos_id in whole.ids else 15
            assert generation.ids == whole.ids[:length]
            assert generation.logprobs == pytest.approx(whole.logprobs[:length], abs=FLOAT32)
            assert generation.ended is (eos_id in whole.ids)
    lengths = {len(ids) for ids in texts(made)}
    assert len(lengths) >= 3, "rows should end at different steps, or this test shows nothing"


def test_an_eos_at_the_very_last_step_counts_as_ended(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    endless = generate(model, PROMPTS[:1], SEEDS[:1], Sampling(6), stop_ids=(), pad_id=0)[0]
    last = endless.ids[5]
    assert last not in endless.ids[:5]
    at_the_end = generate(model, PROMPTS[:1], SEEDS[:1], Sampling(6), stop_ids=[last], pad_id=0)[0]
    one_short = generate(model, PROMPTS[:1], SEEDS[:1], Sampling(5), stop_ids=[last], pad_id=0)[0]
    assert (at_the_end.ids, at_the_end.ended) == (endless.ids, True)
    assert (one_short.ids, one_short.ended) == (endless.ids[:5], False)


def test_all_may_end_at_once_and_at_the_first_token(tiny_causal: Callable[[str], Any]) -> None:
    model = few_words(tiny_causal("llama"), words=1)
    for batch_size in (1, 3, 64):
        made = generate(model, PROMPTS, SEEDS, Sampling(5, batch_size=batch_size), stop_ids=[0], pad_id=0)
        assert [(generation.ids, generation.ended) for generation in made] == [([0], True)] * len(PROMPTS)


def test_a_prompt_with_several_answers_is_read_once(
    tiny_causal: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_causal("llama")
    alone = [
        generate(model, [p], [s], Sampling(6), (), 0)[0].ids
        for p, s in zip([PROMPTS[2]] * 4 + PROMPTS[:2], SEEDS, strict=False)
    ]
    read: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].numel()))
    made = generate(model, [PROMPTS[2]] * 4 + PROMPTS[:2], SEEDS[:6], Sampling(6), stop_ids=(), pad_id=0)
    assert read[0] == 3 * len(PROMPTS[2]), "three distinct prompts, padded to the longest"
    assert texts(made) == alone


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_temperature_zero_takes_the_likeliest_token_every_time(
    tiny_causal: Callable[[str], Any], architecture: str
) -> None:
    model = tiny_causal(architecture)
    made = generate(model, PROMPTS[:4], SEEDS[:4], Sampling(6, temperature=0), stop_ids=(), pad_id=0)
    for prompt, generation in zip(PROMPTS, made, strict=False):
        so_far = list(prompt)
        for token, logprob in zip(generation.ids, generation.logprobs, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([so_far])).logits[0, -1]
            assert token == logits.argmax().item()
            assert logprob == pytest.approx(logits.log_softmax(-1)[token].item(), abs=FLOAT32)
            so_far.append(token)


def test_progress_counts_every_prompt_once(tiny_causal: Callable[[str], Any]) -> None:
    told: list[int] = []
    generate(
        tiny_causal("llama"), PROMPTS, SEEDS, Sampling(2, batch_size=4), stop_ids=(), pad_id=0, on_batch=told.append
    )
    assert told == [4, 4, 2]
    assert generate(tiny_causal("llama"), [], [], Sampling(2), stop_ids=(), pad_id=0) == []


def test_a_prompt_without_room_for_its_answer_is_refused_before_anything_is_computed(
    tiny_causal: Callable[[str], Any],
) -> None:
    model = tiny_causal("gpt2")
    prompts = [[5], [5] * (CONTEXT_LENGTH - 3)]
    made = generate(model, prompts, [0, 1], Sampling(3), stop_ids=(), pad_id=0)
    assert [len(ids) for ids in texts(made)] == [3, 3]
    model.forward = None  # would raise TypeError
    with pytest.raises(
        ValueError,
        match=f"a prompt of {CONTEXT_LENGTH - 3} tokens and 4 new ones do not fit the model's context of "
        f"{CONTEXT_LENGTH}",
    ):
        generate(model, prompts, [0, 1], Sampling(4), stop_ids=(), pad_id=0)


def test_an_empty_prompt_is_refused(tiny_causal: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        generate(tiny_causal("llama"), [[5], []], [0, 1], Sampling(3), stop_ids=(), pad_id=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_and_second_words_of_many_episodes_come_as_often_as_the_model_says(
    tiny_causal: Callable[[str], Any], temperature: float
) -> None:
    # From seeds to tokens: this one also sees streams that are not uniform, or that repeat from one step or episode to
    # the next.
    model = few_words(tiny_causal("llama"), words=5)
    model.get_output_embeddings().weight.data *= 0.4 * temperature
    episodes, prompt = 3000, PROMPTS[0]
    seeds = [derive_seed(7, "rollout", 0, episode) for episode in range(episodes)]
    made = generate(model, [prompt] * episodes, seeds, Sampling(2, temperature, batch_size=1000), (), 0)
    with torch.no_grad():
        first_V = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().div(temperature).softmax(-1)[:5]
        second_VV = (
            model(input_ids=torch.tensor([[*prompt, word] for word in range(5)]))
            .logits[:, -1]
            .double()
            .div(temperature)
            .softmax(-1)[:, :5]
        )
    expected = (episodes * first_V[:, None] * second_VV).numpy().ravel()
    counts = np.bincount([5 * a + b for a, b in texts(made)], minlength=25)
    assert expected.min() > 5
    assert chisquare(counts, expected * (episodes / expected.sum())).pvalue > 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_decodes_to_the_same_text_merged_or_not(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = add_lora(tiny_causal(architecture), LoraSettings(rank=4, alpha=8))
    bare = texts(generate(model, PROMPTS, SEEDS, Sampling(8), (), 0))
    for number, parameter in enumerate(adapter_parameters(model, "default").values()):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    base = {name: value.clone() for name, value in model.state_dict().items()}
    merged, plain = (
        NativeEngine(merge).generate(model, PROMPTS, SEEDS, Sampling(8, batch_size=3), (), 0) for merge in (True, False)
    )
    assert texts(merged) == texts(plain) != bare
    for one, other in zip(merged, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=FLOAT32)
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in adapter_parameters(model, "default").values())


def test_bfloat16_decodes_with_the_logprobs_of_its_own_arithmetic(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not native.in_float32(model)
        made = generate(model, PROMPTS, SEEDS, Sampling(4, batch_size=3), stop_ids=(), pad_id=0)
        for prompt, generation in zip(PROMPTS, made, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + generation.ids])).logits[0].double()
            expected = [
                logits[len(prompt) + t - 1].log_softmax(-1)[token].item() for t, token in enumerate(generation.ids)
            ]
            # 8 bits of mantissa: logits of about 10 are known to 0.04, and errors add up over the layers.
            assert generation.logprobs == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("engine", ["native", "transformers"])
def test_under_bfloat16_tokens_are_drawn_from_logits_in_float32(tiny_causal: Callable[[str], Any], engine: Any) -> None:
    model, seen = tiny_causal("llama"), list[torch.Tensor]()
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        make_engine(engine).generate(model, PROMPTS, SEEDS, Sampling(3, batch_size=3), [], 0)
        handle.remove()
        hidden_1SH = model.model(torch.tensor(PROMPTS[:1])).last_hidden_state
        assert head(hidden_1SH).dtype == torch.bfloat16, "the model is as it was before"
    assert all(logits.dtype == torch.float32 for logits in seen)
    assert any(not torch.equal(logits, logits.bfloat16().float()) for logits in seen)
    assert "forward" not in vars(head)


def small(kind: str, **settings: Any) -> Any:
    """A model of an architecture that the tiny models do not have."""
    sizes = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    return enliven(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | settings)).eval())


def test_a_model_whose_attention_takes_no_mask_of_ours_is_decoded_with_a_growing_cache(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = small("bloom")
    with caplog.at_level(logging.WARNING):
        made = generate(model, PROMPTS, SEEDS, Sampling(8, batch_size=4), stop_ids=(), pad_id=0)
    assert "BloomForCausalLM is decoded with a growing cache" in caplog.text
    assert isinstance(native.memory(model, 1, 1, 0), GrowingCache)
    for prompt, seed, generation in zip(PROMPTS, SEEDS, made, strict=True):
        assert generation.ids == generate(model, [prompt], [seed], Sampling(8), (), 0)[0].ids
    eos_id = made[0].ids[3]
    short = generate(model, PROMPTS, SEEDS, Sampling(8, batch_size=4), stop_ids=[eos_id], pad_id=0)
    assert texts(short) == [ids[: ids.index(eos_id) + 1] if eos_id in ids else ids for ids in texts(made)]


def test_a_model_that_remembers_otherwise_is_refused_in_a_sentence() -> None:
    model = small("mamba", num_attention_heads=None)
    with pytest.raises(ValueError, match="the native engine cannot decode MambaForCausalLM, which has other state"):
        generate(model, PROMPTS, SEEDS, Sampling(3), stop_ids=(), pad_id=0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_our_attention_of_one_token_is_pytorchs(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    query_BH1D, key_BGCD, value_BGCD = (
        torch.randn(3, *sizes, dtype=torch.float64, generator=generator)
        for sizes in ((4, 1, 8), (groups, 6, 8), (groups, 6, 5))
    )
    mask_B11C = torch.zeros(3, 1, 1, 6, dtype=torch.float64)
    mask_B11C[0, ..., 4:] = mask_B11C[2, ..., 1:] = -torch.inf
    for scaling in (None, 0.3):
        found_B1HD, _ = cache.attention(None, query_BH1D, key_BGCD, value_BGCD, mask_B11C, scaling)
        shared = {"attn_mask": mask_B11C, "scale": scaling, "enable_gqa": True}
        expected_BH1D = torch.nn.functional.scaled_dot_product_attention(query_BH1D, key_BGCD, value_BGCD, **shared)
        torch.testing.assert_close(found_B1HD, expected_BH1D.transpose(1, 2))


def test_a_model_with_terms_of_its_own_attends_as_always_and_still_decodes_in_lanes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "head_dim": 16,
        "layer_types": ["full_attention"] * 2,
    }
    for model, own in (
        (small("gemma2", **sizes), False),
        (small("gemma2", **sizes, attn_logit_softcapping=None), True),
    ):
        rows = native.memory(model, 1, 1, 0)
        assert isinstance(rows, Lanes)
        assert rows.attends is own
        made = generate(model, PROMPTS, SEEDS, Sampling(6, batch_size=4), stop_ids=(), pad_id=0)
        for prompt, generation in zip(PROMPTS, made, strict=True):
            expected_TV = (
                model(torch.tensor([[*prompt, *generation.ids]]))
                .logits[0, len(prompt) - 1 : -1]
                .float()
                .log_softmax(-1)
            )
            assert generation.logprobs == pytest.approx(expected_TV[range(6), generation.ids].tolist(), abs=FLOAT32)
    assert "growing cache" not in caplog.text


def test_below_float32_a_model_attends_as_always(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    assert Lanes(model, 1, 1, 0).attends
    with torch.autocast("cpu", torch.bfloat16):
        assert not Lanes(model, 1, 1, 0).attends
    assert not Lanes(model.bfloat16(), 1, 1, 0).attends


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_grouped_heads_and_a_sliding_window_decode_up_to_the_window(attention: str) -> None:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    model = small("mistral", **sizes, sliding_window=40, attn_implementation=attention)
    whole = small("mistral", **sizes, sliding_window=None)
    made = generate(model, PROMPTS, SEEDS, Sampling(10, batch_size=3), stop_ids=(), pad_id=0)
    assert isinstance(native.memory(model, 1, 1, 0), Lanes)
    assert texts(made) == texts(generate(whole, PROMPTS, SEEDS, Sampling(10), (), 0))
    with pytest.raises(ValueError, match="a prompt of 30 tokens and 11 new ones do not fit the model's context of 40"):
        generate(model, PROMPTS, SEEDS, Sampling(11), stop_ids=(), pad_id=0)


def test_gaps_are_closed_by_as_few_moves_as_possible() -> None:
    for alive in ([], [0], [3], [0, 1, 2], [1, 2, 5], [4, 5, 6], [0, 2, 4, 6]):
        closed = native.closed_up(alive)
        assert sorted(closed) == alive
        assert all(closed[place] == place for place in alive if place < len(alive))
