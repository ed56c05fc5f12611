"""The tutorial's example of PPO from Python."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.ppo.conftest import Chain

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


def test_the_python_quickstart_runs(
    chains: Callable[[str], Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the models of a tiny run in place of `runs/mine`."""
    chain = chains("none")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for name, folder in (("sft", chain.sft), ("reward", chain.reward)):
        (tmp_path / "runs" / "mine" / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    section = TUTORIAL.read_text().split("## The same from Python")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(code, "tutorial.md", "exec"), {})
    assert len((tmp_path / "runs" / "quickstart" / "metrics.jsonl").read_text().splitlines()) == 2
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "quickstart" / "model")
