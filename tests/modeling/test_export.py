"""Exports have the base's configuration, and are verified before they get their final name.

pytest tests/modeling/test_export.py
"""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from modeling import export as exporting
from modeling.config import ModelConfig
from modeling.export import export
from modeling.load import load_causal, load_scalar, load_tokenizer
from modeling.models import reward_model

CHAT = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 4], "bos_token_id": 1}


def settings_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def mixtral(folder: Path, tokenizer: Any) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 32, "num_local_experts": 2, "num_experts_per_tok": 1}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model("mixtral", vocab_size=len(tokenizer), **sizes, **special)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["gpt2", "llama", "mixtral"])
def base(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """The folder of a base whose generation config names sampling settings and two end tokens."""
    folder = tmp_path / "base"
    if request.param == "mixtral":
        mixtral(folder, tiny_tokenizer)
    else:
        shutil.copytree(tiny(request.param), folder)
    (folder / "generation_config.json").write_text(json.dumps(CHAT))
    return folder


def test_a_trainers_changes_of_the_configuration_are_not_exported(
    base: Path, tmp_path: Path, model_config: ModelConfig
) -> None:
    tokenizer = load_tokenizer(base, model_config)
    model = load_causal(base, model_config, tokenizer, residual_dropout=0.37)
    model.config.use_cache = False
    model.config.eos_token_id = 7
    model.config.bos_token_id = 8
    model.config.left_by_a_trainer = True
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = True
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.max_new_tokens = 9
    export(model, tokenizer, tmp_path / "model", model_config)

    written = settings_of(tmp_path / "model")
    assert written == settings_of(base) | {"use_cache": True}
    assert settings_of(tmp_path / "model", "generation_config.json") == CHAT | {
        "eos_token_id": [1, 4, 2], "pad_token_id": 0, "transformers_version": written["transformers_version"]
    }  # fmt: skip
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain.generate(torch.tensor([[5, 6]]), max_new_tokens=3).shape[1] > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


def test_a_reward_model_differs_from_its_base_in_its_head_alone(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    base = tiny("gpt2")
    model = load_scalar(base, model_config, tiny_tokenizer)
    model.config.score_bias, model.config.score_closing, model.config.use_cache = 0.5, [3], False
    export(model, tiny_tokenizer, tmp_path / "model", model_config)
    found, before = settings_of(tmp_path / "model"), settings_of(base)
    changed = {name for name in found.keys() | before.keys() if found.get(name) != before.get(name)}
    assert changed - {"use_cache"} == {"architectures", "id2label", "label2id", "score_bias", "score_closing"}
    assert found["use_cache"] is True
    assert not (tmp_path / "model" / "generation_config.json").exists()


def test_auto_map_is_not_exported_with_transformers_own_classes(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig
) -> None:
    """As in Phi-3's folders: transformers has classes for them, which a trusting user would not load from an export."""
    base = Path(shutil.copytree(tiny("llama"), tmp_path / "base"))
    for name, key, place in (
        ("config.json", "AutoModelForCausalLM", "modeling_own.OwnForCausalLM"),
        ("tokenizer_config.json", "AutoTokenizer", ["tokenization_own.OwnTokenizer", None]),
    ):
        (base / name).write_text(json.dumps(settings_of(base, name) | {"auto_map": {key: place}}))
    tokenizer = load_tokenizer(base, model_config)
    export(load_causal(base, model_config, tokenizer), tokenizer, tmp_path / "model", model_config)
    assert all(
        "auto_map" not in settings_of(tmp_path / "model", name) for name in ("config.json", "tokenizer_config.json")
    )
    export(load_scalar(base, model_config, tokenizer), tokenizer, tmp_path / "reward", model_config)
    assert "auto_map" not in settings_of(tmp_path / "reward")


def test_loading_options_are_not_exported_with_the_tokenizer(
    tmp_path: Path, tiny_llama: Path, model_config: ModelConfig
) -> None:
    tokenizer = load_tokenizer(tiny_llama, model_config)
    tokenizer.init_kwargs |= {"local_files_only": True, "is_local": True}
    export(load_causal(tiny_llama, model_config, tokenizer), tokenizer, tmp_path / "model", model_config)
    written = settings_of(tmp_path / "model", "tokenizer_config.json")
    assert not {"local_files_only", "is_local"} & written.keys()
    AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)


def test_a_generation_config_with_the_tokenizers_end_keeps_its_list(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    base = Path(shutil.copytree(tiny("llama"), tmp_path / "base"))
    # Some bases have `temperature` without `do_sample`, which transformers refuses to save.
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 2], "temperature": 0.6}))
    export(load_causal(base, model_config, tiny_tokenizer), tiny_tokenizer, tmp_path / "model", model_config)
    found = settings_of(tmp_path / "model", "generation_config.json")
    assert (found["eos_token_id"], found["temperature"]) == ([4, 2], 0.6)


