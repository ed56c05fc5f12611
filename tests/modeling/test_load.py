"""Loading and saving: what is missing is said in one sentence, what is loaded is ready for use, what is saved loads
anywhere.

pytest tests/modeling/test_load.py
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
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
)

from data.chat_template import PLAIN
from data.tokenize import encode_completion
from demo.assets import CHATML
from modeling.architecture import refuse_lookahead
from modeling.batch import Batch
from modeling.config import GenerationSettings, ModelConfig
from modeling.export import export
from modeling.generation import NativeGenerator, TransformersGenerator
from modeling.load import (
    autocast,
    base_model_place,
    context_length,
    load_causal,
    load_scalar,
    load_tokenizer,
    save,
    set_dropout,
    stop_ids,
)
from modeling.loading import loading
from modeling.models import policy_model, reward_model
from modeling.tiny import CONTEXT_LENGTH
from tests.conftest import enliven

IDS = torch.tensor([[3, 40, 50, 60, 70, 2]])


@pytest.fixture
def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny llama's folder to spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def rewrite_tokenizer(folder: Path, **special: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)


def end_like_gpt2(folder: Path) -> None:
    """One token for the start and the end of a text, and no pad token and no chat template."""
    rewrite_tokenizer(folder, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token=None, chat_template=None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def one_sentence(error: pytest.ExceptionInfo[ValueError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    for word in words:
        assert word in text


def test_a_pad_that_is_also_eos_is_replaced_by_a_special_token_that_is_free(
    copied: Path, model_config: ModelConfig
) -> None:
    rewrite_tokenizer(copied, pad_token="<|im_end|>")
    tokenizer = load_tokenizer(copied, model_config)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    model = load_causal(copied, model_config, tokenizer)
    assert (
        model.config.pad_token_id
        == model.generation_config.pad_token_id
        == tokenizer.pad_token_id
        != tokenizer.eos_token_id
    )
    assert model.get_input_embeddings().weight.shape[0] == 512


def test_eos_is_trained_where_the_bases_config_calls_it_its_pad(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig
) -> None:
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    tokenizer = load_tokenizer(folder, model_config)
    eos = tokenizer.eos_token_id
    (folder / "config.json").write_text(json.dumps(settings | {"pad_token_id": eos}))
    embeddings = load_causal(folder, model_config, tokenizer).get_input_embeddings()
    embeddings(torch.tensor([eos])).sum().backward()
    assert embeddings.weight.grad[eos].eq(1).all()


@pytest.mark.parametrize("pad", [None, "<|endoftext|>"], ids=["no_pad", "pad_is_eos"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_tokenizer_like_gpt2s_gets_a_pad_of_its_own_and_the_model_a_row_for_it(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig, architecture: str, pad: str | None
) -> None:
    folder = Path(shutil.copytree(tiny(architecture), tmp_path / "model"))
    rewrite_tokenizer(folder, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token=pad, chat_template=None)
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(folder, model_config)
    assert tokenizer.eos_token_id == 0
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("<|pad|>", 512, 513)
    before, model = AutoModelForCausalLM.from_pretrained(folder).eval(), load_causal(folder, model_config, tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 513
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits[..., :512], before(IDS).logits, atol=1e-6, rtol=0)
        assert model(torch.tensor([[5, 512]])).logits.isfinite().all()

    # What is saved from it pools at EOS, and not before, in anybody's hands.
    scalar = load_scalar(folder, model_config, tokenizer)
    save(scalar, tokenizer, tmp_path / "reward")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    rows = torch.tensor([[5, 6, 7, 0, 512, 512], [5, 6, 7, 8, 9, 0]])
    with torch.no_grad():
        alone = torch.cat([scalar(row[None]).logits for row in (rows[0, :4], rows[1])])
        torch.testing.assert_close(again(rows).logits, alone, atol=1e-6, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "reward").pad_token_id == 512


def test_a_good_pad_is_left_alone_and_padding_goes_right(tiny_llama: Path, model_config: ModelConfig) -> None:
    tokenizer = load_tokenizer(tiny_llama, model_config)
    assert (tokenizer.pad_token, len(tokenizer), tokenizer.padding_side) == ("<|endoftext|>", 512, "right")


def test_a_tokenizer_without_eos_is_refused(copied: Path, model_config: ModelConfig) -> None:
    rewrite_tokenizer(copied, eos_token=None)
    with pytest.raises(ValueError, match="no EOS token, so an answer could never end"):
        load_tokenizer(copied, model_config)


def test_chat_templates_come_from_the_file_then_the_tokenizer_then_ours(
    copied: Path, tmp_path: Path, model_config: ModelConfig
) -> None:
    assert load_tokenizer(copied, model_config).chat_template == CHATML
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m['content'] }}!{% endfor %}")
    own = ModelConfig(chat_template=str(tmp_path / "own.jinja"))
    assert load_tokenizer(copied, own).apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"
    with pytest.raises(ValueError, match=r"model\.chat_template: .*absent\.jinja: no such file"):
        load_tokenizer(copied, ModelConfig(chat_template=str(tmp_path / "absent.jinja")))
    rewrite_tokenizer(copied, chat_template=None)
    (copied / "chat_template.jinja").unlink(missing_ok=True)
    assert load_tokenizer(copied, model_config).chat_template == PLAIN


def test_a_template_that_plain_jinja_cannot_parse_is_named_once(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers enables the extension with these tags; the exported template keeps them."""
    (tmp_path / "own.jinja").write_text(
        CHATML.replace("{% endfor %}", "\n{% if false %}{% break %}{% endif %}{% endfor %}")
    )
    config = ModelConfig(chat_template=str(tmp_path / "own.jinja"))
    for _ in range(2):
        load_tokenizer(tiny_llama, config)
    (record,) = caplog.records
    assert "plain Jinja does not (line 4: Encountered unknown tag 'break'" in record.message


