"""What a user sees who made a mistake: one sentence on stderr and exit code 2, never a traceback.

The commands run side by side, as most of them import torch.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parents[2]
GOOD = {"prompt": "Why?", "completion": "Because."}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str, Path]]]:
    """Case to (exit code, stderr, folder of the runs)."""
    folder = tmp_path_factory.mktemp("errors")
    (folder / "bad.jsonl").write_text(f'{json.dumps(GOOD)}\n{{"prompt": "How?", "compleetion": "So."}}\n')
    (folder / "in_use").mkdir()
    cases = {
        "unknown key": ["stages.pipeline", "--ppo.kl_coeff", "1"],
        "contradiction": ["stages.ppo", "--ppo.minibatch_size", "7"],
        "bad row": ["stages.data", "--data.demonstrations", f"[{folder / 'bad.jsonl'}]"],
        "no model": ["stages.data", "--model.base", str(folder / "no-such-model")],
        "no earlier stage": ["stages.reward"],
        "in use": ["stages.report"],
    }
    started = {}
    with FileLock(folder / "in_use" / ".lock"):
        for case, (module, *arguments) in cases.items():
            place = ["--runs_folder", str(folder), "--run_name", case.replace(" ", "_")]
            command = [sys.executable, "-m", module, "--config", "configs/smoke.yaml", *place, *arguments]
            started[case] = subprocess.Popen(
                command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        yield {
            case: (process.wait(timeout=120), process.stderr.read() if process.stderr else "", folder)
            for case, process in started.items()
        }


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
