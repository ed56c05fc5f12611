"""A training step on a small copy of the model, tried before any stage trains.

pytest tests/modeling/test_trial.py
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)

from modeling.architecture import scalar_class
from modeling.config import LoraSettings, ModelConfig
from modeling.trial import LARGEST, Trial, small_copy
from stages.config import RunConfig
from stages.preflight import check_models
from tests.families import FAMILIES, SIZES


class NoBackward(torch.autograd.Function):
    """A kernel with a forward pass alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("no backward pass\nwas written")


class Overflows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * float("nan")


WAYS = {"backward": NoBackward.apply, "nan": Overflows.apply}
WAYS |= {"detached": torch.Tensor.detach, "sound": torch.Tensor.clone}


class BrokenConfig(LlamaConfig):
    model_type = "broken_llama"
    causal_way: str = "sound"
    scalar_way: str = "sound"


class BrokenModel(LlamaModel):
    config_class = BrokenConfig


def break_layer(model: Any, way: str) -> None:
    """In the last layer, what comes out of the MLP's activation is right, but its gradient is not."""
    model.model.layers[-1].mlp.act_fn.register_forward_hook(lambda module, inputs, out: WAYS[way](out))


class BrokenForCausalLM(LlamaForCausalLM):
    config_class = BrokenConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = BrokenModel(config)
        self.post_init()
        break_layer(self, config.causal_way)


class BrokenForSequenceClassification(LlamaForSequenceClassification):
    config_class = BrokenConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        break_layer(self, config.scalar_way)


AutoConfig.register("broken_llama", BrokenConfig)
AutoModel.register(BrokenConfig, BrokenModel)
AutoModelForCausalLM.register(BrokenConfig, BrokenForCausalLM)
AutoModelForSequenceClassification.register(BrokenConfig, BrokenForSequenceClassification)


def broken(folder: Path, tokenizer: Any, **ways: str) -> Path:
    """The folder of a model of the broken family."""
    BrokenForCausalLM(BrokenConfig(vocab_size=len(tokenizer), **SIZES["llama"], **ways)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def configured(base: Path, adapter: str) -> RunConfig:
    return RunConfig(model=ModelConfig(base=str(base), adapter=adapter, device="cpu", precision="float32"))


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize(
    ("ways", "said"),
    [
        ({"causal_way": "backward"}, r"supervised fine-tuning fails .* \(NotImplementedError: no backward pass.*\)"),
        ({"causal_way": "nan"}, r"supervised fine-tuning fails .* \(the gradient of \S+ has NaN or infinite values\)"),
        ({"causal_way": "detached"}, r"supervised fine-tuning fails .* \(\S+1\.mlp\.gate_proj\S* gets no gradient\)"),
        ({"scalar_way": "backward"}, r"the reward model fails .* \(NotImplementedError: no backward pass.*\)"),
        ({"scalar_way": "detached"}, r"the reward model fails .* \(\S+layers\.1\.mlp\.gate_proj\S* gets no gradient\)"),
    ],
)
def test_a_family_whose_gradients_are_wrong_is_refused_before_training(
    ways: dict[str, str], said: str, adapter: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    config = configured(broken(tmp_path, tiny_tokenizer, **ways), adapter)
    instead = r"choose another model, or try model\.adapter=none" if adapter == "lora" else "choose another model"
    start = r"^model\.base=\S+ cannot be trained \(broken_llama\): a step of"
    with pytest.raises(ValueError, match=f"{start} {said}; {instead}$"):
        check_models(config)


def test_a_sound_model_of_the_same_code_passes(tmp_path: Path, tiny_tokenizer: Any) -> None:
    for adapter in ("lora", "none"):
        check_models(configured(broken(tmp_path, tiny_tokenizer), adapter))


def test_a_reward_base_that_cannot_be_trained_is_refused(tmp_path: Path, tiny_tokenizer: Any, tiny_llama: Path) -> None:
    config = configured(tiny_llama, "lora")
    config.reward.base = str(broken(tmp_path, tiny_tokenizer, scalar_way="detached"))
    said = r"^reward\.base=\S+ cannot be trained \(broken_llama\): a step of the reward model"
    with pytest.raises(ValueError, match=said):
        check_models(config)


def test_adapters_that_peft_cannot_add_are_refused_in_one_sentence(tiny_causal: Any) -> None:
    model = tiny_causal("llama")

    class Renamed(type(model)):  # type: ignore[misc]
        """A model whose linear layers peft does not find."""

        def named_modules(self, *arguments: Any, **named: Any) -> Any:
            return ((name.replace("_proj", ""), module) for name, module in super().named_modules(*arguments, **named))

    model.__class__ = Renamed
    said = r"^x cannot be trained \(llama\): adding the LoRA adapters fails .* \(NoMatching\w+: No modules"
    with pytest.raises(ValueError, match=said):
        Trial("x", LoraSettings()).causal(model)


def try_full_size(family: str, lora: LoraSettings | None) -> None:
    settings = AutoConfig.for_model(family)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    small = small_copy(type(model), settings)
    assert small is not None
    assert kinds(small) == kinds(model)
    assert sum(parameter.numel() for parameter in small.parameters()) <= LARGEST
    before = torch.get_rng_state()
    trial = Trial("x", lora)
    trial.causal(model)
    trial.scalar(AutoModelForSequenceClassification.from_config, settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert settings.to_dict() == AutoConfig.for_model(family).to_dict(), "the model's own configuration stays as it is"


def kinds(model: Any) -> set[type]:
    return {type(module) for module in model.modules()}


LORA = {"lora": LoraSettings(), "top layers": LoraSettings(top_layers=5), "full": None}


@pytest.mark.parametrize("lora", LORA.values(), ids=LORA)
def test_a_llama_of_7_billion_is_tried_on_a_small_copy_with_every_kind_of_module(lora: LoraSettings | None) -> None:
    assert AutoConfig.for_model("llama").num_hidden_layers == 32
    try_full_size("llama", lora)


@pytest.mark.parametrize("family", ["gpt2", "opt", "falcon", "stablelm"])
def test_a_full_sized_model_is_tried_on_a_small_copy_with_every_kind_of_module(family: str) -> None:
    try_full_size(family, LORA["lora"])


@pytest.mark.slow
@pytest.mark.parametrize("lora", LORA.values(), ids=LORA)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_at_full_size_is_tried_on_a_small_copy(family: str, lora: LoraSettings | None) -> None:
    scalar_class(AutoConfig.for_model(family))  # so that transformers knows one
    try_full_size(family, lora)


def test_a_model_of_which_no_copy_can_be_made_is_not_refused(caplog: Any) -> None:
    class Fixed(GPT2LMHeadModel):
        """A model whose code has its sizes in it."""

        def __init__(self, config: Any) -> None:
            if config.n_layer != 3:
                raise TypeError("three layers")
            super().__init__(config)

    model = Fixed(GPT2Config(**SIZES["gpt2"] | {"n_layer": 3}, vocab_size=64))
    with caplog.at_level(logging.WARNING):
        Trial("model.base=x", None).causal(model)
    start = "model.base=x: no training step was tried before training, because no small copy"
    assert caplog.messages == [f"{start} of this model (gpt2) can be made"]
