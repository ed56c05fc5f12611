"""Every stage over tiny random models of many families.

pytest -m slow tests/stages/test_families.py
"""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from stages.config import RunConfig, parse_config
from stages.runner import run_stage
from tests.families import FAMILIES, found_row, make_family, table

CHAIN = ("data", "sft", "samples", "labels", "reward", "ppo", "evaluate")
SETTINGS = """
data:
  demonstrations: [{rows}]
  pretraining: [LICENSE]
  max_prompt_tokens: 60
  max_answer_tokens: 40
  valid_fraction: 0.3
  test_fraction: 0.2
  pretraining_tokens: 16
model: {{base: {base}, adapter: {adapter}, lora: {{rank: 4, alpha: 8}}, device: cpu, precision: float32}}
sft: {{epochs: 1, learning_rate: 0.003, batch_size: 4, micro_batch_size: 4}}
samples: {{answers_per_prompt: 4, max_new_tokens: 6}}
labels: {{closeness: words, tie_width: 0.0, disagreement: 0.5}}
reward: {{learning_rate: 0.003, batch_size: 4, bias_demonstrations: 4, epoch_evaluation_prompts: 0}}
evaluate_reward: {{bootstrap_resamples: 20}}
ppo:
  total_episodes: 8
  batch_size: 4
  minibatch_size: 4
  max_tokens_per_micro_batch: 256
  max_new_tokens: 6
  learning_rate: 0.002
  value_learning_rate: 0.002
  warmup_iterations: 1
  ptx_examples_per_episode: 1
  ema_decay: 0.8
  checkpoint_every: 2
  held_out: {{every: 2, responses_per_prompt: 1}}
evaluate: {{max_new_tokens: 6, perplexity_examples: 2, bootstrap_resamples: 20}}
"""


WORDS = ["sea", "sky", "egg", "poem", "list", "light", "water", "model", "score", "France", "colour", "answer"]


def configured(base: Path, adapter: str, rows: Path, folder: Path) -> RunConfig:
    """The configuration of a run below `folder`."""
    settings = folder / "config.yaml"
    settings.write_text(SETTINGS.format(rows=rows, base=base, adapter=adapter))
    return parse_config("families", "", ["--config", str(settings), "--runs_folder", str(folder / "runs")])[0]


def stage(name: str, config: RunConfig) -> dict[str, Any]:
    """Runs a stage of the chain; its headline numbers."""
    return run_stage(importlib.import_module(f"stages.{name}").STAGE, config)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short demonstrations by as many users, half of whom asked through the API."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with file.open("w") as lines:
        for number in range(30):
            row = {"prompt": f"{number}: {WORDS[number % 12]}{'?' * (number % 3)}", "completion": f"It is {number}."}
            row |= {"user_id": f"user {number}", "source": "api" if number % 2 else "labeler"}
            lines.write(json.dumps(row) + "\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_agrees_with_the_table(family: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    assert found_row(make_family(family, tmp_path, tiny_tokenizer), tiny_tokenizer) == table()[family]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_chain_runs(family: str, adapter: str, rows: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    config = configured(make_family(family, tmp_path, tiny_tokenizer), adapter, rows, tmp_path)
    numbers = {name: stage(name, config) for name in CHAIN}
    assert math.isfinite(numbers["reward"]["score_std"])
    assert math.isfinite(numbers["ppo"]["kl"])
    assert math.isfinite(numbers["evaluate"]["perplexity_ppo"])
