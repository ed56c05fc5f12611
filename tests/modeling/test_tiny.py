"""The tiny model: small, complete, the same every time, and readable by the library's own classes.

pytest tests/modeling/test_tiny.py
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.assets import CHATML
from modeling.tiny import ARCHITECTURES, CONTEXT_LENGTH, make_tiny_model

TEXT = "Why? Ünïcode, \t tabs\n\nand 1234 digits."


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_loads_and_runs(tmp_path: Path, architecture: str) -> None:
    folder = make_tiny_model(tmp_path / architecture, architecture)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert model.config.model_type == architecture
    assert model.config.max_position_embeddings == CONTEXT_LENGTH
    assert model(ids).logits.shape == (1, ids.shape[1], 512)
    assert model.num_parameters() < 100_000


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pad_and_eos_are_two_tokens_and_everyone_agrees_on_them(tmp_path: Path, architecture: str) -> None:
    folder = make_tiny_model(tmp_path, architecture)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    for settings in (model.config, model.generation_config):
        assert (settings.pad_token_id, settings.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert tokenizer.chat_template == CHATML


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_text_can_be_written_and_read_back(tmp_path: Path, architecture: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path, architecture))
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    first, second = make_tiny_model(tmp_path / "first"), make_tiny_model(tmp_path / "second")
    other = make_tiny_model(tmp_path / "other", seed=1)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert (first / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    make_tiny_model(tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_no_token_of_the_model_is_unknown_to_its_tokenizer(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, corpus=["too short for many merges"])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 259 <= model.config.vocab_size == len(tokenizer) < 512


def test_llama_ties_its_embeddings_and_sizes_are_taken(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path, hidden_size=64, layers=3, heads=4))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.num_attention_heads) == (64, 3, 4)


def test_no_file_is_left_beside_the_folder(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    "wrong", [{"architecture": "rnn"}, {"hidden_size": 33}, {"hidden_size": 6}, {"vocab_size": 200}]
)
def test_sizes_that_cannot_be_are_refused_by_name(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_tiny_model(tmp_path, **wrong)  # type: ignore[arg-type]
