"""The measurement of PPO: that both sides are given the same work, what is made of the measurements, and that ours
runs. No peer runs here.

pytest tests/benchmarks/test_ppo.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import ppo, ppo_ours
from benchmarks.compare import Round, report
from benchmarks.fixture import EOS, VOCABULARY
from benchmarks.ppo import SETTINGS, Bench, Setting, profile_table, summary, table
from benchmarks.ppo_fixture import LORA_VARIANTS, prompts, write
from benchmarks.ppo_peer import Watch

NUMBERS = {
    "peak_gib": 2.0,
    "loaded_gib": 1.0,
    "mean_response_tokens": 64.0,
    "ended": 0.0,
    "cpu_seconds_an_episode": 0.5,
}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short prompts, with the models in their full size and early ends."""
    folder = tmp_path_factory.mktemp("fixture")
    write(folder, count=4, prompt_tokens=8, ends_every=24)
    return folder


def a_round(ours: float, peer: float, **of_ours: Any) -> Round:
    return Round(NUMBERS | {"cpu_seconds_an_episode": ours} | of_ours, NUMBERS | {"cpu_seconds_an_episode": peer})


def test_prompts_are_the_same_every_time_and_their_lengths_lie_within_a_quarter() -> None:
    rows = prompts(200, 32)
    assert rows == prompts(200, 32)
    assert {len(row) for row in rows} == set(range(24, 41))
    assert min(min(row) for row in rows) > EOS
    assert max(max(row) for row in rows) < VOCABULARY


def test_our_stage_reads_the_token_ids_that_the_peer_is_given(miniature: Path) -> None:
    from data.tokenize import encode_prompt
    from modeling.config import ModelConfig
    from modeling.load import load_tokenizer

    tokenizer = load_tokenizer(miniature / "sft" / "model", ModelConfig())
    read = [encode_prompt(tokenizer, prompt) for prompt in ppo_ours.read_prompts(miniature, 4)]
    assert read == [json.loads(line)["prompt_ids"] for line in (miniature / "prompts.jsonl").read_text().splitlines()]
    assert (tokenizer.eos_token_id, len(tokenizer)) == (EOS, VOCABULARY)


