"""Interrupted stages resume, and incomplete results are never used.

pytest tests/stages/test_unfinished.py
"""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages import manifest
from stages.config import RunConfig
from stages.runner import RunFolder, Stage, run_stage
from tests.cuts import Cut, cut_at
from tests.stages.working import Work, first, second


def test_an_interrupted_forced_run_is_resumed_without_force(config: RunConfig, root: Path) -> None:
    work = Work()
    run_stage(first(work), config)
    with pytest.raises(ValueError, match="it broke"):
        run_stage(first(Work(fails=True)), config, force=True)
    run_stage(first(work), config)
    assert work.found == [[], ["half.txt"]]
    run_stage(first(work), config)
    assert work.times == 2


def test_a_failed_stage_leaves_no_result(config: RunConfig, root: Path) -> None:
    with pytest.raises(ValueError, match="it broke"):
        run_stage(first(Work(fails=True)), config)
    assert not (root / "data").exists()
    assert manifest.read(root / "data.partial") is None
    with pytest.raises(ValueError, match="data holds no finished result"):
        run_stage(second(Work()), config)


def test_a_failed_stage_keeps_the_earlier_result(config: RunConfig, root: Path) -> None:
    run_stage(first(Work()), config)
    before = {path.name: path.read_bytes() for path in (root / "data").iterdir()}
    config.data.max_prompt_tokens = 7
    with pytest.raises(ValueError, match="it broke"):
        run_stage(first(Work(fails=True)), config)
    assert {path.name: path.read_bytes() for path in (root / "data").iterdir()} == before
    run_stage(first(Work(lambda config, run: "new")), config)
    assert sorted(path.name for path in (root / "data").iterdir()) == ["made.txt", "manifest.json"]
    assert (root / "data" / "made.txt").read_text() == "new"


def test_an_interrupted_stage_resumes_in_its_partial_folder(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="it broke"):
        run_stage(first(Work(fails=True)), config)
    capsys.readouterr()
    work = Work()
    run_stage(first(work), config)
    assert work.found == [["half.txt"]]
    assert "data: running" in capsys.readouterr().out, "the stage has nothing to resume from"


def test_a_stage_says_that_it_resumes_where_its_scratch_is(
    config: RunConfig, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="it broke"):
        run_stage(first(Work(fails=True), scratch=("checkpoints",)), config)
    (root / "data.partial" / "checkpoints" / "one").mkdir(parents=True)
    capsys.readouterr()
    run_stage(first(Work(), scratch=("checkpoints",)), config)
    assert "data: resuming" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["config", "input"])
def test_a_partial_folder_of_other_inputs_is_removed(config: RunConfig, root: Path, change: str) -> None:
    run_stage(first(Work()), config)
    with pytest.raises(ValueError, match="it broke"):
        run_stage(second(Work(fails=True)), config)
    if change == "config":
        config.sft.epochs = 7
    else:
        (root / "data" / "made.txt").write_text("something else")
    work = Work()
    run_stage(second(work), config)
    assert work.found == [[]]


@pytest.mark.parametrize("force", [False, True])
def test_checkpoints_of_another_configuration_are_not_deleted_without_force(
    config: RunConfig, root: Path, force: bool
) -> None:
    stage = replace(first(Work()), scratch=("checkpoints",))
    kept = root / "data.partial" / "checkpoints" / "checkpoint-00000002"
    kept.mkdir(parents=True)
    (root / "data.partial" / "fingerprint").write_text("another")
    if force:
        run_stage(stage, config, force=True)
        return
    with pytest.raises(ValueError, match="holds the checkpoints of an interrupted run with another configuration"):
        run_stage(stage, config)
    assert kept.is_dir()


def test_the_settings_and_inputs_of_an_interrupted_run_are_named(config: RunConfig, root: Path) -> None:
    inputs = {"rows.jsonl": "1a2b"}
    stage = replace(first(Work(fails=True)), scratch=("checkpoints",), external=lambda config: dict(inputs))
    with pytest.raises(ValueError, match="it broke"):
        run_stage(stage, config)
    (root / "data.partial" / "checkpoints" / "checkpoint-00000002").mkdir(parents=True)
    salt, config.data.split_salt = config.data.split_salt, "other"
    with pytest.raises(ValueError, match=rf'an interrupted run with other settings \(data\.split_salt="{salt}"\): to'):
        run_stage(stage, config)
    inputs["rows.jsonl"] = "3c4d"
    with pytest.raises(ValueError, match=rf'other settings \(data\.split_salt="{salt}"\) and other inputs: to resume'):
        run_stage(stage, config)
    config.data.split_salt = salt
    with pytest.raises(ValueError, match="an interrupted run with other inputs: to resume"):
        run_stage(stage, config)


