"""The report stage: what makes it run again, and the command that compares runs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stages.config import RunConfig
from stages.report import STAGE, compare
from stages.runner import RunFolder, adopt, run_stage


def test_a_result_of_a_stage_outside_the_pipeline_makes_the_report_again(tmp_path: Path) -> None:
    config = RunConfig(runs_folder=str(tmp_path), run_name="run")
    inputs = [STAGE.external(config)]
    for place in ("tax/tax.json", "sft_baseline/epochs.jsonl", "sweep_kl/sweep.json", "sweep_ptx/sweep.json"):
        (tmp_path / "run" / place).parent.mkdir(parents=True)
        for content in ("{}", "{ }"):
            (tmp_path / "run" / place).write_text(content)
            inputs.append(STAGE.external(config))
    assert all(one != other for number, one in enumerate(inputs) for other in inputs[:number])


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    sentence = f"error: {tmp_path} holds no results of a run: give run folders, such as runs/demo\n"
    assert capsys.readouterr().err == sentence
    assert not (tmp_path / "out").exists()


def test_runs_are_compared_with_the_options_first_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.report", "--out", str(tmp_path / "out"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "holds no results of a run" in done.stderr) == (2, True)


def test_a_report_with_another_runs_name_is_not_taken_over(tmp_path: Path) -> None:
    stage = replace(STAGE, after=(), work=lambda config, run, out: {})
    one, other = (RunConfig(runs_folder=str(tmp_path), run_name=name) for name in ("one", "other"))
    run_stage(stage, one)
    adopt(stage, other, RunFolder(tmp_path / "one"))
    assert not (tmp_path / "other" / "report").exists()
