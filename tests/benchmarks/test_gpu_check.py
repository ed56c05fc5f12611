"""The GPU check, as far as it runs on a CPU: what it measures, what it reports, and its exit code without a GPU.

pytest tests/benchmarks/test_gpu_check.py
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import COMMANDS, Size, check, main, measure
from stages.config import parse_config

TINY = Size(layers=2, hidden=64, vocabulary=50, prompts=3, prompt_tokens=5, new_tokens=4, steps=1)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_model_compared_with_itself_has_kl_zero_and_speeds_are_measured(dtype: torch.dtype | None) -> None:
    found = measure(TINY, torch.device("cpu"), dtype)
    assert found["KL of SFT to itself, nats per response"] == 0.0
    assert found["decoding against scoring, nats per token"] < (1e-5 if dtype is None else 0.05)
    assert min(found["generated tokens per second"], found["trained tokens per second"]) > 0


def test_the_report_has_every_outcome_and_one_failure_fails_the_check(tmp_path: Path) -> None:
    commands = {"good": ["-c", "print('fine')"], "bad": ["-c", "print('a\\rb'); raise SystemExit(3)"]}
    assert not check(torch.device("cpu"), TINY, commands, tmp_path / "runs" / "report.md")
    text = (tmp_path / "runs" / "report.md").read_text()
    for part in ("## good: passed", "fine", "## bad: FAILED", "exit code 3\nb\n", f"| torch | {version('torch')} |"):
        assert part in text
    assert check(torch.device("cpu"), TINY, {"good": commands["good"]}, tmp_path / "report.md")


@pytest.mark.parametrize(("room", "line"), [(1, "prompts=1"), (0, "OutOfMemoryError: no room")])
def test_a_small_gpu_gets_a_smaller_batch_and_a_failure_keeps_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: int, line: str
) -> None:
    def limited(size: Size, *about: Any) -> dict[str, float]:
        if size.prompts > room:
            raise torch.OutOfMemoryError("no room")
        return measure(size, *about)

    monkeypatch.setattr(gpu_check, "measure", limited)
    assert check(torch.device("cpu"), TINY, {"good": ["-c", "print('fine')"]}, tmp_path / "report.md") == bool(room)
    text = (tmp_path / "report.md").read_text()
    assert "## good: passed" in text
    assert line in text
    assert f"torch.float32: {'passed' if room else 'FAILED'}\n" in text


def test_its_commands_are_valid() -> None:
    pytest_arguments, stage_arguments = COMMANDS.values()
    assert Path(pytest_arguments[-1]).is_dir()
    config, options = parse_config("pipeline", "", stage_arguments[2:])
    assert (config.model.device, options) == ("auto", {"force": True})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 2
    assert capsys.readouterr().err == "error: gpu-check needs an NVIDIA GPU, and torch finds none\n"
