"""Generation: exact sampling, the same text for a seed whatever is decoded beside it, and recorded log-probabilities.

pytest tests/modeling/test_generation.py
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM

from data.records import Prompt
from data.tokenize import encode_prompt
from labeling.sampling import AnswerSampler
from modeling import generation
from modeling.adapters import adapter_parameters, add_lora
from modeling.config import LoraSettings, ModelConfig
from modeling.generation import (
    Generation,
    GenerationSettings,
    NativeGenerator,
    TransformersGenerator,
    decoding_failure,
    draw,
    generator_for,
    refuse_wrong_decoding,
)
from modeling.load import load_causal
from modeling.seeds import derive_seed
from modeling.tiny import ARCHITECTURES, CONTEXT_LENGTH
from ppo.config import PPOConfig
from stages.config import RunConfig
from stages.preflight import check_models
from tests.conftest import enliven
from tests.fakes import FakeAccelerator
from tests.families import make_family

PROMPTS = [
    [3 + (5 * row + column) % 400 for column in range(length)]
    for row, length in enumerate((5, 1, 9, 5, 2, 30, 3, 4, 17, 6))
]
SEEDS = [derive_seed("test", row) for row in range(len(PROMPTS))]
NATIVE, TRANSFORMERS = NativeGenerator(), TransformersGenerator()
BOTH = pytest.mark.parametrize("generator", [NATIVE, TRANSFORMERS])
LAST = 1 - 2.0**-53
"""The largest uniform number in float64."""
SMALL = {
    "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "pad_token_id": 0,
}  # fmt: skip
Make = Callable[[str], Any]


def small(kind: str, **settings: Any) -> Any:
    """A model of a family that `tiny_causal` does not have."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | settings)).eval()
    return with_ends(enliven(model))


def with_ends(model: Any, *ends: int) -> Any:
    """The model, whose answers end with these tokens only."""
    model.generation_config.eos_token_id = list(ends)
    return model


def few_words(model: Any, words: int) -> Any:
    """The model, whose other tokens have a logit of nearly minus infinity."""
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: output.index_fill(-1, torch.arange(words, 512), -1e4)
    )
    return model


def texts(generations: list[Generation]) -> list[list[int]]:
    return [generation.ids for generation in generations]


@torch.no_grad()
def distribution(model: Any, ids: list[int], sampling: GenerationSettings) -> np.ndarray:
    """probability_V of the next token, written down by hand: temperature, then top-k, then top-p."""
    logits_V = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()
    weight_V = np.exp((logits_V - logits_V.max()) / (sampling.temperature or 1.0))
    likeliest = np.argsort(-weight_V)
    weight_V[likeliest[sampling.top_k or len(likeliest) :]] = 0
    kept, mass = 0, 0.0
    while kept < len(likeliest) and mass < sampling.top_p * weight_V.sum():
        mass, kept = mass + weight_V[likeliest[kept]], kept + 1
    weight_V[likeliest[kept:]] = 0
    return weight_V / weight_V.sum()


def oracle(model: Any, prompt: list[int], seed: int, sampling: GenerationSettings) -> tuple[list[int], list[float]]:
    """(tokens, log-probabilities) by a pass over the whole text for each token."""
    uniforms = torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ids, logprobs = list[int](), list[float]()
    for uniform in uniforms.tolist():
        probability_V = distribution(model, [*prompt, *ids], sampling)
        greedy = int(probability_V.argmax())
        token = greedy if sampling.temperature == 0 else int(np.searchsorted(probability_V.cumsum(), uniform, "right"))
        ids.append(token)
        logprobs.append(float(np.log(probability_V[token])))
        if token in model.generation_config.eos_token_id:
            break
    return ids, logprobs


# Text and log-probabilities


