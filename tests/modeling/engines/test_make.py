"""One function chooses the engine that decodes a model, for every stage that samples.

pytest tests/modeling/engines/test_make.py
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import Prompt
from data.tokenize import encode_prompt
from labeling.sampling import answer
from modeling.config import ModelConfig
from modeling.engines import make
from modeling.engines.hf import TransformersEngine
from modeling.engines.make import engine_for, refuse_wrong_decoding
from modeling.engines.native import NativeEngine
from modeling.engines.types import Generation, Sampling
from modeling.load import load_causal
from modeling.processes import Processes
from ppo.config import PPOConfig
from stages.config import RunConfig
from stages.preflight import check_models
from tests.conftest import enliven
from tests.families import make_family

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A model with convolution layers, whose state our engine does not keep."""
    return make_family("lfm2", tmp_path_factory.mktemp("lfm2"), tiny_tokenizer)


@pytest.fixture(scope="module")
def convolving(place: Path, model_config: ModelConfig, tiny_tokenizer: Any) -> Any:
    return enliven(load_causal(place, model_config, tiny_tokenizer))


def test_transformers_decodes_what_our_engine_cannot_and_the_log_gives_the_reason_once(
    convolving: Any, caplog: Any
) -> None:
    make._told.clear()
    with caplog.at_level(logging.WARNING):
        assert isinstance(engine_for(convolving), TransformersEngine)
        assert isinstance(engine_for(convolving), TransformersEngine)
    said = [record.message for record in caplog.records if "Lfm2ForCausalLM" in record.message]
    assert len(said) == 1
    assert "using transformers' generate instead" in said[0]


def test_our_engine_is_used_where_it_can_decode(tiny_causal: Any) -> None:
    assert isinstance(engine_for(tiny_causal("llama")), NativeEngine)
    assert isinstance(engine_for(tiny_causal("llama"), "transformers"), TransformersEngine)


def test_greedy_answers_of_such_a_model_are_its_argmax_tokens(convolving: Any, tiny_tokenizer: Any) -> None:
    prompts = [Prompt(prompt=text, prompt_id=text) for text in ("Why?", "What is the capital of France?")]
    answers = answer(convolving, tiny_tokenizer, prompts, 1, Sampling(5, temperature=0), "s", 0, ALONE)
    for prompt, (found,) in zip(prompts, answers, strict=True):
        ids = encode_prompt(tiny_tokenizer, prompt)
        with torch.no_grad():
            for token in found.ids:
                logits_V = convolving(input_ids=torch.tensor([ids])).logits[0, -1]
                assert float(logits_V.max() - logits_V[token]) < 1e-4 * float(logits_V.max() - logits_V.min())
                ids = [*ids, token]


def test_an_engine_that_gives_other_tokens_than_the_model_is_refused(tiny_causal: Any) -> None:
    class Wrong(TransformersEngine):
        def generate(self, *arguments: Any, **named: Any) -> list[Generation]:
            made = super().generate(*arguments, **named)
            return [Generation([(found.ids[0] + 1) % 500, *found.ids[1:]], None, False) for found in made]

    model = tiny_causal("llama")
    refuse_wrong_decoding(TransformersEngine(), model)
    with pytest.raises(
        ValueError, match="LlamaForCausalLM cannot be decoded: generate gives different tokens in batches"
    ):
        refuse_wrong_decoding(Wrong(), model)


def test_recorded_logprobs_are_refused_before_training_where_ours_cannot_decode(place: Path, tiny_llama: Path) -> None:
    def config(base: Path) -> RunConfig:
        return RunConfig(model=ModelConfig(base=str(base), device="cpu"), ppo=PPOConfig(old_logprobs="rollout"))

    check_models(config(tiny_llama))
    with pytest.raises(ValueError, match=r"rollout needs .* cannot decode this model: set ppo\.old_logprobs"):
        check_models(config(place))
