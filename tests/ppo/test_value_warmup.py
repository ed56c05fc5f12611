"""Iterations that train only the value model (`ppo.value_warmup_iterations`)."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling.tracking import read_metrics
from tests.ppo.conftest import Chain, small
from tests.ppo.test_interrupt import results, run, send_in


def weights_of(out: Path, iteration: int, group: str) -> dict[str, torch.Tensor]:
    """The weights of a group in a checkpoint."""
    files = (out / "checkpoints" / f"checkpoint-{iteration:08d}" / "state").glob("*.safetensors")
    saved = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {name.removeprefix(f"{group}/"): saved[name] for name in saved if name.startswith(f"{group}/")}


def test_only_the_value_model_changes_during_its_warm_up(chains: Callable[[str], Chain], tmp_path: Path):
    chain = chains("lora")
    models = chain.models()
    starts = {
        name: {key: weight.detach().clone() for key, weight in weights.items()}
        for name, weights in (("policy", models.policy_parameters), ("value", models.value_parameters))
    }
    config = small(value_warmup_iterations=2, warmup_iterations=4, total_episodes=24, keep_checkpoints=5, ptx_coef=1.0)
    chain.trainer(tmp_path, config, models).train()

    def moved(iteration: int, name: str, start: str) -> bool:
        saved = weights_of(tmp_path, iteration, name)
        return not all(torch.equal(saved[key], weight) for key, weight in starts[start].items())

    for iteration in (1, 2, 3):
        assert moved(iteration, "value", "value")
        assert moved(iteration, "policy", "policy") == moved(iteration, "average", "policy") == (iteration == 3)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    # The policy's warm-up starts at a tenth in the third iteration.
    assert [row["learning_rate"] for row in rows] == [0, 0, pytest.approx(1e-3)]
    assert ["policy_loss" in row for row in rows] == ["ptx_loss" in row for row in rows] == [False, False, True]


def test_the_first_iteration_after_warm_up_equals_that_of_a_run_started_from_this_value_model(
    chains: Callable[[str], Chain], tmp_path: Path
):
    chain, warm = chains("lora"), 2
    first = chain.models()
    chain.trainer(tmp_path / "a", small(value_warmup_iterations=warm, total_episodes=24), first).train()
    second = chain.models()
    saved = weights_of(tmp_path / "a", warm, "value")
    with torch.no_grad():
        for name, weight in second.value_parameters.items():
            weight.copy_(saved[name])
    trainer = chain.trainer(tmp_path / "b", small(total_episodes=24), second)
    trainer.progress.iteration = warm
    trainer.prompts.take(warm * 8)
    trainer.train()
    for name, weight in first.policy_parameters.items():
        assert torch.equal(weight, second.policy_parameters[name]), name
    rows = [read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("a", "b")]
    assert rows[0]["value_mean"] == rows[1]["value_mean"]


def test_a_run_stopped_during_warm_up_resumes_to_the_same_bytes(
    chains: Callable[[str], Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chain = chains("lora")
    torch.manual_seed(123)
    run(chain, tmp_path / "whole", value_warmup_iterations=2)
    with monkeypatch.context() as patch:
        send_in(patch, "generate", 2, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="after 1 of 3"):
            run(chain, tmp_path / "cut", value_warmup_iterations=2)
    run(chain, tmp_path / "cut", value_warmup_iterations=2)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "checkpoint-00000001")
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_a_warm_up_that_leaves_the_policy_no_iteration_is_refused():
    with pytest.raises(ValueError, match="value_warmup_iterations=2 must be below the 2 iterations"):
        small(value_warmup_iterations=2).validate()
