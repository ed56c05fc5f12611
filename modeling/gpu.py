"""Settings that need a GPU: the implementation of attention, quantized bases, and float16."""

import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from modeling.architecture import backbone_of
from modeling.config import ModelConfig
from modeling.sharding import Sharding

HEADS = ["lm_head", "embed_out", "score"]
"""Output layers, which stay in float32."""


def refuse_without_gpu(config: ModelConfig, device: torch.device) -> None:
    """Raises ValueError for settings that need a GPU if there is none, and for those that cannot be sharded."""
    needed = (("precision", ("float16",)), ("attention", ("flash_attention_2",)), ("quantization", ("8bit", "4bit")))
    for name, values in needed:
        if (value := getattr(config, name)) in values and device.type != "cuda":
            raise ValueError(f"model.{name}={value} needs a GPU, and this run is on the CPU")
    for name, values in (("attention", ("flash_attention_2",)), ("quantization", ("8bit", "4bit"))):
        if (value := getattr(config, name)) in values and Sharding.from_environment().active:
            raise ValueError(f"model.{name}={value} does not work with sharded models: use configs/accelerate/ddp.yaml")


def implementation(config: ModelConfig, quantize: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained` for attention and quantization."""
    found: dict[str, Any] = {} if config.attention == "auto" else {"attn_implementation": config.attention}
    if quantize and config.quantization != "none":
        # With 8 bits it logs a line per layer.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        # Dequantized to float32; autocast then chooses the dtype, as for other weights.
        found["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=config.quantization == "8bit",
            load_in_4bit=config.quantization == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=HEADS,
        )
    return found


def keep_attention(model: Any, config: ModelConfig) -> None:
    """Keeps `modeling.shared_prefix` from replacing an attention that the settings name."""
    if config.attention in ("eager", "flash_attention_2"):
        backbone_of(model).shared_prefix_reason = f"model.attention={config.attention} does not support shared prompts"


def is_quantized(weight: torch.Tensor) -> bool:
    """Whether a weight is stored in 8 or 4 bits."""
    return not weight.is_floating_point()
