"""Adapters: nothing at first, nothing when off, and gradients that survive a change of part.

pytest tests/modeling/test_adapters.py
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from modeling.adapters import (
    adapter_of,
    adapter_parameters,
    add_lora,
    load_adapter,
    merged,
    refuse_untrained_end,
    save_adapter,
    use_adapter,
)
from modeling.config import LoraSettings, ModelConfig
from modeling.load import load_causal, load_scalar
from modeling.models import initialize_head
from modeling.tiny import ARCHITECTURES
from tests.families import make_family

SETTINGS = LoraSettings(rank=4, alpha=8)
IDS = torch.tensor([[3, 40, 50, 60, 70, 2], [3, 41, 51, 61, 71, 81]])
MAPS_A_LAYER = {"llama": 7, "gpt2": 4, "qwen2": 7, "gpt_neox": 4}
"""Linear maps: q, k, v, o, gate, up, down; or qkv, out, up, down."""


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
        return found


def train_far(model: PeftModel, name: str, seed: int) -> None:
    """Puts an adapter where training might have led it: far enough to change every answer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model, name).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_adapter_changes_no_bit_and_freezes_the_rest(
    tiny_causal: Callable[[str], Any], architecture: str
) -> None:
    model = tiny_causal(architecture)
    before = logits(model)
    adapted = add_lora(model, SETTINGS)
    assert torch.equal(logits(adapted), before)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == set(adapter_parameters(adapted, "default"))
    assert len(trained) == 2 * 2 * MAPS_A_LAYER[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_adapters_off_it_is_the_base_to_the_bit(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    model = tiny_causal(architecture)
    before = logits(model)
    adapted = add_lora(model, SETTINGS, "policy")
    train_far(adapted, "policy", seed=1)
    assert (logits(adapted) - before).abs().max() > 0.1
    use_adapter(adapted, None)
    assert torch.equal(logits(adapted), before)
    use_adapter(adapted, "policy")
    assert (logits(adapted) - before).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_weights_answer_as_the_adapter_did(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    adapted = add_lora(tiny_causal(architecture), SETTINGS)
    train_far(adapted, "default", seed=1)
    with_adapter = logits(adapted)
    plain = merged(adapted)
    assert not isinstance(plain, PeftModel)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    torch.testing.assert_close(logits(plain), with_adapter, atol=1e-5 * float(with_adapter.abs().max()), rtol=0)


def test_a_model_without_adapters_is_its_own_merge(tiny_causal: Callable[[str], Any]) -> None:
    model = tiny_causal("llama")
    assert merged(model) is model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_switching_between_forward_and_backward_keeps_every_gradient(
    tiny_causal: Callable[[str], Any], architecture: str
) -> None:
    trainable = {"policy", "value"}

    def build() -> PeftModel:
        model = add_lora(tiny_causal(architecture), SETTINGS, "policy")
        model.add_adapter("value", model.peft_config["policy"])
        model.add_adapter("reward", model.peft_config["policy"])
        for seed, name in enumerate(("policy", "value", "reward")):
            train_far(model, name, seed)
            for parameter in adapter_parameters(model, name).values():
                parameter.requires_grad_(name in trainable)
        return model

    def loss(model: PeftModel, part: int) -> Tensor:
        found: Tensor = model(input_ids=IDS[:, part:]).logits.log_softmax(-1)[..., 7 + part].sum()
        return found

    # The oracle: one model for each adapter, that nobody ever switches.
    alone = {}
    for name in ("policy", "value"):
        model = build()
        model.set_adapter(name)
        for part in range(3):
            loss(model, part).backward()
        alone[name] = {key: parameter.grad.clone() for key, parameter in adapter_parameters(model, name).items()}

    model = build()
    for part in range(3):
        losses = {}
        for name in ("policy", None, "value", "reward"):
            use_adapter(model, name)
            if name in trainable:
                losses[name] = loss(model, part)
            else:
                with torch.no_grad():
                    loss(model, part)
        # Backward only now, with another adapter active than the one that was active in forward.
        losses["value"].backward()
        losses["policy"].backward()
    for name in ("policy", "value"):
        for key, parameter in adapter_parameters(model, name).items():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key
            torch.testing.assert_close(
                parameter.grad, alone[name][key], atol=1e-4 * float(alone[name][key].abs().max()), rtol=0, msg=key
            )
    others = [
        key
        for key, parameter in model.named_parameters()
        if parameter.grad is not None and adapter_of(key) not in trainable
    ]
    assert others == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_top_layers_adapts_those_nearest_the_output(tiny_causal: Callable[[str], Any], architecture: str) -> None:
    adapted = add_lora(tiny_causal(architecture), LoraSettings(rank=4, alpha=8, top_layers=1))
    names = list(adapter_parameters(adapted, "default"))
    assert len(names) == 2 * MAPS_A_LAYER[architecture]
    assert all(".1." in name and ".0." not in name for name in names)


def test_more_top_layers_than_there_are_is_refused(tiny_causal: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"model\.lora\.top_layers=3, but the model has 2 layers"):
        add_lora(tiny_causal("llama"), LoraSettings(top_layers=3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_end_token_that_lora_cannot_learn_is_refused(
    tiny: Callable[[str], Path], model_config: ModelConfig, tiny_tokenizer: Any, architecture: str
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    refuse_untrained_end(load_causal(tiny(architecture), model_config, tokenizer), tokenizer, "base")
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    grown = load_causal(tiny(architecture), model_config, tokenizer)
    with pytest.raises(ValueError, match=r"base: EOS \(<\|end\|>\) has no trained embedding .* set model.adapter=none"):
        refuse_untrained_end(grown, tokenizer, "base")
    resized = AutoModelForCausalLM.from_pretrained(tiny(architecture))
    resized.resize_token_embeddings(len(tokenizer))  # by default with the mean and a little noise
    with pytest.raises(ValueError, match="has no trained embedding"):
        refuse_untrained_end(resized, tokenizer, "base")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_scalar_head_gets_no_adapter(tiny_scalar: Callable[[str], Any], architecture: str) -> None:
    adapted = add_lora(tiny_scalar(architecture), SETTINGS)
    names = adapter_parameters(adapted, "default")
    assert len(names) == 2 * 2 * MAPS_A_LAYER[architecture]
    assert not any("score" in name for name in names)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_reward_adapter_scores_as_the_merged_model_in_peft_and_transformers_alone(
    tiny: Callable[[str], Path], tiny_tokenizer: Any, tmp_path: Path, architecture: str
) -> None:
    alone = ModelConfig(base="unused", adapter="none", device="cpu")
    model = load_scalar(tiny(architecture), alone, tiny_tokenizer)
    initialize_head(model, seed=1)
    adapted = add_lora(model, SETTINGS)
    train_far(adapted, "default", seed=1)
    save_adapter(adapted, tmp_path / "adapter", head=model.score.weight)
    expected = logits(merged(adapted))

    base = AutoModelForSequenceClassification.from_pretrained(tiny(architecture), num_labels=1)
    assert (logits(base.eval()) - expected).abs().max() > 0.01
    found = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(found), expected, atol=1e-5, rtol=1e-5)

    # The same adapter beside another on a language model, which has no head.
    shared = add_lora(load_causal(tiny(architecture), alone, tiny_tokenizer), SETTINGS, "policy")
    for name, trainable in (("reward", False), ("value", True)):
        load_adapter(shared, tmp_path / "adapter", name, trainable)
        weights = adapter_parameters(shared, name)
        assert len(weights) == 2 * 2 * MAPS_A_LAYER[architecture]
        saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        for key, value in weights.items():
            assert torch.equal(value, saved[key.replace(f".{name}.", ".")]), key
        assert {value.requires_grad for value in weights.values()} == {trainable}
    assert not any("score" in key for key in shared.state_dict())


def test_an_adapter_that_is_not_finite_is_not_saved(tiny_causal: Callable[[str], Any], tmp_path: Path) -> None:
    model = add_lora(tiny_causal("llama"), SETTINGS)
    with torch.no_grad():
        next(iter(adapter_parameters(model, "default").values()))[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"the weight base_model\..*lora_A\.weight has NaN or infinite values"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_saved_adapter_comes_back_beside_another(tiny_causal: Callable[[str], Any], tmp_path: Path) -> None:
    first = add_lora(tiny_causal("llama"), SETTINGS)
    train_far(first, "default", seed=1)
    first.save_pretrained(tmp_path)
    second = add_lora(tiny_causal("llama"), SETTINGS, "policy")
    train_far(second, "policy", seed=2)
    other = logits(second)
    load_adapter(second, tmp_path, "reward", trainable=False)
    use_adapter(second, "reward")
    assert torch.equal(logits(second), logits(first))
    assert not any(parameter.requires_grad for parameter in adapter_parameters(second, "reward").values())
    use_adapter(second, "policy")
    assert torch.equal(logits(second), other)
    assert all(parameter.requires_grad for parameter in adapter_parameters(second, "policy").values())


def test_a_router_that_returns_more_than_a_tensor_gets_no_adapter(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Phi-MoE's is a subclass of `nn.Linear` that returns a tuple, which peft's layer cannot add to."""
    place = make_family("phimoe", tmp_path, tiny_tokenizer)
    model = load_causal(place, ModelConfig(base=str(place)), tiny_tokenizer)
    before = logits(model)
    adapted = add_lora(model, SETTINGS)
    assert torch.equal(logits(adapted), before)
    assert not any("router" in name for name in adapter_parameters(adapted, "default"))
