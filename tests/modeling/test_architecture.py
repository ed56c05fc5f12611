"""Which architectures can be trained, and scalar heads on those for which transformers has no classifier.

pytest tests/modeling/test_architecture.py
"""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from modeling.adapters import add_lora, merged_weights, what_lora_adapts
from modeling.architecture import refuse_by_config, refuse_headless, refuse_lookahead
from modeling.batch import Batch
from modeling.config import LoraSettings, ModelConfig
from modeling.load import load_causal, load_scalar, save
from modeling.models import initialize_head, reward_model
from stages.config import RunConfig
from stages.preflight import check_models
from tests.conftest import enliven
from tests.families import FAMILIES, REFUSED, SIZES, found_row, make_family, table

TRIED_HERE = ("gpt2", "bloom", "xglm", "mistral", "qwen2_moe", "gemma3_text", "phi3", "granite", "deepseek_v3", "lfm2")
OWN_HEADS = ("granite", "cohere", "codegen", "xglm", "olmoe")
ROOT = Path(__file__).resolve().parents[2]


def test_the_table_has_a_row_for_every_family() -> None:
    assert tuple(table()) == tuple(SIZES)
    assert all(table()[family]["decoded by"].startswith("refused") for family in REFUSED)


@pytest.mark.parametrize("family", TRIED_HERE)
def test_the_check_agrees_with_the_table(family: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    expected = table()[family]
    found = found_row(make_family(family, tmp_path, tiny_tokenizer), tiny_tokenizer)
    assert found == {name: expected[name] for name in found}


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("t5", r"model\.base=\S+ is an encoder-decoder \(t5\), .*: choose a causal decoder"),
        ("mamba", r"model\.base=\S+ has a recurrent state \(mamba: .*: choose a causal decoder"),
        (
            "bert",
            r"model\.base=\S+ is not a causal decoder \(BertLMHeadModel\): later tokens change .*; choose a causal",
        ),
    ],
)
def test_models_that_are_not_causal_decoders_are_refused(
    family: str, said: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    config = RunConfig(model=ModelConfig(base=str(make_family(family, tmp_path, tiny_tokenizer)), device="cpu"))
    with pytest.raises(ValueError, match=said):
        check_models(config)


@pytest.mark.parametrize("kind", ["jamba", "rwkv", "qwen3_next", "bart", "whisper", "vit"])
def test_other_models_are_refused_by_their_configuration_alone(kind: str) -> None:
    with pytest.raises(ValueError, match=r"which is not supported|has no causal language model in transformers"):
        refuse_by_config(AutoConfig.for_model(kind), "model.base=x")


def test_an_attention_only_model_of_a_hybrid_class_is_accepted() -> None:
    """As Granite 4.0's dense models."""
    dense = AutoConfig.for_model("granitemoehybrid", **SIZES["granitemoehybrid"])
    refuse_by_config(dense, "model.base=x")
    hybrid = AutoConfig.for_model("granitemoehybrid", num_hidden_layers=2, layer_types=["mamba", "attention"])
    with pytest.raises(ValueError, match=r"has a recurrent state \(granitemoehybrid"):
        refuse_by_config(hybrid, "model.base=x")


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl", "voxtral"])
def test_models_that_also_take_images_or_sound_are_refused(kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"model.base=x also takes images or sound \(.*\), and only text models are supported"
    ):
        refuse_by_config(AutoConfig.for_model(kind), "model.base=x")


def test_a_model_whose_transformer_has_another_name_than_it_says_is_refused() -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    sizes |= {"vocab_size": 20, "intermediate_size": 8, "intermediate_size_mlp": 8, "num_local_experts": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama4_text", **sizes))
    with pytest.raises(
        ValueError, match=r"^Llama4ForCausalLM has no transformer called 'language_model': choose a causal"
    ):
        refuse_lookahead(model, "model.base=x")


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_recomputing_activations_is_refused_before_training_where_the_model_cannot(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    config = RunConfig(model=ModelConfig(base=str(tiny_llama), device="cpu"))
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    check_models(config)
    getattr(config, stage).activation_checkpointing = True
    with pytest.raises(
        ValueError, match=r"^LlamaForCausalLM cannot recompute activations: set activation_checkpointing"
    ):
        check_models(config)


def test_a_bert_decoder_is_causal_but_has_no_scalar_head() -> None:
    settings = AutoConfig.for_model("bert", is_decoder=True, vocab_size=64, **SIZES["bert"])
    refuse_by_config(settings, "x")
    refuse_lookahead(AutoModelForCausalLM.from_config(settings).eval(), "x")
    with pytest.raises(ValueError, match="x cannot become a reward model: BertForSequenceClassification has no head"):
        refuse_headless(settings, "x")


OWN_CODE = """
from transformers import LlamaForCausalLM, LlamaModel

class OwnModel(LlamaModel):
    pass

class OwnForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.post_init()
"""


def test_own_code_with_a_language_model_only_cannot_become_a_reward_model(
    tiny_llama: Path, tmp_path: Path, tiny_tokenizer: Any, model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "own"))
    (folder / "modeling_own.py").write_text(OWN_CODE)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(settings))
    trusting = replace(model_config, base=str(folder), trust_remote_code=True)
    said = r"different backbones \(\S+\.LlamaModel and \S+\.OwnModel\)"
    with pytest.raises(ValueError, match=said):
        load_scalar(folder, trusting, tiny_tokenizer)
    with pytest.raises(ValueError, match=rf"^model\.base={folder} cannot .*{said}"):
        check_models(RunConfig(model=trusting))
    load_scalar(folder, model_config, tiny_tokenizer)  # not trusted: both classes are transformers'


@pytest.mark.parametrize("family", OWN_HEADS)
def test_our_head_scores_the_last_state(family: str, tmp_path: Path, tiny_tokenizer: Any, model_config: Any) -> None:
    place = make_family(family, tmp_path, tiny_tokenizer)
    causal, model = load_causal(place, model_config, tiny_tokenizer), load_scalar(place, model_config, tiny_tokenizer)
    initialize_head(model, seed=1)
    ids = [3, 40, 50, 60, 200, 201, 2]
    with torch.no_grad():
        hidden_SH = causal(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        expected = float(hidden_SH[-1] @ model.score.weight[0])
        score = reward_model(model)(Batch([ids[:4]], [ids[4:]]))
        assert score.item() == pytest.approx(expected, abs=2e-5)
        # Its own pooling reads the last token that is not padding.
        padded = torch.tensor([[*ids, tiny_tokenizer.pad_token_id]])
        assert model(input_ids=padded).logits.item() == pytest.approx(expected, abs=2e-5)
    save(model, tiny_tokenizer, tmp_path / "saved")
    again = load_scalar(tmp_path / "saved", model_config, tiny_tokenizer)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2_moe", "mixtral"])
def test_adapters_of_models_with_experts_are_on_linear_maps_alone_and_merge(
    family: str, tmp_path: Path, tiny_tokenizer: Any, model_config: ModelConfig
) -> None:
    base = load_causal(make_family(family, tmp_path, tiny_tokenizer), model_config, tiny_tokenizer)
    model = add_lora(base, LoraSettings(rank=4, alpha=8))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert layers
    assert all(isinstance(layer.get_base_layer(), torch.nn.Linear) for layer in layers)
    line = what_lora_adapts(model)
    assert ("2 gate_proj" in line) == (family == "qwen2_moe"), "its shared experts are plain maps"
    assert line.startswith(f"LoRA adapts {len(layers)} linear layers: 2 ")
    assert re.search(r"no adapter on the experts \(\d fused weights called down_proj, gate_up_proj\)", line)
    enliven(model)
    ids = torch.tensor([[3, 40, 50, 60]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with merged_weights(model):
            found = model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_reward_base_that_is_no_decoder_is_refused(tmp_path: Path, tiny_tokenizer: Any, tiny_llama: Path) -> None:
    config = RunConfig(model=ModelConfig(base=str(tiny_llama), device="cpu"))
    config.reward.base = str(make_family("t5", tmp_path, tiny_tokenizer))
    with pytest.raises(ValueError, match=r"reward\.base=\S+ is an encoder-decoder"):
        check_models(config)


def test_every_family_but_the_refused_is_run_through_the_chain() -> None:
    assert set(FAMILIES) | set(REFUSED) == set(SIZES)
    assert len(SIZES) >= 25