def test_the_inputs_of_an_interrupted_stage_are_not_replaced(config: RunConfig, root: Path) -> None:
    again = Work()
    run_stage(first(Work()), config)
    (root / "ppo.partial" / "checkpoints" / "checkpoint-00000002").mkdir(parents=True)
    run_stage(first(again), config)
    config.data.split_salt = "other"
    with pytest.raises(ValueError, match=r"data would run again.*ppo\.partial holds the checkpoints"):
        run_stage(first(again), config)
    assert again.times == 0
    run_stage(first(again), config, force=True)
    assert again.times == 1


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("ppo.partial/checkpoints", "ppo"),
        ("sweep_kl/seed-0.partial/checkpoints", "sweep-kl"),
        ("sft_baseline_epochs.partial/trainer", "sft_baseline"),
    ],
)
def test_a_stage_that_others_need_is_replaced_once_those_are_finished(
    config: RunConfig, root: Path, place: str, command: str
) -> None:
    run_stage(first(Work()), config)
    (root / place / "checkpoint-2").mkdir(parents=True)
    config.data.split_salt = "other"
    with pytest.raises(ValueError, match=f"finish that run with `make {command}` and its own settings"):
        run_stage(first(Work()), config)
    shutil.rmtree(root / place)
    assert run_stage(first(Work()), config) == {"number": 1}


