"""What all measurements beside a peer have in common.

pytest tests/benchmarks/test_compare.py
"""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare import MeasurementError, Round, aligned, ask, memory, peer_command, run


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "raise ValueError('no such thing')",
            "the peer could not be measured (exit status 1): ValueError: no such thing",
        ),
        ("print('hello')", "the peer printed no numbers: hello"),
        ("", "the peer printed no numbers: nothing at all"),
    ],
)
def test_a_measurement_that_fails_says_so_in_a_sentence(program: str, message: str) -> None:
    with pytest.raises(MeasurementError) as raised:
        ask("the peer", [sys.executable, "-c", program])
    assert str(raised.value) == message


@pytest.mark.parametrize("name", ["reward", "ppo"])
def test_a_missing_environment_is_said_in_a_sentence(name: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{name}",
        "--peer_python",
        str(tmp_path / "python"),
        "--out",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr == f"error: {tmp_path / 'python'} is not there: `make bench-{name}` makes the peer's environment\n"
    )
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("name", ["reward", "ppo"])
def test_a_peer_starts_with_nothing_but_the_standard_library(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its environment has none of the project's packages, and nobody's PYTHONPATH may lend it any."""
    (tmp_path / "json.py").write_text("raise ImportError('from PYTHONPATH')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "FIXTURE" in run("the peer", [*peer_command(Path(sys.executable), f"{name}_peer"), "--help"]).upper()
    program = (
        f"import sys, benchmarks.{name}_peer; print(sorted({{'torch', 'transformers', 'modeling', 'data'}} & "
        "set(sys.modules)))"
    )
    assert run("the peer", [sys.executable, "-E", "-c", program]).strip() == "[]"


def test_memory_is_compared_within_rounds_whole_and_above_what_was_loaded() -> None:
    rounds = [
        Round({"peak_gib": 2.0, "loaded_gib": 1.0}, {"peak_gib": 4.0, "loaded_gib": 0.0}),
        Round({"peak_gib": 3.0, "loaded_gib": 1.0}, {"peak_gib": 3.0, "loaded_gib": 1.0}),
    ]
    assert memory(rounds) == {
        "ours_peak_gib": 2.5,
        "peer_peak_gib": 3.5,
        "peak_ratio": 0.75,
        "ours_above_loaded_gib": 1.5,
        "peer_above_loaded_gib": 3.0,
        "above_loaded_ratio": 0.625,
    }


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned([("", "ours"), ("full", "1.5")]) == "      ours\nfull   1.5"
