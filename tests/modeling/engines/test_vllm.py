"""The vllm engine against a stand-in for vLLM that reads the folder it is given: what is asked of it, and with which
weights.

pytest tests/modeling/engines/test_vllm.py
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from modeling.adapters import adapter_parameters, add_lora
from modeling.config import LoraSettings
from modeling.engines.make import make_engine
from modeling.engines.native import generate
from modeling.engines.types import Sampling
from tests.modeling.engines.test_native import PROMPTS, SEEDS, texts


class StandIn:
    """Answers with the likeliest tokens of the model in its folder, read when it is made and when it is told to."""

    made: ClassVar[list[Any]] = []

    def __init__(self, model: str, **options: Any) -> None:
        self.folder, self.options, self.told, self.asked = Path(model), options, [], []
        self.made.append(self)
        self.collective_rpc("reload_weights")
        self.told.clear()

    def collective_rpc(self, name: str) -> None:
        assert name == "reload_weights"
        assert not list(self.folder.glob("*.bin"))
        self.told.append(name)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def reset_prefix_cache(self) -> None:
        self.told.append("reset_prefix_cache")

    def generate(self, prompts: list[dict[str, Any]], params: list[Any], use_tqdm: bool) -> list[Any]:
        self.asked.append(params)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        made = generate(
            self.model, ids, [0] * len(ids), Sampling(params[0].max_tokens, temperature=0), params[0].stop_token_ids, 0
        )
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(generation.ids))]) for generation in made]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = StandIn, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    yield StandIn
    StandIn.made.clear()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_generation_is_from_the_policys_present_weights(
    tiny_causal: Callable[[str], Any], stand_in: type[StandIn], architecture: str
) -> None:
    model = add_lora(tiny_causal(architecture), LoraSettings(rank=4, alpha=8))
    engine = make_engine("vllm")
    found = []
    for update in range(2):
        for number, parameter in enumerate(adapter_parameters(model, "default").values()):
            parameter.data = 0.2 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(100 * update + number)
            )
        made = engine.generate(model, PROMPTS, SEEDS, Sampling(6, temperature=0.7), [300], 0)
        assert texts(made) == texts(generate(model, PROMPTS, SEEDS, Sampling(6, temperature=0), [300], 0))
        assert all(generation.logprobs is None for generation in made)
        found.append(texts(made))
    assert found[0] != found[1]
    (started,) = stand_in.made
    assert started.told == ["reload_weights", "reset_prefix_cache"]
    for params in started.asked:
        assert [one.seed for one in params] == SEEDS
        assert {
            (one.temperature, one.top_p, one.top_k, one.max_tokens, tuple(one.stop_token_ids)) for one in params
        } == {(0.7, 1.0, 0, 6, (300,))}


def test_without_vllm_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[vllm\]'"):
        make_engine("vllm")