@pytest.mark.parametrize(
    ("architecture", "sampling"),
    [
        ("llama", GenerationSettings(12)),
        ("llama", GenerationSettings(12, temperature=0)),
        ("llama", GenerationSettings(12, temperature=2.0, top_k=40, top_p=0.7)),
        ("gpt2", GenerationSettings(12, temperature=0.7, top_k=3)),
        ("gemma", GenerationSettings(12, temperature=1.5, top_p=0.8)),
        ("gemma2", GenerationSettings(12)),
        ("bloom", GenerationSettings(12)),
    ],
)
def test_in_float64_text_and_logprobs_are_the_oracles_for_any_batch_size_order_and_share(
    tiny_causal: Make, architecture: str, sampling: GenerationSettings
) -> None:
    model = (tiny_causal(architecture) if architecture in ARCHITECTURES else small(architecture, head_dim=8)).double()
    with_ends(model, *range(0, 512, 12))
    expected = [oracle(model, prompt, seed, sampling) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert len({len(ids) for ids, _ in expected}) >= 3, "texts should end at different steps, or this shows little"
    everyone = list(range(len(PROMPTS)))
    shuffled = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(0)).tolist()
    for batch_size, order in (
        *((size, everyone) for size in (1, 3, 64)), (4, shuffled), (3, everyone[::2]), (3, everyone[1::2])
    ):  # fmt: skip
        how = GenerationSettings(
            sampling.max_new_tokens, sampling.temperature, sampling.top_k, sampling.top_p, batch_size
        )
        made = NATIVE.generate(model, [PROMPTS[i] for i in order], [SEEDS[i] for i in order], how)
        for index, found in zip(order, made, strict=True):
            ids, logprobs = expected[index]
            assert (found.ids, found.ended) == (ids, ids[-1] in model.generation_config.eos_token_id)
            # These two attend with a softmax in float32.
            assert found.logprobs == pytest.approx(logprobs, abs=1e-6 if architecture in ("gemma2", "bloom") else 1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_texts_are_those_of_transformers_generate(tiny_causal: Make, architecture: str) -> None:
    model = with_ends(tiny_causal(architecture), *range(0, 512, 12))
    made = NATIVE.generate(model, PROMPTS, SEEDS, GenerationSettings(9, temperature=0, batch_size=4))
    how = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0}
    for prompt, found in zip(PROMPTS, made, strict=True):
        expected = model.generate(torch.tensor([prompt]), **how)[0, len(prompt) :].tolist()
        assert (found.ids, found.ended) == (expected, expected[-1] % 12 == 0)
    other = TRANSFORMERS.generate(model, PROMPTS, SEEDS, GenerationSettings(9, temperature=0, batch_size=4))
    assert [(row.ids, row.ended) for row in other] == [(row.ids, row.ended) for row in made]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_and_second_words_of_many_episodes_come_as_often_as_the_model_says(
    tiny_causal: Make, temperature: float
) -> None:
    # From seeds to tokens: streams that are not uniform, or that repeat between steps or episodes, show here.
    model = with_ends(few_words(tiny_causal("llama"), words=5))
    model.get_output_embeddings().weight.data *= 0.4 * temperature
    episodes, prompt, sampling = 3000, PROMPTS[0], GenerationSettings(2, temperature, batch_size=1000)
    seeds = [derive_seed(7, "rollout", 0, episode) for episode in range(episodes)]
    made = NATIVE.generate(model, [prompt] * episodes, seeds, sampling)
    first_V = distribution(model, prompt, sampling)[:5]
    second_VV = np.stack([distribution(model, [*prompt, word], sampling)[:5] for word in range(5)])
    expected = (episodes * first_V[:, None] * second_VV).ravel()
    counts = np.bincount([5 * a + b for a, b in texts(made)], minlength=25)
    assert expected.min() > 5
    assert chisquare(counts, expected * (episodes / expected.sum())).pvalue > 1e-4


# Drawing a token


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, 1 - 2.0**-24, LAST])
@pytest.mark.parametrize("vocabulary", [8, 512, 50_000])
def test_no_uniform_number_draws_a_token_of_probability_zero(
    vocabulary: int, uniform: float, dtype: torch.dtype
) -> None:
    logits_BV = torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(0), dtype=dtype)
    never = [0, 1, 4, vocabulary - 2, vocabulary - 1]
    logits_BV[:, never] = torch.tensor([-torch.inf, -1e4, -1e4, -1e4, -torch.inf], dtype=dtype)
    tokens, logprobs = draw(logits_BV, torch.full((16,), uniform, dtype=torch.float64), GenerationSettings(1))
    assert not set(tokens) & set(never)
    expected_BV = logits_BV.double().log_softmax(-1)
    # A log-softmax in float32 is off by a few roundings of numbers of about 16.
    assert logprobs == pytest.approx(expected_BV[range(16), tokens].tolist(), abs=4 * 16 * torch.finfo(dtype).eps)


def test_a_sum_that_rounding_lifts_at_a_token_of_probability_zero_does_not_draw_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Sums over parts, as on a GPU, may round like this.
    rounded = torch.tensor([[0.5, 0.5 + 1e-15, 1.0, 1.0 + 1e-15]], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda *_, **__: rounded.clone())
    logits_BV = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    for uniform, token in ((0.5, 2), (LAST, 2), (0.4, 0)):
        assert draw(logits_BV, torch.tensor([uniform], dtype=torch.float64), GenerationSettings(1))[0] == [token]


