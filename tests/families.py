"""Tiny random models of many families, with the tokenizer of all tiny models: `make_family("mixtral", folder)`."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

from modeling.adapters import expert_weights, lora_config
from modeling.architecture import backbone_of, scalar_class
from modeling.config import ModelConfig
from modeling.generation import generator_for
from modeling.load import load_causal, load_scalar
from modeling.shared_prefix import enable
from stages.config import RunConfig
from stages.preflight import check_models

TABLE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
COMMON = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 512,
}  # fmt: skip
HEAD_DIM = COMMON | {"head_dim": 16}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
        "window_size": 512, "max_position_embeddings": 512,
    },
    "gptj": GPT2 | {"rotary_dim": 8},
    "gpt_neox": SMALL | {"intermediate_size": 64, "max_position_embeddings": 512},
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 512},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "falcon": SMALL,
    "codegen": GPT2 | {"n_head": 4, "rotary_dim": 4},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64, "max_position_embeddings": 512},
    "llama": COMMON,
    "mistral": COMMON | {"sliding_window": 512},
    "mixtral": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "phimoe": COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": COMMON,
    "qwen2_moe": COMMON | EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3": HEAD_DIM,
    "qwen3_moe": HEAD_DIM | EXPERTS,
    "gemma": HEAD_DIM,
    "gemma2": HEAD_DIM | {"sliding_window": 512, "query_pre_attn_scalar": 16},
    "gemma3_text": HEAD_DIM | {"sliding_window": 512, "query_pre_attn_scalar": 16},
    "phi": COMMON,
    "phi3": COMMON,
    "glm": HEAD_DIM,
    "glm4": HEAD_DIM,
    "olmo2": COMMON,
    "olmoe": COMMON | {"num_experts": 4, "num_experts_per_tok": 2},
    "granite": COMMON,
    "granitemoehybrid": COMMON | {
        "layer_types": ["attention"] * 2, "num_local_experts": 0, "num_experts_per_tok": 0,
        "shared_intermediate_size": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16,
    },
    "cohere": COMMON,
    "stablelm": COMMON,
    "smollm3": COMMON,
    "gpt_oss": HEAD_DIM | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 512},
    "deepseek_v3": COMMON | {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "qk_nope_head_dim": 8,
    },
    "starcoder2": COMMON,
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 512},
    "openai-gpt": GPT2,
    "lfm2": COMMON | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "bert": SMALL | {"intermediate_size": 64},
}  # fmt: skip

REFUSED = ("mamba", "t5", "bert")
FAMILIES = tuple(family for family in SIZES if family not in REFUSED)


def make_family(family: str, folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """A model of this family, as `transformers` names it, below `folder`; returns its folder."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = AutoConfig.for_model(family, vocab_size=len(tokenizer), **SIZES[family] | changes, **special)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto = AutoModel if settings.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_config(settings, dtype=torch.float32)
    model.generation_config = GenerationConfig(**special)
    tokenizer.save_pretrained(folder / family)
    model.save_pretrained(folder / family)
    return folder / family


CLASSIFIERS = {
    "sentiment": "is a classifier of 2 labels; a reward model has one",
    "encoder": "cannot become a reward model: BertForSequenceClassification has no head `score`",
    "translator": "is an encoder-decoder",
}
"""Classifiers that are not reward models, and the refusal of each."""


def classifier_folder(folder: Path, model: Path, kind: str) -> Path:
    """A folder with the configuration of such a classifier and the tokenizer and weights of `model`."""
    shutil.copytree(model, folder)
    name, architecture, labels = {
        "sentiment": ("llama", "LlamaForSequenceClassification", 2),
        "encoder": ("bert", "BertForSequenceClassification", 1),
        "translator": ("t5", "T5ForSequenceClassification", 1),
    }[kind]
    AutoConfig.for_model(name, **SIZES[name], num_labels=labels, architectures=[architecture]).save_pretrained(folder)
    return folder


def table() -> dict[str, dict[str, str]]:
    """The table in docs/architectures.md: each family's row by column name."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    names, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}


def found_row(place: Path, tokenizer: Any) -> dict[str, str]:
    """The row of the table for the model in this folder. Raises ValueError if the check before training refuses it."""
    config = RunConfig(model=ModelConfig(base=str(place), device="cpu", precision="float32"))
    check_models(config)
    model = load_causal(place, config.model, tokenizer)
    adapted = sorted(lora_config(model, config.model.lora).target_modules)
    left_out = "; not the experts" if expert_weights(backbone_of(model)) else ""
    why = enable(backbone_of(load_scalar(place, config.model, tokenizer)))
    return {
        "decoded by": "native" if generator_for(model).records_logprobs else "transformers",
        "reward head": "ours" if scalar_class(model.config).__module__ == "modeling.architecture" else "transformers",
        "LoRA adapts": ", ".join(adapted) + left_out,
        "one pass": "yes" if why is None else "no",
    }