def test_a_byte_order_mark_of_a_template_file_is_not_part_of_the_template(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(CHATML, encoding="utf-8-sig")
    assert load_tokenizer(tiny_llama, ModelConfig(chat_template=str(tmp_path / "own.jinja"))).chat_template == CHATML


def test_several_templates_without_a_default_are_refused_by_the_setting(
    copied: Path, model_config: ModelConfig
) -> None:
    (copied / "chat_template.jinja").unlink()
    rewrite(copied / "tokenizer_config.json", chat_template=[{"name": name, "template": CHATML} for name in ("a", "b")])
    with pytest.raises(ValueError, match=r"has several chat templates \(a, b\): set model\.chat_template") as error:
        load_tokenizer(copied, model_config)
    one_sentence(error)


TWO_WORDS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "does not show the user's message"),
        ("fixed words only", "does not show the user's message"),
        ("{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}", "does not "
                                                                                                        "show the "
                                                                                                        "user's "
                                                                                                        "message"),
        ("{{ messages[0]['content'] }}", "the assistant's answer as they are"),
        ("\n{{ messages[0]['content'] + 1 }}", r"cannot render a question and its answer \(line 2\): can only "
                                               r"concatenate str"),
        ("{{ nothing.at.all }}", r"\(line 1\): 'nothing' is undefined"),
        ("{% for m in messages %}\n{{ m.content", r"\(line 2\): unexpected end of template"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ 1 / 0 }}{% endif "
         "%}", "division by zero"),
        ("{% if add_generation_prompt %}x{% endif %}{% if not messages[1] %}y{% endif %}{% for m in messages %}{{ "
         "m.content }}{% endfor %}",
         "differently from the same question with its answer"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_trained_with_is_refused_before_anything_is_loaded(
    tiny_llama: Path, tmp_path: Path, template: str, said: str
) -> None:
    (tmp_path / "own.jinja").write_text(template)
    with pytest.raises(
        ValueError, match=f"^model.chat_template={re.escape(str(tmp_path / 'own.jinja'))}: .*{said}"
    ) as error:
        load_tokenizer(tiny_llama, ModelConfig(chat_template=str(tmp_path / "own.jinja")))
    assert "\n" not in str(error.value)


MARKED = (
    "{{ strftime_now('%d %b %Y') }}{%- for m in messages %}\n{%- if m.role == 'assistant' -%} A:\n{%- generation -%} "
    "{{ m.content }}!\n "
    "{%- endgeneration -%}{%- else -%} {{ m.content }}\n{% endif %}{%- endfor %}"
)


def test_exported_templates_are_read_alike_by_plain_jinja_and_by_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    original = AutoTokenizer.from_pretrained(tiny_llama)
    original.chat_template = MARKED.replace("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024")
    (tmp_path / "own.jinja").write_text(MARKED)
    load_tokenizer(tiny_llama, ModelConfig(chat_template=str(tmp_path / "own.jinja"))).save_pretrained(
        tmp_path / "saved"
    )
    exported = AutoTokenizer.from_pretrained(tmp_path / "saved")
    expected = original.apply_chat_template(TWO_WORDS, tokenize=False)
    assert exported.apply_chat_template(TWO_WORDS, tokenize=False) == expected, (
        "a template that reads the clock would change from day to day"
    )
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(exported.chat_template)
    assert plain.render(messages=TWO_WORDS) == expected
    for ours in (CHATML, PLAIN):
        assert jinja2.Environment().from_string(ours).render(messages=TWO_WORDS, eos_token="").count("So.") == 1


def test_an_answer_ends_with_the_templates_token_and_stops_at_every_end_token(
    copied: Path, tmp_path: Path, model_config: ModelConfig
) -> None:
    """As Gemma and Llama 3: the tokenizer's EOS is not the token that ends a turn, and the generation config lists
    both.
    """
    rewrite_tokenizer(copied, eos_token="<|endoftext|>", pad_token=None)
    settings = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [0, 9]}))
    tokenizer = load_tokenizer(copied, model_config)
    assert tokenizer.eos_token == "<|im_end|>"
    model = load_causal(copied, model_config, tokenizer)
    assert stop_ids(model) == {0, 9, 2}
    save(model, tokenizer, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["eos_token_id"] == [0, 9, 2]
    assert load_tokenizer(tmp_path / "saved", model_config).eos_token == "<|im_end|>"
    assert encode_completion(tokenizer, "So.")[-1] == 2


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


def test_a_pointer_of_git_lfs_is_not_weights(copied: Path, model_config: ModelConfig, tiny_tokenizer: Any) -> None:
    (copied / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"model.safetensors is a Git LFS pointer, .* run `git lfs pull`") as error:
        load_causal(copied, model_config, tiny_tokenizer)
    one_sentence(error, str(copied))


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


def test_the_context_is_the_models_own(tiny_causal: Callable[[str], Any]) -> None:
    assert context_length(tiny_causal("gpt2").config) == context_length(tiny_causal("llama").config) == CONTEXT_LENGTH


@pytest.mark.parametrize(
    ("settings", "generating", "training"),
    [
        # A short sequence beside a long one would lose its prompt behind the local layers' window.
        (GPTNeoConfig(window_size=256, max_position_embeddings=2048), 256, 2048),
        (MistralConfig(sliding_window=64, max_position_embeddings=512), 64, 512),
        (MptConfig(max_seq_len=48), 48, 48),
        (BloomConfig(), 2**30, 2**30),
    ],
)
def test_windows_limit_generation_and_positions_limit_everything(settings: Any, generating: int, training: int) -> None:
    assert (context_length(settings), context_length(settings, generating=False)) == (generating, training)


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
    assert context_length(settings) == context_length(settings, generating=False) == 24
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


@pytest.mark.parametrize("called", ["<|endoftext|>", "<|im_start|>"], ids=["id_0", "id_1"])
def test_a_pad_token_of_the_bases_own_keeps_its_row_though_its_config_names_none(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig, called: str
) -> None:
    """The base calls its pad token as an added one would be called, `<|pad|>`."""
    folder = Path(shutil.copytree(tiny("gpt_neox"), tmp_path / "model"))
    for file in folder.glob("*token*.json"):
        file.write_text(file.read_text().replace(called, "<|pad|>"))
    rewrite_tokenizer(folder, pad_token="<|pad|>")
    for file in (folder / "config.json", folder / "generation_config.json"):
        settings = json.loads(file.read_text())
        settings.pop("pad_token_id", None)
        file.write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder, model_config)
    assert (tokenizer.pad_token, len(tokenizer)) == ("<|pad|>", 512)
    base, model = AutoModelForCausalLM.from_pretrained(folder).eval(), load_causal(folder, model_config, tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, base(IDS).logits, atol=0, rtol=0)
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|own pad|>", None], ids=["known", "own", "none"])
def test_tokens_without_a_row_in_the_base_get_the_mean_of_its_rows_and_a_new_pad_is_suppressed(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig, pad: str | None
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny("gpt_neox"))
    with torch.no_grad():
        base.gpt_neox.final_layer_norm.bias.fill_(1.0)
        base.get_output_embeddings().weight.sub_(36 / 32)  # all logits lie near -36
    base.save_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt_neox"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|own pad|>", "<|bot|>"]})
    tokenizer.bos_token, tokenizer.pad_token = "<|im_start|>", pad
    tokenizer.eos_token = "<|im_end|>" if pad else "<|endoftext|>"
    tokenizer.chat_template = None if pad is None else tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "base")

    tokenizer = load_tokenizer(tmp_path / "base", model_config)
    assert tokenizer.pad_token == (pad or "<|pad|>")
    model = load_causal(tmp_path / "base", model_config, tokenizer)
    for found, known in (
        (model.gpt_neox.embed_in.weight, base.gpt_neox.embed_in.weight),
        (model.get_output_embeddings().weight, base.get_output_embeddings().weight),
    ):
        assert torch.equal(found[:512], known)
        torch.testing.assert_close(found[512:], known.mean(0).expand(len(tokenizer) - 512, -1))
    with torch.no_grad():
        shares = model(IDS).logits[0].softmax(-1)
    suppressed = [] if tokenizer.pad_token_id < 512 else [tokenizer.pad_token_id]
    assert (model.generation_config.suppress_tokens or []) == suppressed
    assert float(shares[:, suppressed].sum()) == 0
    new = [token for token in range(512, len(tokenizer)) if token not in suppressed]
    assert 0 < float(shares[:, new].max()) <= 1.001 / 513
    scalar = load_scalar(tmp_path / "base", model_config, tokenizer)
    assert torch.equal(scalar.get_input_embeddings().weight, model.get_input_embeddings().weight)


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


