"""Settings that need a GPU: refused without one, and passed on to `from_pretrained`.

pytest tests/modeling/test_gpu.py
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from modeling.architecture import backbone_of, refuse_lookahead
from modeling.batch import Batch
from modeling.config import ModelConfig
from modeling.export import export
from modeling.frozen_layers import frozen_layers
from modeling.generation import NativeGenerator, decoding_failure, generator_for
from modeling.gpu import HEADS, implementation, refuse_without_gpu
from modeling.load import load_causal
from modeling.logprobs import logits_per_chunk, refuse_unknown_logits
from modeling.models import policy_model
from modeling.trial import Trial

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BATCH = Batch([[5, 6, 7], [5, 6, 7], [8]], [[9, 10], [11], [12, 13, 14]])


@pytest.mark.parametrize(
    "setting", [{"precision": "float16"}, {"attention": "flash_attention_2"}, {"quantization": "4bit"}]
)
def test_a_run_on_the_cpu_is_refused_in_a_sentence(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    config = ModelConfig(**setting)
    with pytest.raises(ValueError, match=f"^model.{name}={value} needs a GPU, and this run is on the CPU$"):
        refuse_without_gpu(config, CPU)
    refuse_without_gpu(config, CUDA)
    refuse_without_gpu(ModelConfig(), CPU)


def test_a_quantized_base_and_flash_attention_are_not_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling.sharding.dist.is_initialized", lambda: True)
    monkeypatch.setattr("modeling.sharding.dist.get_world_size", lambda: 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    refuse_without_gpu(ModelConfig(), CUDA)
    with pytest.raises(ValueError, match=r"model\.quantization=8bit does not work with sharded models"):
        refuse_without_gpu(ModelConfig(quantization="8bit"), CUDA)
    with pytest.raises(ValueError, match=r"model\.attention=flash_attention_2 does not work with sharded models"):
        refuse_without_gpu(ModelConfig(attention="flash_attention_2"), CUDA)


@pytest.mark.parametrize(
    ("setting", "installed", "message"),
    [
        ({"attention": "flash_attention_2"}, False, "needs a GPU and flash-attn: pip install flash-attn"),
        ({"attention": "flash_attention_2", "precision": "float32"}, True, "set model.precision=auto"),
        ({"quantization": "4bit"}, False, r"needs a GPU and bitsandbytes: pip install -e '.\[bnb\]'"),
        ({"quantization": "8bit", "adapter": "none"}, True, "set model.adapter=lora"),
    ],
)
def test_contradictions_and_missing_packages_are_refused_by_name(
    setting: dict[str, Any], installed: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    with pytest.raises(ValueError, match=message):
        ModelConfig(**setting).validate()
    if "adapter" not in setting and "precision" not in setting:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        ModelConfig(**setting).validate()


def test_what_from_pretrained_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.50.0")
    assert implementation(ModelConfig(), quantize=True) == {}
    assert implementation(ModelConfig(attention="eager"), quantize=True) == {"attn_implementation": "eager"}
    assert implementation(ModelConfig(quantization="4bit"), quantize=False) == {}
    four, eight = (
        implementation(ModelConfig(quantization=bits), quantize=True)["quantization_config"]
        for bits in ("4bit", "8bit")
    )
    assert (four.load_in_4bit, four.load_in_8bit) == (False, True)[::-1]
    assert (eight.load_in_4bit, eight.load_in_8bit) == (False, True)
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == ("nf4", torch.float32)
    assert four.llm_int8_skip_modules == eight.llm_int8_skip_modules == HEADS


def test_a_named_attention_is_kept_and_gives_the_same_log_probabilities(
    tiny: Callable[[str], Path], model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    found = {}
    for attention in ("auto", "sdpa", "eager"):
        config = replace(model_config, attention=attention)
        policy = policy_model(load_causal(tiny("llama"), config, tiny_tokenizer))
        assert (policy.encoder.plain_reason is None) == (attention != "eager")
        if attention == "eager":
            assert policy.causal.config._attn_implementation == "eager"
        found[attention] = policy(BATCH)[0].detach()
    torch.testing.assert_close(found["eager"], found["auto"], atol=1e-5, rtol=0)
    assert torch.equal(found["sdpa"], found["auto"])


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_base_trains_adapters_and_keeps_its_head(
    bits: Any, tiny: Callable[[str], Path], model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    """bitsandbytes also has kernels for CPUs, which only tests use."""
    pytest.importorskip("bitsandbytes")
    from modeling.adapters import add_lora, copy_weights, merged, merged_weights, trained_weights
    from modeling.config import LoraSettings

    config = replace(model_config, adapter="lora", quantization=bits)
    base = load_causal(tiny("llama"), config, tiny_tokenizer, quantize=True)
    assert base.get_output_embeddings().weight.dtype == torch.float32
    model = add_lora(base, LoraSettings(rank=4, alpha=8))
    stored = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    policy = policy_model(model)
    policy(BATCH)[0].sum().backward()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                assert weight.grad is not None
                weight += 0.01 * torch.ones_like(weight)
    assert decoding_failure(NativeGenerator(), model) is None
    with torch.no_grad(), merged_weights(model):
        inside = policy(BATCH)[0]
    assert torch.equal(inside, policy(BATCH)[0]), "an adapter was merged into quantized weights"
    assert all(torch.equal(weight, stored[name]) for name, weight in model.named_parameters() if name in stored)
    # The export has the adapters in the base's float32 weights.
    fresh = load_causal(tiny("llama"), config, tiny_tokenizer)
    adapted = add_lora(fresh, LoraSettings(rank=4, alpha=8))
    copy_weights(trained_weights(model), adapted, "the adapter")
    exported = merged(adapted)
    assert {weight.dtype for weight in exported.parameters()} == {torch.float32}
    difference = (policy_model(exported)(BATCH)[0] - inside).abs().max()
    assert 0 < float(difference) < 0.3


def half_precision_only(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any) -> Any:
    """In place of flash attention, which cannot be installed without a GPU."""
    assert torch.is_autocast_enabled("cpu"), "flash attention was called in float32"
    return sdpa_attention_forward(module, query, key, value, mask, **given)


def test_checks_in_float32_replace_flash_attention_and_everything_else_uses_it(
    tiny: Callable[[str], Path],
    model_config: ModelConfig,
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *_: None)
    AttentionInterface.register("flash_stand_in", half_precision_only)
    AttentionMaskInterface.register("flash_stand_in", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = load_causal(tiny("llama"), model_config, tiny_tokenizer)
    model.set_attn_implementation("flash_stand_in")
    backbone_of(model).shared_prefix_reason = "as keep_attention does"
    refuse_lookahead(model, "model.base")
    refuse_unknown_logits(model, "model.base")
    assert isinstance(generator_for(model), NativeGenerator)
    assert frozen_layers(backbone_of(model), 1) is not None
    Trial("model.base", None).causal(model)
    export(model, tiny_tokenizer, tmp_path / "model", model_config)
    assert model.config._attn_implementation == "flash_stand_in"
    with pytest.raises(AssertionError, match="in float32"):
        policy_model(model)(BATCH)
    assert policy_model(model, torch.bfloat16)(BATCH)[0].isfinite().all()


def test_chunks_of_logits_take_a_64th_of_a_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=64 * 2**30))
    assert logits_per_chunk(CUDA) * torch.float32.itemsize == 2**30
    assert logits_per_chunk(CPU) * torch.float32.itemsize == 2**25