def test_eos_comes_once_in_so_many_tokens_wherever_in_the_text_and_nothing_else_stands_out(miniature: Path) -> None:
    """Other tokens than those the weights were set by. Early positions have a little less."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(miniature / "sft" / "model")
    ids = torch.randint(4, VOCABULARY, (4, 96), generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        probability = model(ids).logits.softmax(-1)
    often = probability[:, 24:, EOS]
    assert float(often.mean()) == pytest.approx(1 / 24, rel=0.05)
    assert float(often.std()) < 0.04 / 24
    probability[:, :, EOS] = 0
    assert float(probability.max()) < 50 / VOCABULARY
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


@pytest.mark.parametrize("adapter", ["none", "lora_top2"])
def test_ours_is_measured(miniature: Path, adapter: str) -> None:
    numbers = ppo_ours.measure(miniature, updates=2, batch=2, response_tokens=4, seed=0, adapter=adapter, profile=False)
    assert 0 < numbers["cpu_seconds_an_episode"] < 60
    assert numbers["peak_gib"] > numbers["loaded_gib"]
    assert numbers["episodes"] == 4
    assert 1 <= numbers["mean_response_tokens"] <= 4
    assert set(numbers["phases"]) == {"rollout", "score", "update"}
    assert all(seconds > 0 for seconds in numbers["phases"].values())


def test_lora_variants_adapt_the_layers_that_they_say(miniature: Path) -> None:
    from safetensors import safe_open

    for variant, layers in LORA_VARIANTS.items():
        with safe_open(str(miniature / f"reward_{variant}" / "adapter" / "adapter_model.safetensors"), "pt") as weights:
            adapted = {int(name.split("layers.")[1].split(".")[0]) for name in weights.keys()}  # noqa: SIM118
        assert adapted == set(range(6 - (layers or 6), 6)), variant


def test_the_peers_phases_and_responses_are_taken_from_its_own_calls() -> None:
    """Scoring calls count without gradients only: the same function makes the update's forward passes."""
    spent = {"n": 0.0}

    def clock(seconds: float, found: Any = None) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            spent["n"] += seconds
            return found

        return call

    rows = torch.tensor([[0, 9, 7, EOS, 5], [0, 9, 7, 8, 5], [0, 9, EOS, 8, EOS]])
    module = SimpleNamespace(batch_generation=clock(3.0, (rows, None)), get_reward=clock(1.0), forward=clock(0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.ppo_peer.time.process_time", lambda: spent["n"])
        watch = Watch(module)
        with torch.no_grad():
            ids, _ = module.batch_generation(None, rows[:, :2], 3, 0, None)
            module.get_reward(None)
            module.forward(None)
        module.forward(None)
    assert ids is rows
    assert watch.seconds == {"rollout": 3.0, "score": 1.5}
    assert (watch.lengths, watch.ended) == ([2, 3, 1], [True, False, True])


def test_each_round_measures_a_peer_once_and_ours_under_every_setting_on_the_same_models_and_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    def answer(who: str, command: list[str]) -> dict[str, Any]:
        asked.append(command)
        return NUMBERS | {"cpu_seconds_an_episode": float(len(asked)), "phases": {}, "profile": {}}

    monkeypatch.setattr(ppo, "ask", answer)
    bench = Bench("/models", Path("/peer/python"), 2, lambda line: None)
    measured = bench.compare(SETTINGS, rounds=2)
    sizes = ["--batch=64", "--response_tokens=64", "--updates=2"]
    expected = []
    for seed in (0, 1):
        for fixture, adapters in {"long": ["none", *LORA_VARIANTS], "ends_every_24": ["none"]}.items():
            expected.append(("/peer/python", "benchmarks.ppo_peer", [f"/models/{fixture}", *sizes, f"--seed={seed}"]))
            for adapter in adapters:
                expected.append(
                    (
                        None,
                        "benchmarks.ppo_ours",
                        [f"/models/{fixture}", f"--adapter={adapter}", *sizes, f"--seed={seed}"],
                    )
                )
    assert [(c[0] if "peer" in c[0] else None, c[c.index("-m") + 1], c[c.index("-m") + 2 :]) for c in asked] == expected
    assert list(measured) == ["full", "early", "lora_all", "lora_top3", "lora_top2"]
    assert [
        (one.ours["cpu_seconds_an_episode"], one.peer["cpu_seconds_an_episode"]) for one in measured["lora_top2"]
    ] == [(5, 1), (12, 8)]
    assert [(one.ours["cpu_seconds_an_episode"], one.peer["cpu_seconds_an_episode"]) for one in measured["early"]] == [
        (7, 6),
        (14, 13),
    ]


def test_the_headline_is_full_fine_tuning_in_episodes_a_second_and_memory_above_the_loaded_models() -> None:
    """0.5/0.25 and 2/0.5 seconds an episode within rounds; 0.5 and 2 of the peer's 1 GiB."""
    found = summary([a_round(0.25, 0.5, peak_gib=1.5), a_round(0.5, 2.0, peak_gib=3.0)])
    assert (found["ours"], found["peer"], found["ratio"], found["memory_ratio"]) == (3.0, 1.25, 3.0, 1.25)
    settings = {"full": found, "early": summary([a_round(0.25, 1.0, mean_response_tokens=22.5, ended=0.9)])}
    written = json.loads(json.dumps(report(settings, {"threads": 1})))
    assert {name: written[name] for name in ("ours", "peer", "ratio", "memory_ratio")} == {
        "ours": 3.0,
        "peer": 1.25,
        "ratio": 3.0,
        "memory_ratio": 1.25,
    }
    assert written["settings"]["early"]["ours_mean_response_tokens"] == 22.5
    assert written["settings"]["early"]["peer_ended"] == 0.0
    assert written["settings"]["full"]["rounds"][0]["ours"]["cpu_seconds_an_episode"] == 0.25
    assert [line.split() for line in table(written).splitlines()[1:]] == [
        ["full", "3.00", "1.25", "3.00", "1.25", "1.00", "1.25", "64.0", "64.0"],
        ["early", "4.00", "1.00", "4.00", "1.00", "1.00", "1.00", "22.5", "64.0"],
    ]


def test_a_profile_gives_each_phases_share_and_the_rate_beside_the_machines() -> None:
    looked_into = {
        "product_share": 0.75,
        "counted_gflop_an_episode": 10.0,
        "achieved_gflops": 60.0,
        "product_gflops": 80.0,
        "machine_gflops": 90.0,
    }
    side = {"phases": {"rollout": 1.0, "score": 1.0, "update": 2.0}} | looked_into
    lines = profile_table({"full": {"ours": side, "peer": side}}).splitlines()
    assert lines[1].split() == ["full", "ours", "25%", "25%", "50%", "75%", "10.0", "60.0", "80.0", "90.0"]
    assert lines[2].split()[1] == "peer"


def test_settings_on_the_same_models_share_a_fixture() -> None:
    assert Setting("full").fixture == Setting("lora_all", "lora_all").fixture
    assert Setting("early", ends_every=24).fixture != Setting("early", ends_every=12).fixture
