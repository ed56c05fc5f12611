"""Where a reward model starts, and what of it is trained.

pytest tests/reward/test_start.py
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.chat_template import PLAIN
from modeling.config import LoraSettings, ModelConfig
from modeling.tiny import make_tiny_model
from reward.config import RewardConfig
from reward.start import Start

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of four layers."""
    return make_tiny_model(tmp_path_factory.mktemp("deep") / "gpt2", "gpt2", layers=4)


def trained_names(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_with_lora_the_adapter_and_the_head_are_trained_and_nothing_else(
    tiny_llama: Path, model_config: ModelConfig
) -> None:
    config = replace(model_config, adapter="lora", lora=LoraSettings(rank=2, top_layers=1))
    start = Start.of(RewardConfig(), config, tiny_llama)
    names = trained_names(start.model(start.tokenizer(), 0, CPU))
    assert any("score" in name for name in names)
    assert all((".layers.1." in name and "lora_" in name) or "score" in name for name in names)
    assert trained_names(start.model(start.tokenizer(), 0, CPU, train=False)) >= {
        "score.weight",
        "model.embed_tokens.weight",
    }


def test_a_base_of_its_own_is_adapted_in_its_own_top_layers(
    deep: Path, tiny_llama: Path, model_config: ModelConfig
) -> None:
    config = replace(model_config, adapter="lora", lora=LoraSettings(rank=2, top_layers=1))
    for top, layers in ((None, {0, 1, 2, 3}), (2, {2, 3})):
        start = Start.of(RewardConfig(base=str(deep), top_layers=top), config, tiny_llama)
        names = trained_names(start.model(start.tokenizer(), 0, CPU))
        assert {int(name.split(".h.")[1].split(".")[0]) for name in names if ".h." in name} == layers
    with pytest.raises(ValueError, match=r"reward\.top_layers=5, but reward\.base=.* has 4 layers"):
        Start.of(RewardConfig(base=str(deep), top_layers=5), config, tiny_llama)


def test_a_new_head_depends_on_the_seed_and_a_trained_one_is_kept(
    deep: Path, tiny_llama: Path, model_config: ModelConfig, tmp_path: Path
) -> None:
    start = Start.of(RewardConfig(base=str(deep)), model_config, tiny_llama)
    heads = [start.model(start.tokenizer(), seed, CPU).score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    model = start.model(start.tokenizer(), 3, CPU)
    model.save_pretrained(tmp_path)
    start.tokenizer().save_pretrained(tmp_path)
    again = Start.of(RewardConfig(base=str(tmp_path)), model_config, tiny_llama)
    assert torch.equal(again.model(again.tokenizer(), 4, CPU).score.weight, model.score.weight)


TEMPLATES = {
    "eos": ("{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}", "{eos}"),
    "eos and a line break": ("{{ m['content'] + eos_token + '\\n' }}", "{eos}\n"),
    "nothing": ("{{ m['role'] }}: {{ m['content'] }}", "{eos}"),
    "stripped": ("{{ m['content'] | trim }}<end>", "<end>"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_somebody_elses_reward_model_says_by_its_template_where_it_reads(
    tiny: Callable[[str], Path], tiny_llama: Path, model_config: ModelConfig, tmp_path: Path, case: str
) -> None:
    turn, answer_suffix = TEMPLATES[case]
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    tokenizer.chat_template = (
        "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    AutoModelForSequenceClassification.from_pretrained(tiny("gpt2"), num_labels=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    start = Start.of(RewardConfig(base=str(tmp_path), epochs=0), model_config, tiny_llama)
    expected = tokenizer(answer_suffix.format(eos=tokenizer.eos_token), add_special_tokens=False)["input_ids"]
    assert start.answer_suffix(start.tokenizer()) == expected


def test_without_a_template_of_its_own_it_reads_at_eos(
    tiny: Callable[[str], Path], tiny_llama: Path, model_config: ModelConfig, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    tokenizer.chat_template = None
    AutoModelForSequenceClassification.from_pretrained(tiny("gpt2"), num_labels=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    start = Start.of(RewardConfig(base=str(tmp_path), epochs=0), model_config, tiny_llama)
    assert start.tokenizer().chat_template == PLAIN
    assert start.answer_suffix(start.tokenizer()) == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{{ raise_exception('turns must alternate') }}",
            "chat template cannot render a question and its answer .line 1.: turns must alternate",
        ),
        (
            "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
            "chat template does not show the user's message and the assistant's answer as they are",
        ),
    ],
)
def test_a_template_that_shows_no_answer_is_refused_in_a_sentence(
    tiny: Callable[[str], Path], tiny_llama: Path, model_config: ModelConfig, tmp_path: Path, template: str, said: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    tokenizer.chat_template = template
    AutoModelForSequenceClassification.from_pretrained(tiny("gpt2"), num_labels=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    start = Start.of(RewardConfig(base=str(tmp_path), epochs=0), model_config, tiny_llama)
    with pytest.raises(ValueError, match=said):
        start.answer_suffix(start.tokenizer())


def test_a_reward_model_of_ours_reads_at_eos_whatever_its_template(
    tiny: Callable[[str], Path], tiny_llama: Path, model_config: ModelConfig
) -> None:
    start = Start.of(RewardConfig(base=str(tiny("gpt2"))), model_config, tiny_llama)
    assert start.answer_suffix(start.tokenizer()) is None
    assert Start.of(RewardConfig(), model_config, tiny_llama).answer_suffix(start.tokenizer()) is None
