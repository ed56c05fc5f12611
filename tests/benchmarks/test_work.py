"""What is measured: the same data and models every time, the same learning work on both sides, and ours runs.

pytest tests/benchmarks/test_work.py
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from benchmarks import ours, peers
from benchmarks.compare import ENVIRONMENT, ask
from benchmarks.fixture import write
from benchmarks.peers import Responses
from benchmarks.scale import BENCHMARK as SCALE
from benchmarks.work import EOS, PAD, VOCABULARY, PPOWork, RewardWork, sft_folder, word
from modeling.accelerator import make_accelerator


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture whose responses end early."""
    folder = tmp_path_factory.mktemp("fixture")
    write(folder, ends_every=24)
    return folder


def test_token_ids_are_the_same_every_time_and_lengths_lie_within_the_spread() -> None:
    work = RewardWork(prompts=20, prompt_tokens=300)
    rows = work.rankings()
    assert rows == work.rankings()
    assert rows[:2] == RewardWork(prompts=2, prompt_tokens=300).rankings()
    answers = [answer for _, ranked in rows for answer in ranked]
    assert len(answers) == 180
    assert all(240 <= len(prompt) <= 360 for prompt, _ in rows)
    assert {len(answer) for answer in answers} <= set(range(80, 120))
    assert len({len(answer) for answer in answers}) > 20
    assert {answer[-1] for answer in answers} == {EOS}
    prompts = PPOWork(episodes=100).prompt_ids()
    assert {len(prompt) for prompt in prompts} == set(range(24, 41))
    body = {token for ids in (*prompts, *(answer[:-1] for answer in answers)) for token in ids}
    assert EOS < min(body) <= max(body) < VOCABULARY


def test_models_have_16_8_million_parameters_and_the_same_weights_every_time(models: Path, tmp_path: Path) -> None:
    write(tmp_path, ends_every=24)
    for file in models.rglob("*.safetensors"):
        assert (tmp_path / file.relative_to(models)).read_bytes() == file.read_bytes(), file
    with safe_open(models / "reward" / "model" / "model.safetensors", "pt") as weights:
        assert sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()) == 16_766_208  # noqa: SIM118
    with safe_open(models / "reward_lora" / "adapter" / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert {int(name.split("layers.")[1].split(".")[0]) for name in names} == {4, 5}, "the top third"


def test_eos_has_its_probability_at_any_position_and_no_other_token_is_frequent(models: Path) -> None:
    """On other tokens than those that the weights were set on. Early positions have a lower probability."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(sft_folder(str(models)))
    ids = torch.randint(4, VOCABULARY, (4, 96), generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        probability = model(ids).logits.softmax(-1)
    assert float(probability[:, 24:, EOS].mean()) == pytest.approx(1 / 24, rel=0.05)
    assert float(probability[:, 24:, EOS].std()) < 0.04 / 24
    probability[:, :, EOS] = 0
    assert float(probability.max()) < 50 / VOCABULARY
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_our_stage_reads_the_token_ids_that_the_peer_is_given(models: Path) -> None:
    from data.records import Prompt
    from data.tokenize import encode_prompt
    from modeling.config import ModelConfig
    from modeling.load import load_tokenizer

    tokenizer = load_tokenizer(sft_folder(str(models)), ModelConfig())
    for ids in PPOWork(iterations=1, episodes=4).prompt_ids():
        assert encode_prompt(tokenizer, Prompt(prompt=" ".join(map(word, ids)))) == ids
    assert (tokenizer.eos_token_id, len(tokenizer)) == (EOS, VOCABULARY)


def test_ours_and_the_peer_learn_from_the_same_comparisons() -> None:
    work = RewardWork(prompts=2, k=3)
    expected = [(pair["chosen_ids"], pair["rejected_ids"]) for pair in peers.pairs(work.rankings())]
    found = [
        (item.prompt + item.answers[better], item.prompt + item.answers[worse])
        for item in ours.ranking_examples(work)
        for better, worse in item.preference_mask_KK.nonzero().tolist()
    ]
    assert found == expected
    assert len(found) == 6


def test_the_peers_responses_are_counted_without_prompt_and_padding() -> None:
    rows = torch.tensor([[PAD, 9, 7, EOS, PAD], [8, 9, 7, 8, 5]])
    responses = Responses([[9], [8, 9]])
    responses.read(None, (), {"input_ids": rows, "attention_mask": rows != PAD})
    assert (responses.tokens, responses.ended, responses.count) == (2 + 3, 1, 2)


@pytest.mark.parametrize("adapter", [pytest.param("none", marks=pytest.mark.slow), "lora"])
def test_ppo_takes_a_step_per_minibatch(models: Path, adapter: str) -> None:
    work = PPOWork(str(models), adapter, iterations=2, episodes=4, minibatches=2, prompt_tokens=8, response_tokens=4)
    numbers = ours.ppo(work, make_accelerator("cpu"))
    assert (numbers["items"], numbers["optimizer_steps"]) == (8, 4)
    assert 0 < numbers["cpu_seconds"] < 100
    assert numbers["peak_gib"] > numbers["loaded_gib"]
    assert 1 <= numbers["response_tokens"] <= 4
    assert numbers["seconds_update"] > 0


def test_the_reward_model_takes_a_step_per_batch(models: Path) -> None:
    work = RewardWork(str(models), prompts=4, prompts_per_step=2, k=3, prompt_tokens=10, answer_tokens=10)
    numbers = ours.reward(work, make_accelerator("cpu"))
    assert (numbers["items"], numbers["optimizer_steps"]) == (4, 2)
    assert numbers["layout"].startswith("1 process, models whole")
    assert numbers["above_libraries_gib"] > numbers["between_phases_gib"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["ppo_replicated", "reward_sharded"])
def test_two_processes_are_launched_as_configured(models: Path, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side = SCALE.settings[setting][0]
    assert side.layout is not None
    command: Sequence[str] = side.command(Path("python"), "")
    small: dict[str, Any] = {"models": str(models), "prompt_tokens": 10}
    small |= {"iterations": 1, "episodes": 4, "minibatches": 2} if "ppo" in setting else {"prompts": 4, "k": 3}
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    numbers = ask(side.name, [*command[:-1], json.dumps(small)])
    assert side.layout in numbers["layout"]