def test_every_interrupted_run_is_named_but_no_point_that_a_sweep_lists_as_stopped(
    config: RunConfig, root: Path
) -> None:
    run_stage(first(Work()), config)
    for name in ("ppo", "sweep_ptx/gamma-0-seed-0", "sweep_ptx/gamma-0.5-seed-0"):
        for step in (1, 2):
            (root / f"{name}.partial" / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    (root / "sweep_ptx" / "sweep.json").write_text(json.dumps({"stopped": {"gamma-0.5-seed-0": "the KL"}}))
    config.data.split_salt = "other"
    with pytest.raises(ValueError, match="interrupted runs that need the present result") as refused:
        run_stage(first(Work()), config)
    assert f"but {root}/ppo.partial, {root}/sweep_ptx/gamma-0-seed-0.partial hold the checkpoints" in str(refused.value)
    assert "with `make ppo` and `make sweep-ptx` and their own settings" in str(refused.value)
    for name in ("ppo", "sweep_ptx/gamma-0-seed-0"):
        shutil.rmtree(root / f"{name}.partial")
    continued = root / "sweep_ptx" / "gamma-0.5-seed-0.partial" / "checkpoints" / "checkpoint-3"
    continued.mkdir()
    os.utime(continued, (time.time() + 9, time.time() + 9))
    with pytest.raises(ValueError, match=r"gamma-0\.5-seed-0\.partial holds the checkpoints"):
        run_stage(first(Work()), config)
    continued.rmdir()
    assert run_stage(first(Work()), config) == {"number": 1}


def test_discardable_scratch_of_another_configuration_is_removed(config: RunConfig, root: Path) -> None:
    scratch = root / "data.partial" / "scratch"
    scratch.mkdir(parents=True)
    (scratch / "answers.jsonl").write_text("{}")
    (root / "data.partial" / "fingerprint").write_text("another")
    work = Work()

    def sample(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        found = work(config, run, out)
        (out / "scratch").mkdir()
        return found

    run_stage(replace(first(sample), discardable=("scratch",)), config)  # type: ignore[arg-type]
    assert work.found == [[]]
    assert not (root / "data" / "scratch").exists()


def test_a_partial_folder_of_unknown_origin_is_removed(config: RunConfig, root: Path) -> None:
    (root / "data.partial").mkdir(parents=True)
    (root / "data.partial" / "half.txt").write_text("whose?")
    work = Work()
    run_stage(first(work), config)
    assert work.found == [[]]


def test_a_folder_without_a_manifest_is_no_result(config: RunConfig, root: Path) -> None:
    (root / "data").mkdir(parents=True)
    (root / "data" / "made.txt").write_text("whose?")
    with pytest.raises(ValueError, match="data holds no finished result"):
        run_stage(second(Work()), config)
    work = Work()
    run_stage(first(work), config)
    assert work.times == 1
    assert (root / "data" / "made.txt").read_text() == "made"


def test_a_cut_between_the_two_renames_loses_nothing(config: RunConfig, root: Path) -> None:
    """`data` was moved to `data.old`, and its successor did not come."""
    work = Work()
    run_stage(first(work), config)
    (root / "data").rename(root / "data.old")
    run_stage(first(work), config)
    assert work.times == 1
    assert (root / "data" / "made.txt").read_text() == "made"
    assert not (root / "data.old").exists()


def test_an_interruption_after_both_renames_leaves_only_the_old_folder(config: RunConfig, root: Path) -> None:
    work = Work()
    run_stage(first(work), config)
    shutil.copytree(root / "data", root / "data.old")
    run_stage(first(work), config)
    assert work.times == 1
    run_stage(first(work), config, force=True)
    assert not (root / "data.old").exists()


@pytest.mark.parametrize(
    "start",
    ["nothing", "an older result", "a half folder of another configuration", "a half folder that --force wipes"],
)
def test_a_cut_between_any_two_changes_on_the_disk_ends_in_the_same_files(
    config: RunConfig, tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force = start == "a half folder that --force wipes"
    monkeypatch.setattr(manifest, "git_commit", lambda: None)  # which takes a while, each time

    kept = tuple(f"kept{number}" for number in range(8))  # folders are removed in an order of their own
    make_folder = os.mkdir  # as it is before the cuts: the stage's own work is not what is cut here

    def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        there = [name for name in kept if (out / name / "state").is_file()]
        assert len(there) in (0, len(kept)), "half of what resuming needs"
        for name in kept:
            if name not in there:
                make_folder(out / name)
            (out / name / "state").write_text("state")
        (out / "made.txt").write_text(f"{config.data.max_prompt_tokens}")
        return {"number": 1}

    def broken(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        work(config, run, out)
        raise ValueError("it broke")

    stage = Stage("data", sections=("data",), after=(), work=work, scratch=kept)

    def lay_out(config: RunConfig) -> None:
        other = replace(config, data=replace(config.data, max_prompt_tokens=7))
        if start == "an older result":
            run_stage(stage, other)
        if start == "a half folder of another configuration":
            with pytest.raises(ValueError, match="it broke"):
                run_stage(first(Work(fails=True)), other)
        if force:
            with pytest.raises(ValueError, match="it broke"):
                run_stage(replace(stage, work=broken), config)

    cuts = 0
    for number in range(200):
        here = replace(config, runs_folder=str(tmp_path / f"cut-{number}"))
        root = tmp_path / f"cut-{number}" / "run"
        lay_out(here)
        with monkeypatch.context() as patch:
            cut_at(patch, number)
            try:
                run_stage(stage, here, force)
                break
            except Cut:
                cuts += 1
        assert run_stage(stage, here) == {"number": 1}
        run_stage(stage, here)
        assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != ".lock") == [
            "data",
            "data/made.txt",
            "data/manifest.json",
        ]
        assert (root / "data" / "made.txt").read_text() == f"{config.data.max_prompt_tokens}"
    assert cuts > 10


def test_what_only_resuming_needs_goes_once_the_result_stands(config: RunConfig, root: Path) -> None:
    def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        (out / "kept").mkdir()
        (out / "kept" / "state").write_text("state")
        return {}

    run_stage(Stage("data", sections=("data",), after=(), work=work, scratch=("kept",)), config)
    assert [path.name for path in (root / "data").iterdir()] == ["manifest.json"]
    assert json.loads((root / "data" / "manifest.json").read_text())["outputs"] == {}


def test_the_time_of_a_stage_has_that_of_its_interrupted_sessions(
    config: RunConfig, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sessions wrote their last files after 100 and 20 seconds."""
    start = time.time()
    for begins, ends in ((0, 100), (1000, 1020)):
        monkeypatch.setattr("stages.unfinished.time.time", lambda begins=begins: start + begins)
        with pytest.raises(ValueError, match="it broke"):
            run_stage(first(Work(fails=True)), config)
        os.utime(root / "data.partial" / "half.txt", (start + ends,) * 2)
        for own in ("fingerprint", "session.json"):
            os.utime(root / "data.partial" / own, (start + begins,) * 2)
    run_stage(first(Work()), config)
    made = json.loads((root / "data" / "manifest.json").read_text())
    assert 120 <= made["seconds"] < 125
    run_stage(first(Work()), config, force=True)
    assert json.loads((root / "data" / "manifest.json").read_text())["seconds"] < 5, "a new start"
