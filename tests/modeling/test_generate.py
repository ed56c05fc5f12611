"""Sampling: exact, reproducible row by row, and with the log-probabilities that a plain forward pass gives.

pytest tests/modeling/test_generate.py
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import DynamicCache

from modeling.generate import Generation, Sampling, generate, sample
from modeling.seeds import derive_seed
from modeling.tiny import ARCHITECTURES, CONTEXT_LENGTH

NO_TOKEN = -1
"""As EOS: never said."""
PROMPTS = [[3 + (5 * row + column) % 400 for column in range(length)] for row, length in enumerate((5, 1, 9, 5, 2, 30, 3, 4, 17, 6))]
SEEDS = [derive_seed("test", row) for row in range(len(PROMPTS))]
FLOAT32 = 5e-5


def few_words(model: Any, words: int = 8) -> Any:
    """The model, left with a vocabulary of so many words: the last ones get logits of nearly minus infinity."""
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: output.index_fill(-1, torch.arange(words, 512), -1e4))
    return model


def texts(generations: list[Generation]) -> list[list[int]]:
    return [generation.ids for generation in generations]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recorded_logprobs_equal_a_plain_forward_of_the_whole_text(tiny_causal: Callable[[str], Any], architecture: str, temperature: float) -> None:
    model = tiny_causal(architecture)
    made = generate(model, PROMPTS, SEEDS, Sampling(12, temperature, batch_size=4), eos_id=NO_TOKEN, pad_id=0)
    for prompt, generation in zip(PROMPTS, made, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + generation.ids])).logits[0].double() / temperature
        expected = [logits[len(prompt) + t - 1].log_softmax(-1)[token].item() for t, token in enumerate(generation.ids)]
        assert generation.logprobs == pytest.approx(expected, abs=FLOAT32)
        assert len(generation.ids) == len(generation.logprobs) == 12
        assert not generation.ended


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_text_depends_on_prompt_and_seed_and_not_on_neighbours(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    alone = [generate(model, [p], [s], Sampling(10), eos_id=NO_TOKEN, pad_id=0)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    for batch_size, pad_id in ((3, 0), (64, 0), (64, alone[2].ids[3])):
        together = generate(model, PROMPTS, SEEDS, Sampling(10, batch_size=batch_size), eos_id=NO_TOKEN, pad_id=pad_id)
        assert texts(together) == texts(alone)
        for one, other in zip(alone, together, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=FLOAT32)
    backwards = generate(model, PROMPTS[::-1], SEEDS[::-1], Sampling(10, batch_size=4), eos_id=NO_TOKEN, pad_id=0)
    assert texts(backwards[::-1]) == texts(alone)


def test_the_same_prompt_with_another_seed_gets_another_answer(tiny_causal: Callable[[str], Any]) -> None:
    made = generate(tiny_causal("llama"), [PROMPTS[0]] * 6, [1, 2, 3, 1, 2, 3], Sampling(10), eos_id=NO_TOKEN, pad_id=0)
    assert texts(made[:3]) == texts(made[3:])
    assert len({tuple(ids) for ids in texts(made)}) == 3


def test_a_longer_limit_only_goes_on_where_a_shorter_one_stopped(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    short = generate(model, PROMPTS, SEEDS, Sampling(4), eos_id=NO_TOKEN, pad_id=0)
    long = generate(model, PROMPTS, SEEDS, Sampling(9), eos_id=NO_TOKEN, pad_id=0)
    assert [ids[:4] for ids in texts(long)] == texts(short)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eos_ends_and_rows_that_leave_change_nothing(tiny_causal: Callable[[str], Any], architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = few_words(tiny_causal(architecture))
    endless = generate(model, PROMPTS, SEEDS, Sampling(15), eos_id=NO_TOKEN, pad_id=0)
    eos_id = Counter(token for ids in texts(endless) for token in ids).most_common()[1][0]
    selected = []
    original = DynamicCache.batch_select_indices
    monkeypatch.setattr(DynamicCache, "batch_select_indices", lambda cache, rows: (selected.append(len(rows)), original(cache, rows))[1])
    for pad_id in (0, eos_id):
        made = generate(model, PROMPTS, SEEDS, Sampling(15), eos_id=eos_id, pad_id=pad_id)
        for whole, generation in zip(endless, made, strict=True):
            length = whole.ids.index(eos_id) + 1 if eos_id in whole.ids else 15
            assert generation.ids == whole.ids[:length]
            assert generation.logprobs == pytest.approx(whole.logprobs[:length], abs=FLOAT32)
            assert generation.ended is (eos_id in whole.ids)
    lengths = {len(ids) for ids in texts(made)}
    assert len(lengths) >= 3, "rows should end at different steps, or this test shows nothing"
    assert selected, "no rows left the batch, so this test shows nothing"
    assert selected == sorted(selected[: len(selected) // 2], reverse=True) * 2, "rows leave and never come back"


def test_an_eos_at_the_very_last_step_counts_as_ended(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    endless = generate(model, PROMPTS[:1], SEEDS[:1], Sampling(6), eos_id=NO_TOKEN, pad_id=0)[0]
    last = endless.ids[5]
    assert last not in endless.ids[:5]
    at_the_end = generate(model, PROMPTS[:1], SEEDS[:1], Sampling(6), eos_id=last, pad_id=0)[0]
    one_short = generate(model, PROMPTS[:1], SEEDS[:1], Sampling(5), eos_id=last, pad_id=0)[0]
    assert (at_the_end.ids, at_the_end.ended) == (endless.ids, True)
    assert (one_short.ids, one_short.ended) == (endless.ids[:5], False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_temperature_zero_takes_the_likeliest_token_every_time(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    made = generate(model, PROMPTS[:4], SEEDS[:4], Sampling(6, temperature=0), eos_id=NO_TOKEN, pad_id=0)
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
    generate(tiny_causal("llama"), PROMPTS, SEEDS, Sampling(2, batch_size=4), eos_id=NO_TOKEN, pad_id=0, on_batch=told.append)
    assert told == [4, 4, 2]
    assert generate(tiny_causal("llama"), [], [], Sampling(2), eos_id=NO_TOKEN, pad_id=0) == []


def test_a_prompt_without_room_for_its_answer_is_refused_before_anything_is_computed(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("gpt2")
    prompts = [[5], [5] * (CONTEXT_LENGTH - 3)]
    made = generate(model, prompts, [0, 1], Sampling(3), eos_id=NO_TOKEN, pad_id=0)
    assert [len(ids) for ids in texts(made)] == [3, 3]
    model.forward = None  # would raise TypeError
    with pytest.raises(
        ValueError, match=f"a prompt of {CONTEXT_LENGTH - 3} tokens and 4 new ones do not fit the model's context of {CONTEXT_LENGTH}"
    ):
        generate(model, prompts, [0, 1], Sampling(4), eos_id=NO_TOKEN, pad_id=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    logits_V = torch.tensor([0.0, 1.5, -2.0, 0.7, -float("inf"), 2.0, -0.3])
    draws = 100_000
    uniform_B = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    token_B, logprob_B = sample(logits_V.expand(draws, -1), uniform_B, temperature)
    weights = np.exp(logits_V.double().numpy() / temperature)
    expected = weights / weights.sum()
    counts = np.bincount(token_B.numpy(), minlength=7)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], draws * expected[possible]).pvalue > 1e-4
    torch.testing.assert_close(logprob_B.double(), torch.from_numpy(np.log(expected[token_B.numpy()])), atol=1e-6, rtol=0)


def test_first_and_second_words_of_many_episodes_come_as_often_as_the_model_says(tiny_causal: Callable[[str], Any]) -> None:
    # From seeds to tokens: this one also sees streams that are not uniform, or that repeat from one step or episode to the next.
    model = few_words(tiny_causal("llama"), words=5)
    model.get_output_embeddings().weight.data *= 0.4
    episodes, prompt = 3000, PROMPTS[0]
    made = generate(model, [prompt] * episodes, [derive_seed(7, "rollout", 0, e) for e in range(episodes)], Sampling(2, batch_size=1000), NO_TOKEN, 0)
    with torch.no_grad():
        first_V = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)[:5]
        second_VV = model(input_ids=torch.tensor([[*prompt, word] for word in range(5)])).logits[:, -1].double().softmax(-1)[:, :5]
    expected = (episodes * first_V[:, None] * second_VV).numpy().ravel()
    counts = np.bincount([5 * a + b for a, b in texts(made)], minlength=25)
    assert expected.min() > 5
    assert chisquare(counts, expected * (episodes / expected.sum())).pvalue > 1e-4


@pytest.mark.parametrize("uniform", [0.0, 1e-12, 0.5, 1 - 2.0**-24, 1.0])
def test_no_uniform_number_draws_a_word_of_probability_zero(uniform: float) -> None:
    # 1.0 is what a 64-bit number just below 1 rounds to. -200 underflows to zero in float32, as -inf does.
    never = torch.tensor([-float("inf"), -200.0])
    logits_V = torch.cat([never, torch.tensor([0.0]), never, torch.tensor([1.0]), never])
    token_B, logprob_B = sample(logits_V[None], torch.tensor([uniform], dtype=torch.float64).float(), 1.0)
    assert token_B.item() == (2 if uniform < 0.26 else 5)
    assert logprob_B.item() == pytest.approx(logits_V.double().log_softmax(-1)[token_B].item(), abs=1e-6)


def test_the_highest_uniform_number_stays_inside_a_large_vocabulary() -> None:
    logits_BV = torch.randn(16, 50_000, generator=torch.Generator().manual_seed(0))
    logits_BV[:, -3:] = -float("inf")
    token_B, logprob_B = sample(logits_BV, torch.full((16,), 1 - 2.0**-24), 1.0)
    assert token_B.max() < 50_000 - 3
    assert logprob_B.isfinite().all()


def test_the_inverse_distribution_is_taken_at_its_steps() -> None:
    logits_BV = torch.tensor([0.125, 0.25, 0.125, 0.5]).log().expand(8, -1)
    uniform_B = torch.tensor([0.0, 0.124, 0.126, 0.374, 0.376, 0.499, 0.501, 0.999])
    assert sample(logits_BV, uniform_B, 1.0)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    # Written down once: a stream that changes between versions or machines would change every run.
    assert derive_seed(0, "rollout", 3, 17) == derive_seed(0, "rollout", 3, 17) == 3381936270943995388
    parts = [(seed, name, number) for seed in range(20) for name in ("rollout", "head") for number in range(20)]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)
