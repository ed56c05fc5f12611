"""Idle threads sleep when other work runs on the cores, unless the user has set a policy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import threads

HERE = Path(__file__).parents[2]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp and /proc/stat")


@linux
@pytest.mark.parametrize(
    ("environment", "arguments", "busy", "chosen"),
    [
        ({}, [], 1.5, "PASSIVE"),
        ({}, [], 0.1, None),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, [], 1.5, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "1000"}, [], 1.5, None),
        ({"KMP_BLOCKTIME": "0"}, [], 1.5, None),
        ({"OMP_NUM_THREADS": "1"}, [], 1.5, None),
        ({"OMP_NUM_THREADS": "2"}, [], 1.5, "PASSIVE"),
        ({"LOCAL_WORLD_SIZE": "2"}, [], 1.5, None),
        ({}, ["--help"], 1.5, None),
    ],
)
def test_the_choice(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    arguments: list[str],
    busy: float,
    chosen: str | None,
) -> None:
    for name in [name for name in os.environ if name.startswith((*threads.OWN_SETTINGS, "OMP_", "LOCAL_WORLD_SIZE"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["-m", *arguments])
    monkeypatch.setattr(threads, "has_gpu", lambda environment: False)
    threads.choose_wait_policy(lambda: (busy, 2))
    assert os.environ.get("OMP_WAIT_POLICY") == chosen
    said = capsys.readouterr().out
    considered = chosen == "PASSIVE" or (environment, arguments) == ({}, [])
    assert said.count("\n") == considered, "one line where there was something to choose"
    assert not said or f"other processes keep {busy} of 2 cores busy" in said
    assert ("PASSIVE" in said) == (chosen == "PASSIVE")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


@linux
def test_nothing_is_set_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, "GPUS", (str(tmp_path),))
    assert threads.has_gpu({})
    assert not threads.has_gpu({"CUDA_VISIBLE_DEVICES": ""})
    assert threads.has_gpu({"CUDA_VISIBLE_DEVICES": "0"})


@linux
def test_a_stage_chooses_before_it_imports_anything_and_a_library_import_does_not() -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_", "LOCAL_"))
    }
    environment["CUDA_VISIBLE_DEVICES"] = ""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        as_command = subprocess.run(
            [sys.executable, "-m", "stages.ranks"], cwd=HERE, env=environment, capture_output=True, text=True
        )
        as_library = subprocess.run(
            [sys.executable, "-c", "import stages, sys; print('torch' in sys.modules)"],
            cwd=HERE,
            env=environment,
            capture_output=True,
            text=True,
        )
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert as_command.stdout.startswith("threads: OMP_WAIT_POLICY=PASSIVE, because other processes keep"), (
        as_command.stderr
    )
    assert as_library.stdout == "False\n"