def far_below_zero(model: Any, level: float) -> None:
    """Moves all logits of a llama by `level`: every output row reads a hidden state's first element, nearly a
    constant.
    """
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 10
        model.lm_head.weight[:, 0] = 10
        model.model.norm.weight[0] = level / (10 * model.config.hidden_size**0.5)


@pytest.mark.parametrize("rows", [512, 520], ids=["grown", "padded_vocabulary"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_added_pad_token_is_never_sampled_where_all_logits_lie_near_minus_36(
    tiny_llama: Path, tmp_path: Path, model_config: ModelConfig, tied: bool, rows: int
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, tie_word_embeddings=tied)
    if not tied:
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight + 0.1 * torch.randn(512, 32))
    if rows > 512:
        base.resize_token_embeddings(rows, mean_resizing=False)
    far_below_zero(base, -36.0)
    if rows > 512:
        with torch.no_grad():
            for layer in (base.model.embed_tokens, base.lm_head):
                layer.weight[512:] = 0
            base.lm_head.weight[513:, 0] = 10  # rows of no token, which any user of this base samples as we do
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "base")
    end_like_gpt2(tmp_path / "base")
    expected = base(IDS).logits[0, :, :512].detach()
    assert -50 < expected.mean() < -25

    tokenizer = load_tokenizer(tmp_path / "base", model_config)
    assert tokenizer.pad_token_id == 512
    model = load_causal(tmp_path / "base", model_config, tokenizer)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    export(model, tokenizer, tmp_path / "model", model_config)
    again = load_causal(tmp_path / "model", model_config, load_tokenizer(tmp_path / "model", model_config))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(plain(IDS).logits[0, :, :512], expected, atol=1e-4, rtol=0)
    share = plain(IDS).logits[0].detach().softmax(-1)[:, 512]
    assert float(share.max()) <= 1.001 / 513, "as small as a token's can be that has the mean of all rows, and no more"

    for ours in (model, again):
        with torch.no_grad():
            assert float(ours(IDS).logits[0].softmax(-1)[:, 512].max()) == 0
        prompts, sampling = [[3, 40]] * 8, GenerationSettings(12)
        made = NativeGenerator().generate(ours, prompts, list(range(8)), sampling)
        other = TransformersGenerator().generate(ours, prompts, list(range(8)), sampling)
        assert not any(512 in generation.ids for generation in (*made, *other))
        batch = Batch(prompts, [generation.ids for generation in made])
        sampled = torch.tensor([logprob for generation in made for logprob in generation.logprobs or ()])
        with torch.no_grad():
            logprob_R, entropy_R = policy_model(ours)(batch)
        torch.testing.assert_close(logprob_R, sampled, atol=1e-4, rtol=0)
        assert bool(entropy_R.isfinite().all())
    torch.manual_seed(0)
    sampled = plain.generate(IDS[:, :2].repeat(8, 1), do_sample=True, top_k=0, max_new_tokens=12, eos_token_id=None)
    assert plain.generation_config.suppress_tokens == [512]
    assert not bool((sampled == 512).any())


def test_the_gradient_of_a_suppressed_token_is_zero_and_all_others_are_as_without_it(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig
) -> None:
    folder = Path(shutil.copytree(tiny("gpt_neox"), tmp_path / "model"))
    end_like_gpt2(folder)
    tokenizer = load_tokenizer(folder, model_config)
    model, base = load_causal(folder, model_config, tokenizer), AutoModelForCausalLM.from_pretrained(folder)
    logprob_R, _ = policy_model(model)(Batch([[3, 40]], [[50, 60, 70, 2]]))
    loss = -logprob_R.sum()
    loss.backward()
    expected = -base(IDS).logits[0, 1:5].log_softmax(-1)[torch.arange(4), IDS[0, 2:]].sum()
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-5, rtol=1e-5)
    found = model.get_output_embeddings().weight.grad
    torch.testing.assert_close(found[:512], base.get_output_embeddings().weight.grad, atol=1e-6, rtol=1e-4)
    assert not found[512].any()
