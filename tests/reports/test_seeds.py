"""The tables of several runs."""

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


def test_headline_numbers_get_their_mean_and_spread_over_the_seeds_that_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for seed, rate, against in ((0, 0.5, None), (1, 0.6, 0.4)):
        folder = tmp_path / f"seed{seed}" / "evaluate"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"seed": seed}))
        numbers = {"win_rate": rate, "win_rate_low": rate - 0.1, "win_rate_high": rate + 0.1, "kl": 2.0 + seed}
        numbers["reward_above_best_baseline"] = 0.05 - seed / 10
        (folder / "headline.json").write_text(json.dumps(numbers | {"win_rate_vs_best_of_n": against}))
        runs.append(str(folder.parent))
    main(["--headline", *runs])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| 95% interval | mean | standard deviation | seed 0 | seed 1 |"
    rate = "| 55.0% | 7.1% | 50.0% (40.0% to 60.0%) | 60.0% (50.0% to 70.0%) |"
    assert f"| **win rate of PPO against SFT** {rate}" in lines
    assert "| win rate of PPO against best-of-n from SFT | 40.0% | – | – | 40.0% |" in lines
    assert "| the difference, percentage points | 0.0 | 7.1 | +5.0 | -5.0 |" in lines
    assert "| KL to SFT, nats | 2.50 | 0.707 | 2.00 | 3.00 |" in lines
    assert "| explained variance of the value model | – | – | – | – |" in lines


def test_a_run_without_a_finished_reward_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'reward'} holds no finished reward model\n"
