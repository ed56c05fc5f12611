"""Comparisons with a peer: commands, ratios, load of the machine. No peer runs here.

pytest tests/benchmarks/test_compare.py
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, ppo, reward, scale
from benchmarks.compare import Benchmark, MeasurementError, ask, measure, run

NUMBERS: dict[str, Any] = {
    "items": 10,
    "cpu_seconds": 5.0,
    "wall_seconds": 5.0,
    "peak_gib": 2.0,
    "above_loaded_gib": 1.0,
    "above_libraries_gib": 1.0,
    "between_phases_gib": 0.5,
    "optimizer_steps": 16,
    "response_tokens": 64.0,
    "ended": 0.0,
    "layout": "",
    "versions": {},
}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "raise ValueError('no such thing')",
            "the peer could not be measured (exit code 1): ValueError: no such thing",
        ),
        ("print('hello')", "the peer printed no numbers: hello"),
        ("", "the peer printed no numbers: nothing"),
    ],
)
def test_a_failed_measurement_is_reported_in_a_sentence(program: str, message: str) -> None:
    with pytest.raises(MeasurementError) as raised:
        ask("the peer", [sys.executable, "-c", program])
    assert str(raised.value) == message


def test_a_missing_environment_is_reported_in_a_sentence(tmp_path: Path) -> None:
    flags = ["--peer_python", str(tmp_path / "python"), "--out", str(tmp_path / "out.json")]
    command = [sys.executable, "-m", "benchmarks.ppo", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {tmp_path / 'python'} is missing: `make bench-ppo` creates it\n",
    )
    assert not (tmp_path / "out.json").exists()


def test_a_peer_starts_with_nothing_but_the_standard_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its environment has none of the project's packages, and PYTHONPATH must not add any."""
    (tmp_path / "json.py").write_text("raise ImportError('from PYTHONPATH')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = ppo.BENCHMARK.settings["full"][1].command(Path(sys.executable), "/models")
    assert start[start.index("-m") + 1] == "benchmarks.peers"
    program = "import sys, benchmarks.peers; print(sorted({'torch', 'trl', 'modeling', 'data'} & set(sys.modules)))"
    assert run("the peer", [*start[: start.index("-m")], "-c", program]).strip() == "[]"


@pytest.mark.parametrize("benchmark", [reward.BENCHMARK, ppo.BENCHMARK, scale.BENCHMARK], ids=lambda b: b.name)
def test_both_sides_are_given_the_same_data(benchmark: Benchmark) -> None:
    for name, (ours, peer) in benchmark.settings.items():
        assert replace(ours.work, **{"adapter": "none"} if name == "lora" else {}) == peer.work, name


def test_a_round_runs_each_program_once_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, int]] = []

    def answer(who: str, command: Sequence[str]) -> dict[str, Any]:
        work = json.loads(command[-1])
        asked.append((who, Path(work["models"]).name, work["seed"]))
        return NUMBERS | {"items": len(asked)}

    monkeypatch.setattr(compare, "ask", answer)
    monkeypatch.setattr(compare, "run", lambda *_: "")
    found = measure(ppo.BENCHMARK, ["full", "early", "lora"], rounds=2, peer_python=Path("python"))
    one = [("trl", "long"), ("ours", "long"), ("trl", "early"), ("ours", "early"), ("ours", "long")]
    assert asked == [(*program, seed) for seed in (0, 1) for program in one]
    assert [(one["ours"]["items"], one["peer"]["items"]) for one in found["lora"]["rounds"]] == [(5, 1), (10, 6)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer_steps": 2}, "ppo_sharded: the two sides took 2 and 16 optimizer steps"),
        ({"layout": "2 processes, models replicated"}, "not as '2 processes, models sharded'"),
    ],
)
def test_other_work_than_intended_is_refused(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    """trl ignores num_mini_batches under gradient accumulation, and some launchers silently replicate or start one."""

    def answer(who: str, _: Sequence[str]) -> dict[str, Any]:
        layout = "1 process, models whole" if who == "1 process" else "2 processes, models sharded (FSDP2)"
        return NUMBERS | {"layout": layout} | (wrong if who != "1 process" else {})

    monkeypatch.setattr(compare, "ask", answer)
    monkeypatch.setattr(compare, "run", lambda *_: "")
    with pytest.raises(MeasurementError, match=message.replace("(", "\\(")):
        measure(scale.BENCHMARK, ["ppo_sharded"], rounds=1, peer_python=Path("python"))


def test_ratios_are_taken_within_rounds() -> None:
    """Round 2 ran on a busy machine: 8/4 and 30/10, not the quotient of medians, 19/7."""
    rounds = [
        (NUMBERS | {"cpu_seconds": 4.0, "peak_gib": 1.0}, NUMBERS | {"cpu_seconds": 8.0, "peak_gib": 2.0}),
        (NUMBERS | {"cpu_seconds": 10.0, "peak_gib": 1.5}, NUMBERS | {"cpu_seconds": 30.0, "peak_gib": 2.0}),
    ]
    found = reward.BENCHMARK.summary(rounds)
    assert (found["ours"], found["ratio"], found["memory_ratio"]) == ((10 / 4 + 10 / 10) / 2, 2.5, 0.625)
    line = reward.BENCHMARK.table({"k9": found}).splitlines()[1].split()
    assert line == ["k9", "1.75", "0.79", "2.50", "1.25", "2.00", "0.62"]


def test_the_report_begins_with_the_headline_and_says_when_the_machine_was_busy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {name: scale.BENCHMARK.summary([(NUMBERS, NUMBERS)]) for name in scale.BENCHMARK.settings}
    monkeypatch.setattr(compare, "measure", lambda *_: settings)
    for average, busy in ((0.4, False), (0.6, True)):
        monkeypatch.setattr(compare.os, "getloadavg", lambda average=average: (average, 9.0, 9.0))
        monkeypatch.setattr(sys, "argv", ["scale", "--out", str(tmp_path / "scale.json")])
        compare.main(scale.BENCHMARK, "")
        written = json.loads((tmp_path / "scale.json").read_text())
        assert list(written)[:4] == ["ours", "peer", "ratio", "memory_ratio"]
        assert (written["ratio"], written["busy"], written["load_average_at_start"]) == (1.0, busy, average)
        assert written["settings"]["reward_sharded"]["ours_between_phases_gib"] == 0.5
        assert ("the machine was busy" in capsys.readouterr().out) == busy