@pytest.mark.parametrize("wrong", [[0.0, torch.nan], [0.0, torch.inf], [-torch.inf, -torch.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused_in_a_sentence(wrong: list[float], temperature: float) -> None:
    logits_BV, uniform_B = torch.tensor([[0.0, -torch.inf], wrong]), torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert draw(logits_BV[:1], uniform_B[:1], GenerationSettings(1, temperature))[0] == [0]
    with pytest.raises(ValueError, match=r"decoding: a logit is -?(nan|inf): weights or activations"):
        draw(logits_BV, uniform_B, GenerationSettings(1, temperature))


# Ends and limits


@BOTH
def test_all_may_end_at_once_and_an_end_at_the_last_step_counts(tiny_causal: Make, generator: Any) -> None:
    model = with_ends(few_words(tiny_causal("llama"), words=1), 0)
    for batch_size, limit in ((1, 5), (3, 5), (64, 1)):
        made = generator.generate(model, PROMPTS, SEEDS, GenerationSettings(limit, batch_size=batch_size))
        assert [(row.ids, row.ended) for row in made] == [([0], True)] * len(PROMPTS)
    assert not any(row.ended for row in generator.generate(with_ends(model), PROMPTS, SEEDS, GenerationSettings(2)))


@BOTH
def test_progress_counts_every_prompt_once_and_no_prompts_give_nothing(tiny_causal: Make, generator: Any) -> None:
    model, told = with_ends(tiny_causal("llama")), list[int]()
    generator.generate(model, PROMPTS, SEEDS, GenerationSettings(2, batch_size=4), on_batch=told.append)
    assert told == [4, 4, 2]
    assert generator.generate(model, [], [], GenerationSettings(2)) == []


@BOTH
def test_prompts_without_room_or_tokens_are_refused_before_anything_is_computed(
    tiny_causal: Make, generator: Any
) -> None:
    model = with_ends(tiny_causal("gpt2"))
    prompts = [[5], [5] * (CONTEXT_LENGTH - 3)]
    assert [len(ids) for ids in texts(generator.generate(model, prompts, [0, 1], GenerationSettings(3)))] == [3, 3]
    model.forward = None  # would raise TypeError
    sizes = f"a prompt of {CONTEXT_LENGTH - 3} tokens and 4 new ones do not fit the model's context of {CONTEXT_LENGTH}"
    with pytest.raises(ValueError, match=sizes):
        generator.generate(model, prompts, [0, 1], GenerationSettings(4))
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        generator.generate(model, [[5], []], [0, 1], GenerationSettings(3))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_our_decoder_refuses_texts_longer_than_the_attention_window(attention: str) -> None:
    model = small("mistral", sliding_window=40, attn_implementation=attention).double()
    whole = small("mistral", sliding_window=None).double()
    made = texts(NATIVE.generate(model, PROMPTS, SEEDS, GenerationSettings(10, batch_size=3)))
    assert made == [oracle(whole, *row, GenerationSettings(10))[0] for row in zip(PROMPTS, SEEDS, strict=True)]
    with pytest.raises(ValueError, match="a prompt with its answer does not fit the attention window of 40 tokens"):
        NATIVE.generate(model, PROMPTS, SEEDS, GenerationSettings(11))


# Adapters and precision


@BOTH
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_is_merged_while_decoding_and_leaves_the_base_as_it_was(
    tiny_causal: Make, architecture: str, generator: Any
) -> None:
    model = add_lora(with_ends(tiny_causal(architecture)).double(), LoraSettings(rank=4, alpha=8))
    for number, parameter in enumerate(adapter_parameters(model, "default").values()):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data = 0.2 * values.double()
    base, sampling = (
        {name: value.clone() for name, value in model.state_dict().items()},
        GenerationSettings(5, temperature=0),
    )
    expected = [oracle(model, *row, sampling)[0] for row in zip(PROMPTS[:4], SEEDS, strict=False)]
    assert texts(generator.generate(model, PROMPTS[:4], SEEDS[:4], sampling)) == expected
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in adapter_parameters(model, "default").values())
    with model.disable_adapter():
        assert expected[0] != oracle(model, PROMPTS[0], SEEDS[0], sampling)[0]


@BOTH
def test_under_bfloat16_the_output_layer_computes_in_float32(tiny_causal: Make, generator: Any) -> None:
    model, seen = with_ends(tiny_causal("llama")), list[torch.Tensor]()
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = generator.generate(model, PROMPTS, SEEDS, GenerationSettings(3, batch_size=3))
        handle.remove()
        hidden_1SH = model.model(torch.tensor(PROMPTS[:1])).last_hidden_state
        assert head(hidden_1SH).dtype == torch.bfloat16, "autocast is on again"
    assert all(logits.dtype == torch.float32 for logits in seen)
    assert any(not torch.equal(logits, logits.bfloat16().float()) for logits in seen)
    assert not head._forward_pre_hooks
    assert not head._forward_hooks
    for prompt, found in zip(PROMPTS, made if generator is NATIVE else [], strict=False):
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([prompt + found.ids])).logits[0, len(prompt) - 1 : -1].double()
        expected = logits_TV.log_softmax(-1)[range(3), found.ids].tolist()
        # 8 bits of mantissa: logits of about 10 are known to 0.04, and errors add up over the layers.
        assert found.logprobs == pytest.approx(expected, abs=0.5)


def test_an_error_within_a_pass_leaves_autocast_and_hooks_as_they_were(tiny_causal: Make) -> None:
    model = tiny_causal("llama")
    head = model.get_output_embeddings()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError), generation.head_outside_autocast(model):
            head(torch.zeros(1, 3))  # another width than the head's
        assert torch.is_autocast_enabled("cpu")
    assert not head._forward_pre_hooks
    assert not head._forward_hooks


