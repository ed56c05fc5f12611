"""Loading and saving: what is missing is said in one sentence, what is loaded is ready for use, what is saved loads
anywhere.

pytest tests/modeling/test_load.py
"""

import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BloomConfig,
    GPTNeoConfig,
    MistralConfig,
    MptConfig,
    Qwen2Config,
)

from modeling.architecture import refuse_lookahead
from modeling.batch import Batch
from modeling.config import ModelConfig
from modeling.export import export
from modeling.load import (
    attention_window,
    autocast,
    base_model_place,
    context_length,
    load_causal,
    load_scalar,
    load_tokenizer,
    read_settings,
    save,
    set_dropout,
    stop_ids,
)
from modeling.loading import loading
from modeling.models import policy_model, reward_model
from modeling.tiny import CONTEXT_LENGTH
from tests.conftest import enliven
from tests.families import SIZES
from tests.modeling.folders import one_sentence, rewrite

IDS = torch.tensor([[3, 40, 50, 60, 70, 2]])


@pytest.mark.parametrize("load", [load_tokenizer, load_causal, load_scalar])
@pytest.mark.parametrize("place", ["absent", "absent/below", "empty", "a/name/of/nothing"])
def test_what_is_not_there_is_said_in_one_sentence(
    tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, load: Callable[..., Any], place: str
) -> None:
    (tmp_path / "empty").mkdir()
    where = place if place.startswith("a/") else str(tmp_path / place)
    what, rest = ("tokenizer", []) if load is load_tokenizer else ("model", [tiny_tokenizer])
    with pytest.raises(ValueError, match=what) as error:
        load(where, model_config, *rest)
    one_sentence(error, where)


