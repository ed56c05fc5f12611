"""transformers' generate as an engine.

pytest tests/modeling/engines/test_hf.py
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from modeling.adapters import adapter_parameters, add_lora
from modeling.config import LoraSettings
from modeling.engines.hf import until_end
from modeling.engines.make import make_engine
from modeling.engines.native import generate
from modeling.engines.types import Sampling
from tests.modeling.engines.test_native import PROMPTS, SEEDS, few_words, texts


def test_it_takes_the_likeliest_tokens_that_the_native_engine_takes(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("qwen2")
    engine = make_engine("transformers")
    told: list[int] = []
    made = engine.generate(model, PROMPTS, SEEDS, Sampling(6, temperature=0, batch_size=4), [511], 0, told.append)
    assert texts(made) == texts(generate(model, PROMPTS, SEEDS, Sampling(6, temperature=0), [511], 0))
    assert all(generation.logprobs is None for generation in made)
    assert told == [4, 4, 2]


def test_it_samples_at_the_temperature_and_takes_nothing_from_the_models_own_settings(
    tiny_causal: Callable[[str], Any],
) -> None:
    model = few_words(tiny_causal("llama"), words=5)
    model.get_output_embeddings().weight.data *= 0.3
    model.generation_config.top_p = model.generation_config.repetition_penalty = 0.5
    episodes = 3000
    engine, state = make_engine("transformers"), torch.get_rng_state()
    made = engine.generate(
        model, [PROMPTS[0]] * episodes, list(range(episodes)), Sampling(1, 0.7, batch_size=1000), (), 0
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config.top_p == 0.5
    with torch.no_grad():
        expected = (
            episodes
            * (model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double() / 0.7).softmax(-1)[:5].numpy()
        )
    counts = np.bincount([ids[0] for ids in texts(made)], minlength=5)
    assert expected.min() > 5
    assert chisquare(counts, expected * (episodes / expected.sum())).pvalue > 1e-4
    again = engine.generate(model, [PROMPTS[0]] * 10, list(range(10)), Sampling(4), (), 0)
    assert texts(again) == texts(engine.generate(model, [PROMPTS[0]] * 10, list(range(10)), Sampling(4), (), 0))
    assert texts(again) != texts(engine.generate(model, [PROMPTS[0]] * 10, list(range(10, 20)), Sampling(4), (), 0))


def test_it_decodes_a_policy_with_its_adapter(tiny_causal: Callable[[str], Any]) -> None:
    model = add_lora(tiny_causal("llama"), LoraSettings(rank=4, alpha=8))
    for number, parameter in enumerate(adapter_parameters(model, "default").values()):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    made = make_engine("transformers").generate(model, PROMPTS, SEEDS, Sampling(5, temperature=0), [511], 0)
    assert texts(made) == texts(generate(model, PROMPTS, SEEDS, Sampling(5, temperature=0), [511], 0))


def test_a_response_ends_with_its_first_end_token() -> None:
    for ids, ends, kept, ended in (
        ([4, 2, 0, 0], [2], [4, 2], True),
        ([4, 3, 2], [2, 3], [4, 3], True),
        ([4, 5], [2], [4, 5], False),
    ):
        assert (until_end(ids, ends).ids, until_end(ids, ends).ended) == (kept, ended)


def test_any_of_several_end_tokens_ends_a_response(tiny_causal: Callable[[str], Any]) -> None:
    model = few_words(tiny_causal("llama"))
    endless = texts(generate(model, PROMPTS, SEEDS, Sampling(9, temperature=0), [], 0))
    ends = {endless[0][2], endless[1][4]}
    expected = [ids[: next((place for place, token in enumerate(ids, 1) if token in ends), 9)] for ids in endless]
    for engine in ("native", "transformers"):
        made = make_engine(engine).generate(model, PROMPTS, SEEDS, Sampling(9, temperature=0), ends, 0)
        assert texts(made) == expected
        assert [row.ended for row in made] == [bool(ends & set(ids)) for ids in endless]


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="engine='tgi' is not one of native, transformers, vllm"):
        make_engine("tgi")
