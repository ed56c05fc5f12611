"""What a user sees who made a mistake: one sentence on stderr and exit code 2, never a traceback.

Mistakes that are found before torch is imported are made in commands of their own, the others in this process.
"""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from stages import data, report, reward
from stages.config import RunConfig
from stages.errors import explain
from stages.runner import Stage, main, run_stage

HERE = Path(__file__).parents[2]
GOOD = {"prompt": "Why?", "completion": "Because."}


def told(stage: Stage, arguments: list[str]) -> tuple[int, str]:
    """(exit code, stderr) of a stage's command line."""

    def work(config: RunConfig, force: bool) -> None:
        run_stage(stage, config, force)

    with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as stopped:
        main(work, "stages.x", "", arguments)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, said.getvalue()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, Path]]:
    """Case to (exit code, stderr, folder of the runs)."""
    folder = tmp_path_factory.mktemp("errors")
    (folder / "bad.jsonl").write_text(f'{json.dumps(GOOD)}\n{{"prompt": "How?", "compleetion": "So."}}\n')
    (folder / "in_use").mkdir()

    def given(case: str, *more: str) -> list[str]:
        place = ["--runs_folder", str(folder), "--run_name", case.replace(" ", "_")]
        return ["--config", str(HERE / "configs" / "smoke.yaml"), *place, *more]

    commands = {
        "unknown key": ["stages.pipeline", "--ppo.kl_coeff", "1"],
        "contradiction": ["stages.ppo", "--ppo.minibatch_size", "7"],
        "no model": ["stages.data", "--model.base", str(folder / "no-such-model")],
    }
    found = {}
    for case, (module, *arguments) in commands.items():
        command = [sys.executable, "-m", module, *given(case, *arguments)]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120)
        found[case] = done.returncode, done.stderr
    found["bad row"] = told(data.STAGE, given("bad row", "--data.demonstrations", f"[{folder / 'bad.jsonl'}]"))
    found["no earlier stage"] = told(reward.STAGE, given("no earlier stage"))
    with FileLock(folder / "in_use" / ".lock"):
        found["in use"] = told(report.STAGE, given("in use"))
    return {case: (code, stderr, folder) for case, (code, stderr) in found.items()}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("unknown key", "unknown key 'ppo.kl_coeff', did you mean 'ppo.kl_coef'?"),
        ("contradiction", "ppo.minibatch_size=7 does not divide ppo.batch_size=16"),
        ("bad row", "bad.jsonl:2: unknown key 'compleetion', did you mean 'completion'?"),
        ("no model", "no-such-model"),
        ("no earlier stage", "data holds no finished result: run `make data` first"),
        ("in use", "in use by another process"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_exit_code_2(
    answers: dict[str, tuple[int, str, Path]], case: str, said: str
) -> None:
    code, error, _ = answers[case]
    assert code == 2, error
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    assert error.endswith("\n")
    assert said in error


def test_a_mistake_leaves_no_result_and_keeps_its_traceback_for_whoever_wants_it(
    answers: dict[str, tuple[int, str, Path]],
) -> None:
    runs = answers["bad row"][2] / "bad_row"
    assert not (runs / "data").exists()
    assert "Traceback" in (runs / "last_error.txt").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be", "out of memory (CUDA error: out of memory"),
        (
            "CUDA error: all CUDA-capable devices are busy or unavailable",
            "the GPU cannot be used: CUDA error: all",
        ),
        ("CUDA error: no kernel image is available for execution on the device", "the GPU cannot be used: CUDA error"),
    ],
)
def test_a_gpu_that_is_full_busy_or_unsupported_is_no_bug(words: str, sentence: str) -> None:
    said, code = explain(torch.AcceleratorError(words))
    assert code == 2
    assert said.startswith(sentence)
