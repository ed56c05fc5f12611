"""Fingerprints: no stage reads a setting or an earlier result that its fingerprint leaves out.

pytest tests/stages/test_fingerprints.py
"""

import ast
import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from stages.config import RunConfig
from stages.runner import STAGES, RunFolder, prepare

HERE = Path(__file__).parents[2]


def chains(source: str) -> set[str]:
    """Dotted names that a stage's file reads of `config`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id == "config":
            found.add(".".join(reversed(parts)))
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found) or "." not in name} - {
        ""
    }


@pytest.mark.parametrize("name", STAGES)
def test_no_stage_reads_configuration_that_its_fingerprint_leaves_out(name: str) -> None:
    stage = importlib.import_module(f"stages.{name}").STAGE
    assert stage.name == name
    harmless = {"tracking", "ppo.monitors", "ppo.checkpoint_every", "ppo.keep_checkpoints"}
    harmless |= {"sft.checkpoint_minutes", "reward.checkpoint_minutes"}
    unhashed = ("api_key_env", "concurrency", "timeout", "max_retries", "cache")
    harmless |= {f"{section}.llm.{name}" for section in ("evaluate", "labels") for name in unhashed}
    harmless |= {f"{stage}.activation_checkpointing" for stage in ("sft", "reward", "ppo")}
    harmless |= {"ppo.max_tokens_per_micro_batch", "ppo.rollout_batch_size", "reward.max_tokens_per_micro_batch"}
    harmless |= {"sft.micro_batch_size"}
    assert set(stage.hash_exclude) <= harmless, "nothing else leaves a result as it is, but for rounding"
    known = {*stage.sections, *stage.hash_exclude, "seed", "run_name", "runs_folder"}
    read = chains((HERE / "stages" / f"{name}.py").read_text())
    whole = {chain for chain in read if not any(other.startswith(f"{chain}.") for other in read)}
    missing = {chain for chain in whole if not any(chain == part or chain.startswith(f"{part}.") for part in known)}
    assert not missing


@pytest.mark.parametrize(
    ("name", "setting"),
    [("sft", "micro_batch_size"), ("reward", "max_tokens_per_micro_batch"), ("ppo", "max_tokens_per_micro_batch")],
)
def test_a_run_that_was_out_of_memory_may_resume_with_smaller_micro_batches(
    name: str, setting: str, tmp_path: Path
) -> None:
    stage = replace(importlib.import_module(f"stages.{name}").STAGE, after=(), external=lambda config: {})
    config, resumed = RunConfig(), []
    for size in (64, 32):
        setattr(getattr(config, name), setting, size)
        resumed.append(prepare(stage, config, RunFolder(tmp_path), force=False).resumed)
    assert resumed == [False, True]


@pytest.mark.parametrize("name", STAGES)
def test_no_stage_reads_a_result_that_its_fingerprint_leaves_out(name: str) -> None:
    stage = importlib.import_module(f"stages.{name}").STAGE
    named = {
        node.args[0].value
        for node in ast.walk(ast.parse((HERE / "stages" / f"{name}.py").read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "stage"
        if node.args and isinstance(node.args[0], ast.Constant)
    }
    assert named <= {*stage.after, name}
    assert all(STAGES.index(earlier) < STAGES.index(name) for earlier in stage.after)
