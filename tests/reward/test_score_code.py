"""The code in a reward model's card gives the score that the run gives the same answer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from data.records import Prompt
from data.tokenize import encode_prompt
from modeling.config import ModelConfig
from modeling.load import load_scalar, load_tokenizer
from modeling.models import answer_suffix_of
from modeling.tiny import make_tiny_model
from reward.batches import answer_ids
from reward.score_code import ANSWER, PLACE, QUESTION, score_code
from tests.families import SIZES
from tests.ppo.conftest import save_reward

CONFIG = ModelConfig(device="cpu")
SPACED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""As Llama 2's, with blanks around the answer."""


def granite(folder: Path) -> Path:
    """A model of a family that transformers has no classifier for."""
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(folder / "llama"))
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = AutoConfig.for_model("granite", **SIZES["granite"], vocab_size=len(tokenizer), **ends)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder / "granite")
    tokenizer.save_pretrained(folder / "granite")
    return folder / "granite"


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("llama", {}),
        ("llama", {"template": SPACED}),
        ("llama", {"answer_suffix": [2, 201]}),
        ("granite", {}),
    ],
)
def test_the_code_in_the_card_gives_the_runs_score(tmp_path: Path, family: str, given: dict[str, Any]) -> None:
    made = granite(tmp_path) if family == "granite" else make_tiny_model(tmp_path / "made", family)
    folder = save_reward(tmp_path / "reward", made, **given) / "model"
    tokenizer = load_tokenizer(folder, CONFIG)
    model = load_scalar(folder, CONFIG, tokenizer).eval()
    ids = encode_prompt(tokenizer, Prompt(prompt=QUESTION))
    ids += answer_ids(tokenizer, ANSWER, True, answer_suffix_of(model.config, tokenizer))
    with torch.no_grad():
        hidden_H = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        expected = float(model.score(hidden_H)) - model.config.score_bias
    found: dict[str, Any] = {}
    found |= {"__name__": "__main__"}
    exec(score_code(folder, CONFIG).replace(PLACE, str(folder)), found)
    assert found["score"] == pytest.approx(expected, abs=1e-5)
    assert not any(str(getattr(value, "__module__", "")).startswith("modeling") for value in found.values())