# transformers' generate


def test_transformers_samples_as_asked_and_takes_nothing_from_the_models_own_settings(tiny_causal: Make) -> None:
    model = with_ends(few_words(tiny_causal("llama"), words=5))
    model.get_output_embeddings().weight.data *= 0.3
    model.generation_config.top_p = model.generation_config.repetition_penalty = 0.5
    state, episodes = torch.get_rng_state(), 2000
    for sampling in (GenerationSettings(1, 0.7, batch_size=1000), GenerationSettings(1, 0.7, 4, 0.8, batch_size=1000)):
        made = TRANSFORMERS.generate(model, [PROMPTS[0]] * episodes, list(range(episodes)), sampling)
        expected = episodes * distribution(model, PROMPTS[0], sampling)
        counts, possible = np.bincount([row.ids[0] for row in made], minlength=512), expected > 0.1
        assert counts[~possible].sum() == 0
        assert expected[possible].min() > 5
        assert chisquare(counts[possible], expected[possible] * (episodes / expected[possible].sum())).pvalue > 1e-4
        assert all(row.logprobs is None for row in made)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config.top_p == 0.5
    again, same, other = (
        texts(TRANSFORMERS.generate(model, [PROMPTS[0]] * 10, list(range(start, start + 10)), GenerationSettings(4)))
        for start in (0, 0, 10)
    )
    assert again == same != other


