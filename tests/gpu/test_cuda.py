"""Tests that need a GPU; run by `make gpu-check`. Float32 on the GPU is compared with the CPU, half precision with
float32, and the trainers run as they do in the stages.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.adapters import add_lora
from modeling.architecture import refuse_lookahead
from modeling.batch import Batch
from modeling.config import GenerationSettings, LoraSettings, ModelConfig
from modeling.generation import NativeGenerator, decoding_failure, generator_for
from modeling.load import autocast_dtype, load_causal
from modeling.logprobs import logits_per_chunk
from modeling.models import policy_model, reward_model
from modeling.run import Run
from modeling.tracking import read_metrics
from ppo.actor_critic import Loader
from ppo.config import PPOConfig
from ppo.trainer import PPOData, PPOTrainer
from reward.config import RewardConfig
from reward.trainer import RewardTrainer
from tests.fakes import FakeAccelerator
from tests.ppo.conftest import CHUNKS, PROMPTS, build_chain, small
from tests.reward.test_trainer import some_examples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
GPU = torch.device("cuda", 0)
PROMPT_IDS, RESPONSE_IDS = [[5, 6, 7], [5, 6, 7], [8]], [[9, 10], [11], [12, 13, 14]]


def logprobs(model: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Of a few responses, on the CPU; adds to the gradients of the model."""
    found_R: Tensor = policy_model(model, dtype)(Batch(PROMPT_IDS, RESPONSE_IDS, model.device))[0]
    found_R.sum().backward()
    return found_R.detach().cpu()


def test_chunks_of_logits_are_sized_by_the_gpus_memory() -> None:
    assert 2**31 < 64 * 4 * logits_per_chunk(GPU) <= torch.cuda.get_device_properties(GPU).total_memory


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_in_float32_log_probabilities_gradients_and_texts_equal_the_cpus(
    tiny_causal: Callable[[str], Any], architecture: str
) -> None:
    on_cpu, on_gpu = tiny_causal(architecture), tiny_causal(architecture).to(GPU)
    torch.testing.assert_close(logprobs(on_gpu), logprobs(on_cpu), atol=1e-4, rtol=0)
    for (name, expected), found in zip(on_cpu.named_parameters(), on_gpu.parameters(), strict=True):
        if expected.grad is not None:
            limit = 1e-5 + 1e-4 * float(expected.grad.abs().max())
            torch.testing.assert_close(found.grad.cpu(), expected.grad, atol=limit, rtol=0, msg=name)
    texts = [
        NativeGenerator().generate(model, PROMPT_IDS, [0, 1, 2], GenerationSettings(8, temperature=0))
        for model in (on_cpu, on_gpu)
    ]
    assert [row.ids for row in texts[0]] == [row.ids for row in texts[1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_log_probabilities_are_near_float32(
    tiny_causal: Callable[[str], Any], dtype: torch.dtype
) -> None:
    model = tiny_causal("llama").to(GPU)
    torch.testing.assert_close(logprobs(model, dtype), logprobs(model), atol=0.5, rtol=0)


def test_the_automatic_precision_is_bfloat16_where_the_gpu_has_it() -> None:
    expected = torch.bfloat16 if torch.cuda.get_device_properties(GPU).major >= 8 else None
    assert autocast_dtype(ModelConfig(), GPU) == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_ppo_starts_at_kl_zero_and_resumes(adapter: str, precision: Any, tmp_path: Path) -> None:
    chain = build_chain(tmp_path, adapter)
    config = replace(chain.config, device="auto", precision=precision)
    for episodes in (8, 16):
        loader = Loader(chain.sft, chain.reward, config, PPOConfig(), seed=0, device=GPU)
        settings, run = (
            small(total_episodes=episodes, ptx_coef=1.0),
            Run(FakeAccelerator(0, 1, GPU), 0, tmp_path / "out"),
        )
        data = PPOData(PROMPTS, CHUNKS)
        PPOTrainer(settings, loader.load(chain.tokenizer), chain.tokenizer, data, run).train()
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["kl"] == 0.0
    assert rows[1]["kl"] != 0.0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_reward_model_learns(tiny_scalar: Callable[[str], Any], dtype: torch.dtype | None) -> None:
    items = [item for item in some_examples(0, 12) if item.pairs]
    model = reward_model(tiny_scalar("llama").to(GPU), dtype)
    config = RewardConfig(batch_size=12, epochs=12, learning_rate=3e-3)
    epochs = RewardTrainer(config, model, items, Run(FakeAccelerator(0, 1, GPU), 0), {"train": items}).train()
    assert epochs[-1]["train"]["loss"] < epochs[0]["train"]["loss"]


def test_flash_attention_is_near_sdpa_and_can_be_decoded(
    tiny: Callable[[str], Path], model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    pytest.importorskip("flash_attn")
    settings = [replace(model_config, attention=name, precision="bfloat16") for name in ("sdpa", "flash_attention_2")]
    sdpa, flash = (load_causal(tiny("llama"), config, tiny_tokenizer).to(GPU) for config in settings)
    refuse_lookahead(flash, "model.base")  # checks in float32 run on sdpa
    generator = generator_for(flash)
    assert generator.records_logprobs
    assert flash.config._attn_implementation == "flash_attention_2"
    torch.testing.assert_close(logprobs(flash, torch.bfloat16), logprobs(sdpa, torch.bfloat16), atol=0.05, rtol=0)
    with torch.autocast("cuda", torch.bfloat16):
        made = [generator.generate(model, PROMPT_IDS, [0, 1, 2], GenerationSettings(6, 0)) for model in (flash, sdpa)]
    for one, other in zip(*made, strict=True):
        assert one.logprobs is not None
        assert other.logprobs is not None
        assert one.logprobs[0] == pytest.approx(other.logprobs[0], abs=0.05)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_adapters_on_a_quantized_base_get_gradients(
    bits: Any, tiny: Callable[[str], Path], model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    pytest.importorskip("bitsandbytes")
    config = replace(model_config, adapter="lora", quantization=bits)
    model = add_lora(load_causal(tiny("llama"), config, tiny_tokenizer, quantize=True).to(GPU), LoraSettings(4, 8))
    for dtype in (None, torch.bfloat16):
        assert logprobs(model, dtype).isfinite().all()
    assert decoding_failure(NativeGenerator(), model) is None
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
