"""The vLLM generator, through trl's own code, against a stand-in for `vllm.LLM` that decodes with transformers on the
CPU: what it is asked, and with which weights. vLLM itself is not tested.

pytest tests/modeling/test_vllm.py
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.generation import vllm_generation

from modeling import vllm
from modeling.adapters import adapter_parameters, add_lora
from modeling.config import GenerationSettings, LoraSettings
from modeling.generation import NativeGenerator, generator_for
from tests.modeling.test_generation import PROMPTS, SEEDS, texts, with_ends


class StandIn:
    """Answers greedily by the weights that it was given last."""

    made: ClassVar[list[Any]] = []

    def __init__(self, model: str, **options: Any) -> None:
        self.model = with_ends(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval())
        self.options, self.told, self.asked = options, list[str](), list[list[Any]]()
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))
        self.made.append(self)

    @torch.no_grad()
    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        for name, weight in weights:
            self.told.append(name)
            self.model.get_parameter(name).copy_(weight)

    def reset_prefix_cache(self) -> None:
        self.told.append("reset_prefix_cache")

    def generate(self, prompts: list[dict[str, Any]], params: list[Any], use_tqdm: bool) -> list[Any]:
        self.asked.append(params)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        with_ends(self.model, *params[0].stop_token_ids)
        made = NativeGenerator().generate(
            self.model, ids, SEEDS, GenerationSettings(params[0].max_tokens, temperature=0)
        )
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(row.ids))]) for row in made]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what trl sets is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(vllm, "find_spec", lambda name: name)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", StandIn, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    StandIn.made.clear()
    return StandIn


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_generation_is_from_the_policys_present_weights(
    tiny_causal: Callable[[str], Any], tiny: Callable[[str], Path], stand_in: type[StandIn], architecture: str
) -> None:
    plain = with_ends(tiny_causal(architecture), 300)
    plain.config.pad_token_id = 7  # added; 3 is the base's, and sampling without it would not be the policy's
    plain.generation_config.suppress_tokens = [3, 7]
    assert Path(plain.name_or_path) == tiny(architecture)
    model, found = add_lora(plain, LoraSettings(rank=4, alpha=8)), list[list[list[int]]]()
    base = {name: value.clone() for name, value in model.state_dict().items() if ".lora_" not in name}
    generator = generator_for(model, "vllm")
    for update in range(2):
        for number, parameter in enumerate(adapter_parameters(model, "default").values()):
            chance = torch.Generator().manual_seed(100 * update + number)
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=chance)
        made = generator.generate(model, PROMPTS, SEEDS, GenerationSettings(6, 0.7, 5, 0.9))
        expected = NativeGenerator().generate(model, PROMPTS, SEEDS, GenerationSettings(6, temperature=0))
        assert [(row.ids, row.ended) for row in made] == [(row.ids, row.ended) for row in expected]
        assert all(row.logprobs is None for row in made)
        found.append(texts(made))
    assert found[0] != found[1]
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items() if ".lora_" not in name)
    (started,) = stand_in.made
    names = [name for name, _ in started.model.named_parameters()]
    assert started.told == [*names, "reset_prefix_cache"] * 2
    for params in started.asked:
        assert [one.seed for one in params] == SEEDS
        assert {(one.temperature, one.top_k, one.top_p, one.max_tokens) for one in params} == {(0.7, 5, 0.9, 6)}
        assert all(one.stop_token_ids == [300] and one.logit_bias == {7: -100.0} for one in params)


def test_without_vllm_one_sentence_names_the_extra(tiny_causal: Callable[[str], Any]) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(ValueError, match=r"pip install -e '.\[vllm\]'"):
        generator_for(tiny_causal("llama"), "vllm")