# The choice of a generator


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A model with convolution layers, whose state our decoder does not keep."""
    return make_family("lfm2", tmp_path_factory.mktemp("lfm2"), tiny_tokenizer)


def test_transformers_decodes_what_our_decoder_cannot_and_the_log_gives_the_reason_once(
    place: Path, model_config: ModelConfig, tiny_tokenizer: Any, caplog: Any
) -> None:
    model = enliven(load_causal(place, model_config, tiny_tokenizer))
    generation._logged.clear()
    prompts, alone = [Prompt(prompt=text, prompt_id=text) for text in ("Why?", "What is the capital of France?")], 1
    with caplog.at_level(logging.WARNING):
        assert isinstance(generator_for(model), TransformersGenerator)
        accelerator = FakeAccelerator()
        sampler = AnswerSampler(model, tiny_tokenizer, GenerationSettings(5, temperature=0), 0, accelerator)
        answers = sampler.answers(prompts, alone, "s")
    (message,) = [record.message for record in caplog.records if "Lfm2ForCausalLM" in record.message]
    assert "using transformers' generate" in message
    for prompt, (found,) in zip(prompts, answers, strict=True):
        assert (
            found.ids
            == oracle(with_ends(model, 2), encode_prompt(tiny_tokenizer, prompt), 0, GenerationSettings(5, 0))[0]
        )


WINDOWED = ("mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt_neo", "phi3", "starcoder2")


@pytest.mark.parametrize("family", WINDOWED)
def test_texts_longer_than_the_attention_window_are_decoded_by_transformers(
    family: str, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    window = {"window_size" if family == "gpt_neo" else "sliding_window": 10}
    model = enliven(load_causal(make_family(family, tmp_path, tiny_tokenizer, **window), model_config, tiny_tokenizer))
    with_ends(model, 2)
    assert isinstance(generator_for(model, tokens=10), NativeGenerator)
    found = generator_for(model, tokens=11)
    assert isinstance(found, TransformersGenerator)
    sampling = GenerationSettings(5, temperature=0, batch_size=4)
    whole = [oracle(model, prompt, 0, sampling)[0] for prompt in PROMPTS]
    assert texts(found.generate(model, PROMPTS, SEEDS, sampling)) == whole
    with pytest.raises(ValueError, match="attention window of 10"):
        NATIVE.generate(model, [[3] * 6], [0], sampling)
    prompts = [Prompt(prompt="So " * 12, prompt_id="p")]
    sampler = AnswerSampler(model, tiny_tokenizer, sampling, 0, FakeAccelerator())
    ((answer,),) = sampler.answers(prompts, 1, "s")
    assert answer.ids == oracle(model, encode_prompt(tiny_tokenizer, prompts[0]), 0, sampling)[0]


def test_a_model_whose_window_transformers_decodes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("mistral", sliding_window=64)
    assert isinstance(generator_for(model, tokens=65), TransformersGenerator)
    step = type(model).forward

    def wider(self: Any, *given: Any, **named: Any) -> Any:
        for layer in self.model.layers:
            layer.self_attn.sliding_window = self.config.sliding_window = 9 if named.get("use_cache") else 4
        return step(self, *given, **named)

    def patched(self: Any, *given: Any, **named: Any) -> Any:  # a window that only decoding gets wrong
        return (wider if self.config.sliding_window < 64 else step)(self, *given, **named)

    monkeypatch.setattr(type(model), "forward", patched)
    assert decoding_failure(TRANSFORMERS, model) is None
    with pytest.raises(ValueError, match=r"decode MistralForCausalLM .* beyond its attention window of 64 tokens"):
        generator_for(model, tokens=65)


@pytest.mark.parametrize("forgotten", ["attention_mask", "position_ids", "past_key_values"])
def test_a_model_that_takes_no_notice_of_masks_or_positions_is_not_decoded_natively(
    tiny_causal: Make, forgotten: str
) -> None:
    model = tiny_causal("llama")
    assert isinstance(generator_for(model), NativeGenerator)
    assert isinstance(generator_for(model, "transformers"), TransformersGenerator)
    model.register_forward_pre_hook(lambda module, _, named: (_, named | {forgotten: None}), with_kwargs=True)
    assert "NativeGenerator cannot decode LlamaForCausalLM" in (decoding_failure(NATIVE, model) or "")


def test_a_generator_that_gives_other_tokens_than_the_model_is_refused(tiny_causal: Make) -> None:
    class Wrong(TransformersGenerator):
        def generate(self, *arguments: Any, **named: Any) -> list[Generation]:
            made = super().generate(*arguments, **named)
            return [Generation([(found.ids[0] + 1) % 500, *found.ids[1:]], None, False) for found in made]

    model = tiny_causal("llama")
    refuse_wrong_decoding(TRANSFORMERS, model)
    with pytest.raises(ValueError, match="Wrong cannot decode LlamaForCausalLM"):
        refuse_wrong_decoding(Wrong(), model)
    with pytest.raises(ValueError, match="generator='tgi' is not one of native, transformers, vllm"):
        generator_for(model, "tgi")


def test_transformers_generate_is_refused_if_padding_changes_logits_but_no_token(tiny_causal: Any) -> None:
    """Greedy tokens stay the same when the hidden states of padded rows are scaled; sampled ones do not."""
    model, padded = tiny_causal("llama"), [False]

    def note(module: Any, args: Any, options: dict[str, Any]) -> None:
        mask = options.get("attention_mask")
        padded[0] = mask is not None and not bool(mask.all())

    def scale(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0] * 1.5 if padded[0] else inputs[0],)

    refuse_wrong_decoding(TRANSFORMERS, model)
    model.register_forward_pre_hook(note, with_kwargs=True)
    model.lm_head.register_forward_pre_hook(scale)
    with pytest.raises(ValueError, match=r"TransformersGenerator cannot decode LlamaForCausalLM .a logit is off by"):
        refuse_wrong_decoding(TRANSFORMERS, model)


def test_recorded_logprobs_are_refused_before_training_where_our_decoder_cannot(place: Path, tiny_llama: Path) -> None:
    def config(base: Path) -> RunConfig:
        return RunConfig(model=ModelConfig(base=str(base), device="cpu"), ppo=PPOConfig(old_logprobs="rollout"))

    check_models(config(tiny_llama))
    with pytest.raises(ValueError, match=r"rollout needs .* decode this model, or .* window: set ppo\.old_logprobs"):
        check_models(config(place))
