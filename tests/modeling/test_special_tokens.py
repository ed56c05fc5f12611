"""Pad and EOS tokens: which are taken, which are added, and that an added one is never sampled.

pytest tests/modeling/test_special_tokens.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data.tokenize import decode_completion, encode_completion, template_closing
from modeling.batch import Batch
from modeling.config import GenerationSettings, ModelConfig
from modeling.export import export
from modeling.generation import NativeGenerator, TransformersGenerator
from modeling.load import load_causal, load_scalar, load_tokenizer, save, stop_ids
from modeling.models import policy_model
from tests.modeling.folders import end_like_gpt2, rewrite_tokenizer

IDS = torch.tensor([[3, 40, 50, 60, 70, 2]])


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


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_good_pad_and_the_side_of_padding_are_left_alone(
    copied: Path, tmp_path: Path, model_config: ModelConfig, side: str
) -> None:
    rewrite_tokenizer(copied, padding_side=side)
    tokenizer = load_tokenizer(copied, model_config)
    assert (tokenizer.pad_token, len(tokenizer)) == ("<|endoftext|>", 512)
    save(load_causal(copied, model_config, tokenizer), tokenizer, tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").padding_side == side


def test_tokens_without_an_embedding_are_named(
    copied: Path, model_config: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a tokenizer that was given new words, and a model that was not resized."""
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["riverstone", "bread"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copied)
    loaded = load_tokenizer(copied, model_config)
    for load in (load_causal, load_scalar):
        rows = load(copied, model_config, loaded).get_input_embeddings().weight
        assert torch.equal(rows[512], rows[513])
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(
        "2 of the tokenizer's tokens have no embedding in the model (riverstone, bread): they start as"
    )


def test_a_tokenizer_without_eos_is_refused(copied: Path, model_config: ModelConfig) -> None:
    rewrite_tokenizer(copied, eos_token=None)
    with pytest.raises(ValueError, match="no EOS token, so an answer could never end"):
        load_tokenizer(copied, model_config)


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


@pytest.mark.parametrize("start", ["", "\n", "  "])
def test_a_template_that_writes_eos_behind_the_end_of_a_turn_renders_as_before(
    copied: Path, tmp_path: Path, model_config: ModelConfig, start: str
) -> None:
    """As Phi-3's: the turn ends with one token, which becomes EOS, the finished conversation with the old EOS."""
    template = (
        start + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
    )
    rewrite_tokenizer(copied, eos_token="<|endoftext|>", chat_template=template)
    (copied / "chat_template.jinja").write_text(template)
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    base, tokenizer = AutoTokenizer.from_pretrained(copied), load_tokenizer(copied, model_config)
    assert (base.eos_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    save(load_causal(copied, model_config, tokenizer), tokenizer, tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved", model_config)
    assert again.chat_template == tokenizer.chat_template
    for end, asks in ((2, False), (1, True)):
        expected = base.apply_chat_template(talk[:end], tokenize=False, add_generation_prompt=asks)
        for one in (tokenizer, again, AutoTokenizer.from_pretrained(tmp_path / "saved")):
            assert one.apply_chat_template(talk[:end], tokenize=False, add_generation_prompt=asks) == expected
    assert expected.startswith(start.strip(" ") + "<|im_start|>")
    assert template_closing(tokenizer) == tokenizer("<|im_end|>\n<|endoftext|>", add_special_tokens=False)["input_ids"]


def test_end_tokens_of_a_base_without_a_generation_config_are_control_tokens_too(
    copied: Path, model_config: ModelConfig
) -> None:
    """As merges of models are published: config.json alone has them, and the tokenizer calls one an ordinary token."""
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["<|end_of_turn|>"])
    tokenizer.save_pretrained(copied)
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(settings | {"eos_token_id": [0, 2, 512]}))
    (copied / "generation_config.json").unlink()
    tokenizer = load_tokenizer(copied, model_config)
    assert stop_ids(load_causal(copied, model_config, tokenizer)) == {0, 2, 512}
    ids = encode_completion(tokenizer, "It says <|end_of_turn|> there.")
    assert 512 not in ids
    assert decode_completion(tokenizer, ids, True) == "It says <|end_of_turn|> there."


def test_an_output_layer_of_its_own_stays_although_the_config_calls_it_tied(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig
) -> None:
    """As after merging an adapter that trained it. The new pad token adds a row to both layers."""
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = 0.5 * weights["model.embed_tokens.weight"] + 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite_tokenizer(folder, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token=None, chat_template=None)
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(folder, model_config)
    assert len(tokenizer) == 513
    model = load_causal(folder, model_config, tokenizer)
    assert torch.equal(model.get_output_embeddings().weight[:512], weights["lm_head.weight"])
    export(model, tokenizer, tmp_path / "exported", model_config)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    for layer, name in ((again.lm_head, "lm_head.weight"), (again.get_input_embeddings(), "model.embed_tokens.weight")):
        assert torch.equal(layer.weight[:512], weights[name])


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
