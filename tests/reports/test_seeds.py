"""The table of several runs' reward models.

pytest tests/evaluation/test_seeds.py
"""

import json
from pathlib import Path

import pytest

from reports.seeds import main, table


def made_run(root: Path, seed: int, accuracy: float, likelihood: float | None) -> Path:
    """A run folder with just what the table reads."""

    def found(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 90}

    baselines = {name: {"accuracy": found(0.5)} for name in ("longest", "shortest", "random")}
    if likelihood is not None:
        baselines["sft_likelihood"] = {"accuracy": found(likelihood)}
    test = {
        "accuracy": found(accuracy), "best_vs_worst": None, "baselines": baselines, "prompts": 30, "pairs": 1234,
        "score_std": 0.8,
        "calibration": {"expected_calibration_error": 0.04},
    }  # fmt: skip
    folder = root / f"seed{seed}" / "reward"
    folder.mkdir(parents=True)
    (folder / "accuracy.json").write_text(json.dumps({"test": test}))
    manifest = {"seed": seed, "headline": {"train_prompts": 100}, "cpu_seconds": 1234.5, "peak_memory_gib": 2.34}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder.parent


def test_every_run_is_a_column_and_each_counts_once_in_the_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [made_run(tmp_path, 0, 0.6, 0.55), made_run(tmp_path, 3, 0.7, None)]
    lines = table(runs).splitlines()
    assert lines[0] == "| Held-out accuracy, 95% interval | mean | seed 0 | seed 3 |"
    assert lines[1] == "| --- | --- | --- | --- |"
    assert "| **reward model** | 65.0% | 60.0% (55.0% to 65.0%) | 70.0% (65.0% to 75.0%) |" in lines
    assert "| SFT likelihood | 55.0% | 55.0% (50.0% to 60.0%) | – |" in lines
    assert "| CPU seconds of the stage |  | 1,234 | 1,234 |" in lines
    assert not any("against worst" in line or "a token" in line for line in lines)
    assert all(line.count("|") == 5 for line in lines)
    main([str(run) for run in runs])
    assert capsys.readouterr().out.splitlines() == lines


def test_a_run_without_a_finished_reward_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'reward'} holds no finished reward model\n"