@pytest.mark.parametrize(
    "settings",
    [
        {"stop_strings": ["User:"]},
        {"token_healing": True},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 0.5},
        {"prompt_lookup_num_tokens": 3},
        {"max_length": 1, "min_new_tokens": 8, "use_cache": False},
        {"constraints": [1]},
        {"assistant_early_exit": 7, "dola_layers": "high"},
    ],
    ids=lambda settings: min(settings),
)
def test_settings_that_need_more_than_a_model_to_generate_are_exported_as_they_are(
    tiny_llama: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, settings: dict[str, Any]
) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 2], **settings}))
    export(load_causal(base, model_config, tiny_tokenizer), tiny_tokenizer, tmp_path / "model", model_config)
    found = settings_of(tmp_path / "model", "generation_config.json")
    assert {name: found[name] for name in ("eos_token_id", *settings)} == {"eos_token_id": [4, 2], **settings}


@pytest.mark.parametrize("kind", ["language model", "reward model"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_exported(
    tiny_llama: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, kind: str, value: float
) -> None:
    load = load_causal if kind == "language model" else load_scalar
    model = load(tiny_llama, model_config, tiny_tokenizer)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    with pytest.raises(ValueError, match=r"weight model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinite values"):
        export(model, tiny_tokenizer, tmp_path / "model", model_config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("load", [load_causal, load_scalar])
def test_finite_weights_whose_outputs_overflow_are_not_exported(
    tiny_llama: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, load: Callable[..., Any]
) -> None:
    model = load(tiny_llama, model_config, tiny_tokenizer)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
        (model.score if load is load_scalar else model.lm_head).weight.fill_(10)
    with pytest.raises(ValueError, match="fails to run"):
        export(model, tiny_tokenizer, tmp_path / "model", model_config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["missing", "shape", "config", "tokenizer", "setting"])
def test_a_faulty_export_is_detected_and_does_not_get_its_final_name(
    tiny_llama: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:  # fmt: skip
    write = exporting.save

    def spoilt(model: Any, tokenizer: Any, folder: Path) -> None:
        write(model, tokenizer, folder)
        weights = load_file(folder / "model.safetensors")
        if fault == "missing":
            del weights["model.norm.weight"]
        elif fault == "shape":
            weights["model.norm.weight"] = torch.ones(7)
        elif fault == "config":
            (folder / "config.json").write_text("{")
        elif fault == "setting":
            (folder / "config.json").write_text(json.dumps(settings_of(folder) | {"use_cache": False}))
        else:
            (folder / "tokenizer.json").write_text("{")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(exporting, "save", spoilt)
    said = {
        "missing": r"missing weights: model\.norm\.weight",
        "shape": r"mismatched weights: .*model\.norm\.weight",
        "config": "fails to load its configuration",
        "tokenizer": "fails to load its tokenizer",
        "setting": r"config\.json differs from the base's in use_cache",
    }
    model = load_causal(tiny_llama, model_config, tiny_tokenizer)
    with pytest.raises(ValueError, match=said[fault]) as error:
        export(model, tiny_tokenizer, tmp_path / "model", model_config)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_verifying_draws_no_random_numbers_and_leaves_the_mode(
    tiny_llama: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps(CHAT))
    model = load_causal(base, model_config, tiny_tokenizer).train()
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    export(model, tiny_tokenizer, tmp_path / "model", model_config)
    assert torch.equal(torch.rand(3), expected)
    assert model.training


@pytest.mark.parametrize("load", [load_causal, load_scalar])
def test_a_base_with_a_weight_that_is_nan_is_refused_by_name(
    tiny_llama: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, load: Callable[..., Any]
) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"base: the weight model\.layers\.1\.self_attn\.q_proj\.weight has NaN"):
        load(base, model_config, tiny_tokenizer)


def test_finite_weights_whose_sum_overflows_are_accepted(
    tiny_llama: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    model = load_scalar(tiny_llama, model_config, tiny_tokenizer)
    with torch.no_grad():
        reward_model(model).head.weight.fill_(3e37)
        reward_model(model).head.weight[0, ::2] = 3.1e37
    model.config.score_bias = 0.0
    with torch.no_grad():
        model.model.norm.weight.fill_(1e-3)
    export(model, tiny_tokenizer, tmp_path / "model", model_config)
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_full_disk_names_the_folder_and_leaves_nothing_of_the_export(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig
) -> None:
    tokenizer = load_tokenizer(tiny("llama"), model_config)
    model = load_causal(tiny("llama"), model_config, tokenizer)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, before[1]))
    try:
        with pytest.raises(ValueError, match=r"cannot write .*/model \(File too large\)"):
            export(model, tokenizer, tmp_path / "model", model_config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