@pytest.mark.parametrize("load", [load_causal, load_scalar])
def test_pickled_weights_are_refused(
    copied: Path, model_config: ModelConfig, tiny_tokenizer: Any, load: Callable[..., Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(copied)
    torch.save(model.state_dict(), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"pickled ones .* are never read: load the model with transformers and"
    ) as error:
        load(copied, model_config, tiny_tokenizer)
    one_sentence(error, str(copied))
    assert "neither a folder" not in str(error.value), "it is a folder"


def test_a_file_and_a_folder_of_the_hubs_cache_are_named_as_such(
    copied: Path, tmp_path: Path, model_config: ModelConfig
) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors is a file: give the folder with config\.json"):
        read_settings(copied / "model.safetensors", model_config)
    for name in ("checkpoint-1000", "checkpoint-500"):
        (tmp_path / "trained" / name).mkdir(parents=True)
        (tmp_path / "trained" / name / "config.json").touch()
    with pytest.raises(ValueError, match=r"; give one of its checkpoints: checkpoint-500, checkpoint-1000$"):
        read_settings(tmp_path / "trained", model_config)
    (tmp_path / "models--me--tiny" / "snapshots").mkdir(parents=True)
    with pytest.raises(ValueError, match="it is a folder of the Hub's cache; give the model's name, or a folder in"):
        read_settings(tmp_path / "models--me--tiny", model_config)


def test_a_pointer_of_git_lfs_is_not_weights(copied: Path, model_config: ModelConfig, tiny_tokenizer: Any) -> None:
    (copied / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"model.safetensors is a Git LFS pointer, .* run `git lfs pull`") as error:
        load_causal(copied, model_config, tiny_tokenizer)
    one_sentence(error, str(copied))


def test_weights_in_another_form_beside_those_that_are_read_may_be_a_pointer(
    copied: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    """As of Mistral's folders after `git lfs pull --include model-*`."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (copied / "consolidated.safetensors").write_text(pointer)
    load_causal(copied, model_config, tiny_tokenizer)


@pytest.mark.parametrize("named", [["RewardModel"], None])
def test_a_trained_head_is_not_drawn_again_where_the_config_does_not_tell_of_it(
    tiny_llama: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, named: list[str] | None
) -> None:
    """As OpenRLHF saves reward models, with a class of its own."""
    model, file = load_scalar(tiny_llama, model_config, tiny_tokenizer), tmp_path / "config.json"
    save(model, tiny_tokenizer, tmp_path)
    settings = {name: value for name, value in json.loads(file.read_text()).items() if "label" not in name}
    file.write_text(json.dumps(settings | {"architectures": named}))
    advice = r"set architectures to \[\"LlamaForSequenceClassification\"\] and num_labels to 1 there"
    with pytest.raises(ValueError, match=rf"head of a reward model \(score.weight\), .* {advice}") as error:
        load_scalar(tmp_path, model_config, tiny_tokenizer)
    one_sentence(error, str(tmp_path))
    rewrite(file, architectures=["LlamaForSequenceClassification"], num_labels=1)
    assert torch.equal(load_scalar(tmp_path, model_config, tiny_tokenizer).score.weight, model.score.weight)


@pytest.mark.parametrize("spoilt", ["weights", "config", "architecture", "tokenizer"])
def test_a_folder_that_is_spoilt_is_said_in_one_sentence(
    copied: Path, model_config: ModelConfig, tiny_tokenizer: Any, spoilt: str
) -> None:
    if spoilt == "weights":
        (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:2000])
    elif spoilt == "tokenizer":
        (copied / "tokenizer.json").unlink()
        (copied / "tokenizer_config.json").unlink()
    else:
        (copied / "config.json").write_text('{"model_' if spoilt == "config" else '{"model_type": "strange"}')
    loaders: list[Callable[..., Any]] = [load_tokenizer] if spoilt == "tokenizer" else [load_causal, load_scalar]
    for load in loaders:
        with pytest.raises(ValueError, match=r"cannot load a (model|tokenizer) from ") as error:
            load(copied, model_config, *([tiny_tokenizer] if load is not load_tokenizer else []))
        one_sentence(error, str(copied))


def test_weights_that_are_missing_are_never_made_up(
    copied: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if "layers.1.mlp" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name},
        copied / "model.safetensors",
        metadata={"format": "pt"},
    )
    for load in (load_causal, load_scalar):
        with pytest.raises(ValueError, match=f"lacks 1 of its model's weights, {name} among them") as error:
            load(copied, model_config, tiny_tokenizer)
        one_sentence(error, str(copied))


def test_unexpected_weights_of_a_layer_are_refused_and_of_other_modules_warned_about(
    copied: Path, model_config: ModelConfig, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A bias that config.json leaves out would change every logit; a value head would not."""
    weights = load_file(copied / "model.safetensors")

    def add(name: str) -> None:
        save_file(weights | {name: torch.ones(32)}, copied / "model.safetensors", metadata={"format": "pt"})

    add("v_head.summary.bias")
    for load in (load_causal, load_scalar):
        load(copied, model_config, tiny_tokenizer)
    told = "1 of its weights are not used, v_head.summary.bias among them: its architecture has no such part"
    assert caplog.messages == [f"{copied}: {told}"]
    add("model.layers.0.self_attn.q_proj.bias")
    for load in (load_causal, load_scalar):
        with pytest.raises(ValueError, match=r"no place for, model\.layers\.0\.self_attn\.q_proj\.bias among") as error:
            load(copied, model_config, tiny_tokenizer)
        one_sentence(error, str(copied))


@pytest.mark.parametrize(
    "changes", [{"output_attentions": True, "return_dict": False}, {"attn_implementation": "flash_attention_2"}]
)
def test_inference_settings_in_config_json_are_ignored(
    copied: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, changes: dict[str, Any]
) -> None:
    rewrite(copied / "config.json", **changes)
    for load in (load_causal, load_scalar):
        model = load(copied, model_config, tiny_tokenizer)
        assert model.config._attn_implementation == "sdpa"
        refuse_lookahead(model, "the model")
        export(model, tiny_tokenizer, tmp_path / "export", model_config)


def test_a_reward_model_is_no_language_model_where_the_output_layer_is_not_tied(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    save(load_scalar(tiny("gpt_neox"), model_config, tiny_tokenizer), tiny_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="lacks 1 of its model's weights"):
        load_causal(tmp_path, model_config, tiny_tokenizer)


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 600}, r"model\.embed_tokens\.weight has the shape \(512, 32\), expected \(600, 32\)"),
    ({"num_hidden_layers": 1}, r"has weights of more layers than its config\.json says, model\.layers\.1\."),
    ({"pad_token_id": 32000}, "AssertionError: Padding_idx must be within num_embeddings"),
    ({"hidden_act": "swiglu"}, "KeyError: 'swiglu'"),
    ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
    ({"dtype": "bf16"}, "AttributeError: .*bf16"),
    ({"quantization_config": {"quant_method": "fp8"}}, "has quantized weights .* save a dequantized copy first"),
]


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2", "cohere"])
def test_a_folder_without_its_tokenizer_is_refused(family: str, tmp_path: Path, model_config: ModelConfig) -> None:
    """As `model.save_pretrained` leaves it: transformers makes a tokenizer that knows special tokens only."""
    AutoConfig.for_model(family, **SIZES[family]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"the tokenizer of {tmp_path} has only special tokens: its files"):
        load_tokenizer(tmp_path, model_config)


def test_a_tokenizer_loads_from_its_sentencepiece_model_alone(tmp_path: Path, model_config: ModelConfig) -> None:
    """As older fine-tunes of Llama 2 do."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the model reads", "a page of text"]), model_writer=model, vocab_size=300,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    AutoConfig.for_model("llama", **SIZES["llama"]).save_pretrained(tmp_path)
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = load_tokenizer(tmp_path, model_config)
    for text in ("the page", "Why é?\n so"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected.encode(text)


@pytest.mark.parametrize(("changes", "said"), MISFITS, ids=[next(iter(changes)) for changes, _ in MISFITS])
@pytest.mark.parametrize("load", [load_causal, load_scalar])
def test_weights_that_do_not_fit_config_json_are_refused(
    copied: Path,
    model_config: ModelConfig,
    tiny_tokenizer: Any,
    load: Callable[..., Any],
    changes: dict[str, Any],
    said: str,
) -> None:
    rewrite(copied / "config.json", **changes)
    with pytest.raises(ValueError, match=said) as error:
        load(copied, model_config, tiny_tokenizer)
    one_sentence(error, str(copied))


def test_an_adapter_beside_the_weights_is_refused_rather_than_added(
    copied: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(copied), LoraConfig(r=2)).save_pretrained(copied)
    with pytest.raises(ValueError, match=r"holds a model and an adapter, .*: merge the adapter") as error:
        load_causal(copied, model_config, tiny_tokenizer)
    one_sentence(error, str(copied))


@pytest.mark.parametrize("lack", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_lack_of_memory_while_loading_is_reported_as_such(copied: Path, lack: Exception) -> None:
    with pytest.raises(type(lack)), loading(copied, "model"):
        raise lack


def test_a_reward_model_without_its_head_is_refused(
    tiny_scalar: Callable[[str], Any], tiny_tokenizer: Any, model_config: ModelConfig, tmp_path: Path
) -> None:
    save(tiny_scalar("llama"), tiny_tokenizer, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of its model's weights, score\.weight"):
        load_scalar(tmp_path, model_config, tiny_tokenizer)


def test_a_classifier_of_two_labels_is_no_reward_model(
    copied: Path, tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(copied, num_labels=2)
    save(model, tiny_tokenizer, tmp_path / "two")
    with pytest.raises(ValueError, match="a classifier of 2 labels; a reward model has one"):
        load_scalar(tmp_path / "two", model_config, tiny_tokenizer)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gpt_neox"])
def test_models_come_in_float32_with_dropout_only_in_train_mode_and_only_if_asked_for(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, architecture: str
) -> None:
    def noisy(model: Any) -> bool:
        return not torch.equal(model(IDS).logits, model(IDS).logits)

    AutoModelForCausalLM.from_pretrained(tiny(architecture), dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny(architecture)).save_pretrained(tmp_path)
    model = load_causal(tmp_path, model_config, tiny_tokenizer, residual_dropout=0.2)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert not noisy(model)
        assert noisy(model.train()) is (architecture in ("gpt2", "gpt_neox"))
        assert not noisy(load_causal(tmp_path, model_config, tiny_tokenizer).train())


@pytest.mark.parametrize(
    ("architecture", "residual"),
    [
        ("gpt2", ["resid_pdrop"]), ("gpt_neo", ["resid_dropout"]), ("gpt_neox", ["hidden_dropout"]),
        ("starcoder2", ["residual_dropout"]), ("opt", ["dropout"]), ("biogpt", ["hidden_dropout_prob"]), ("llama", []),
    ],
)  # fmt: skip
def test_of_all_kinds_of_dropout_only_that_of_the_residuals_is_set(architecture: str, residual: list[str]) -> None:
    settings = AutoConfig.for_model(architecture)
    kinds = [name for name in vars(settings) if "drop" in name]
    settings.token_dropout = True  # ESM's switch, which is no rate
    for written in (0, 0.1):
        for name in kinds:
            setattr(settings, name, written)
        set_dropout(settings, 0.2)
        found = {name: getattr(settings, name) for name in kinds}
        assert found == {name: 0.2 if name in residual else 0 for name in kinds}
    assert settings.token_dropout is True


def test_a_saved_reward_model_scores_the_same_in_anybodys_hands(
    tiny_scalar: Callable[[str], Any], tiny_tokenizer: Any, model_config: ModelConfig, tmp_path: Path
) -> None:
    prompts, answers = [[3, 40, 50], [3, 41, 51, 61, 71]], [[200, 201, 202, 2], [210, 2]]
    model = tiny_scalar("llama")
    model.config.score_bias = -2.5
    with torch.no_grad():
        ours_B = reward_model(model)(Batch(prompts, answers))
        save(model, tiny_tokenizer, tmp_path)
        plain, tokenizer = (
            AutoModelForSequenceClassification.from_pretrained(tmp_path).eval(),
            AutoTokenizer.from_pretrained(tmp_path),
        )
        padded = tokenizer.pad(
            {"input_ids": [p + a for p, a in zip(prompts, answers, strict=True)]}, return_tensors="pt"
        )
        theirs_B = plain(**padded).logits[:, 0]
        again_B = reward_model(load_scalar(tmp_path, model_config, tokenizer))(Batch(prompts, answers))
    torch.testing.assert_close(theirs_B + 2.5, ours_B, atol=1e-5, rtol=0)
    torch.testing.assert_close(again_B, ours_B, atol=1e-6, rtol=0)
    assert sorted(path.name for path in tmp_path.glob("*.bin")) == []


def test_the_tiny_base_is_made_once_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLHF_PTX_CACHE", str(tmp_path))
    place = Path(base_model_place(ModelConfig(base="tiny")))
    assert tmp_path in place.parents
    made = (place / "model.safetensors").stat().st_mtime_ns
    assert base_model_place(ModelConfig(base="tiny")) == str(place)
    assert (place / "model.safetensors").stat().st_mtime_ns == made
    assert base_model_place(ModelConfig(base="some/model")) == "some/model"
    (file := tmp_path / "file").touch()
    monkeypatch.setenv("RLHF_PTX_CACHE", str(file))
    with pytest.raises(ValueError, match=rf"cannot keep tiny-llama in {file} \(Not a directory\): set RLHF_PTX_CACHE"):
        base_model_place(ModelConfig(base="tiny"))


def test_the_context_is_the_models_own(tiny_causal: Callable[[str], Any]) -> None:
    assert context_length(tiny_causal("gpt2").config) == context_length(tiny_causal("llama").config) == CONTEXT_LENGTH


@pytest.mark.parametrize(
    ("settings", "window", "context"),
    [
        (GPTNeoConfig(window_size=256, max_position_embeddings=2048), 256, 2048),
        (MistralConfig(sliding_window=64, max_position_embeddings=512), 64, 512),
        (Qwen2Config(sliding_window=64, use_sliding_window=False, max_position_embeddings=512), None, 512),
        (MptConfig(max_seq_len=48), None, 48),
        (BloomConfig(), None, 2**30),
    ],
)
def test_windows_and_positions_are_read_under_the_names_of_the_family(
    settings: Any, window: int | None, context: int
) -> None:
    assert (attention_window(settings), context_length(settings)) == (window, context)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@torch.no_grad()
def test_the_context_ends_where_the_longest_sequence_of_a_batch_changes_the_positions_of_all(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 24}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4} if kind == "longrope" else {}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    settings = AutoConfig.for_model(
        "phi3" if kind == "longrope" else "llama", vocab_size=64, pad_token_id=0, rope_parameters=rope, **sizes,
        max_position_embeddings=96 if kind == "longrope" else 24, original_max_position_embeddings=24,
    )  # fmt: skip
    assert context_length(settings) == 24
    torch.manual_seed(0)
    policy = policy_model(enliven(AutoModelForCausalLM.from_config(settings).eval()))
    short, answer = [5, 6, 7], [8, 9, 10, 11]
    alone_R = policy(Batch([short], [answer]))[0]
    for length, same in ((24, True), (25, False)):
        beside_R = policy(Batch([short, list(range(10, 10 + length - 4))], [answer, answer]))[0][:4]
        assert torch.allclose(beside_R, alone_R, atol=1e-5) is same, length


@pytest.mark.parametrize(
    ("precision", "expected"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision_is_that_of_the_config_and_auto_is_float32_on_a_cpu(precision: Any, expected: torch.dtype) -> None:
    with autocast(ModelConfig(precision=precision), torch.device("cpu")):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == expected


DAMAGED = [
    ('{"eos_token_id": [2,', "transformers cannot read it (Expecting value"),
    ("[2]", "transformers cannot read it ("),
    ('{"eos_token_id": "2"}', "eos_token_id must be a token id or a list of token ids, found '2'"),
    ('{"eos_token_id": [2, null]}', "eos_token_id must be"),
    ('{"suppress_tokens": "3"}', "suppress_tokens must be"),
    ('{"num_return_sequences": 3}', "transformers cannot read it (Greedy methods"),
    ('{"cache_implementation": "none of these"}', "transformers cannot read it ("),
]


@pytest.mark.parametrize(("text", "said"), DAMAGED)
def test_a_damaged_generation_config_is_refused_when_the_model_is_loaded(
    copied: Path, model_config: ModelConfig, tiny_tokenizer: Any, text: str, said: str
) -> None:
    file = copied / "generation_config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: {re.escape(said)}") as error:
        load_causal(copied, model_config, tiny_tokenizer)
    one_sentence(error, "repair the file, or remove it")
    file.unlink()
    assert stop_ids(load_causal(copied, model_config, tiny_tokenizer)) == {2}
