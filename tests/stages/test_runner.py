"""Run folders: what is done once is not done twice, what is cut off goes on, and half a result is never taken for a
whole one.

pytest tests/stages/test_runner.py
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from data.sets import evenly
from stages import manifest
from stages.config import RunConfig
from stages.headline import summary
from stages.runner import RunFolder, Stage, run_stage, stage_main
from tests.cuts import Cut, cut_at


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = RunConfig(run_name="run", runs_folder=str(tmp_path / "runs"))
    config.model.device = "cpu"
    return config


@pytest.fixture
def root(config: RunConfig) -> Path:
    return Path(config.runs_folder) / config.run_name


class Work:
    """A stage's work that writes one file and remembers what it found in its folder."""

    def __init__(
        self, content: Callable[[RunConfig, RunFolder], str] = lambda config, run: "made", fails: bool = False
    ) -> None:
        self.content, self.fails = content, fails
        self.found: list[list[str]] = []

    @property
    def times(self) -> int:
        return len(self.found)

    def __call__(self, config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        own = ("fingerprint", "session.json")
        self.found.append(sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.name not in own))
        (out / "half.txt").write_text("half")
        if self.fails:
            raise ValueError("it broke")
        (out / "half.txt").unlink()
        (out / "made.txt").write_text(self.content(config, run))
        return {"number": self.times}


def first(work: Work, **changes: Any) -> Stage:
    return Stage("data", sections=("data",), after=(), work=work, **changes)


def second(work: Work) -> Stage:
    return Stage("sft", sections=("sft", "model.lora"), after=("data",), work=work)


def test_an_unchanged_stage_is_not_run_again(config: RunConfig, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work()
    assert run_stage(first(work), config) == {"number": 1}
    before = {path: path.stat().st_mtime_ns for path in (root / "data").iterdir()}
    assert run_stage(first(work), config) == {"number": 1}, "the first run's numbers"
    assert work.times == 1
    assert {path: path.stat().st_mtime_ns for path in (root / "data").iterdir()} == before
    assert "data: unchanged" in capsys.readouterr().out
    assert sorted(path.name for path in root.iterdir() if path.name != ".lock") == ["data"]


@pytest.mark.parametrize(
    ("change", "runs_again"),
    [
        (lambda config: setattr(config.data, "max_prompt_tokens", 7), True),
        (lambda config: setattr(config.data, "prompts", ["more.jsonl"]), True),
        (lambda config: setattr(config, "seed", 1), True),
        (lambda config: setattr(config.ppo, "kl_coef", 7.0), False),
        (lambda config: setattr(config.model, "base", "other"), False),
        (lambda config: setattr(config.tracking, "project", "other"), False),
    ],
)
def test_only_the_configuration_that_matters_to_a_stage_makes_it_run_again(
    config: RunConfig, change: Any, runs_again: bool
) -> None:
    work = Work()
    run_stage(first(work), config)
    change(config)
    run_stage(first(work), config)
    assert work.times == 1 + runs_again


def test_a_stage_may_hang_on_a_part_of_a_section(config: RunConfig) -> None:
    work = Work()
    run_stage(first(Work()), config)
    run_stage(second(work), config)
    config.model.base = "other"
    run_stage(second(work), config)
    assert work.times == 1
    config.model.lora.rank = 3
    run_stage(second(work), config)
    assert work.times == 2


def test_a_users_file_that_changed_makes_the_stage_run_again(config: RunConfig, tmp_path: Path) -> None:
    file, work = tmp_path / "mine.jsonl", Work()
    file.write_text("one")
    stage = first(work, external=lambda config: {str(file): manifest.file_digest(file)})
    run_stage(stage, config)
    os.utime(file, ns=(1, 1))
    run_stage(stage, config)
    assert work.times == 1, "touched, but the same"
    file.write_text("two")
    run_stage(stage, config)
    assert work.times == 2


def test_an_earlier_stages_result_that_was_edited_by_hand_makes_the_later_one_run_again(
    config: RunConfig, root: Path
) -> None:
    work = Work()
    run_stage(first(Work()), config)
    run_stage(second(work), config)
    made = root / "data" / "made.txt"
    stat = made.stat()
    os.utime(made, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    run_stage(second(work), config)
    assert work.times == 1, "touched, but the same"
    made.write_text("MADE")
    os.utime(made, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    run_stage(second(work), config)
    assert work.times == 2, "as long as before, but not the same"


def test_an_earlier_stage_that_came_out_the_same_makes_nothing_run_again(config: RunConfig) -> None:
    work, changed = Work(), Work(lambda config, run: f"{config.data.max_prompt_tokens // 2}")
    config.data.max_prompt_tokens = 6
    run_stage(first(changed), config)
    run_stage(second(work), config)
    config.data.max_prompt_tokens = 7
    run_stage(first(changed), config)
    run_stage(second(work), config)
    assert (changed.times, work.times) == (2, 1)
    config.data.max_prompt_tokens = 8
    run_stage(first(changed), config)
    run_stage(second(work), config)
    assert (changed.times, work.times) == (3, 2)


def test_force_runs_and_starts_from_nothing(config: RunConfig, root: Path) -> None:
    work = Work()
    run_stage(first(work), config)
    run_stage(first(work), config, force=True)
    assert work.times == 2
    with pytest.raises(ValueError, match="it broke"):
        run_stage(first(Work(fails=True)), config, force=True)
    run_stage(first(work), config, force=True)
    assert work.found[-1] == [], "what the broken run left is not handed on"


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


def test_a_stage_that_was_cut_off_gets_its_half_folder_back(
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


def test_the_last_line_of_a_stage_has_units() -> None:
    numbers = {"rankings": 1234, "tied_pairs": 0.25, "reward_accuracy": 0.678, "above_best_baseline": -0.0678}
    numbers |= {"kl": -0.0, "perplexity_ppo": 50171.2, "perplexity_sft": 68.412, "seconds_before_evaluation": 54.7}
    assert summary(numbers | {"report": "a/b.html"}) == (
        "rankings 1,234  tied_pairs 25.0%  reward_accuracy 67.8%  above_best_baseline -6.8 points  kl 0 nats  "
        "perplexity_ppo 50,171  perplexity_sft 68.41  seconds_before_evaluation 54.7 s  report a/b.html"
    )
    assert summary({"generation": {"temperature": 1.0, "seed": 3}}) == "generation temperature 1, seed 3"
    known = {"win_rate": 0.6, "win_rate_low": 0.55, "win_rate_high": 0.652}
    missing = {"win_rate_both_end": None, "win_rate_both_end_low": None, "win_rate_both_end_high": None}
    assert summary(known | missing) == "win_rate 60.0% (55.0% to 65.2%)  win_rate_both_end –"
    margin = {"reward_above_best_baseline": 0.0792, "reward_above_best_baseline_low": 0.031}
    assert summary(margin | {"reward_above_best_baseline_high": 0.124}) == (
        "reward_above_best_baseline +7.9 points (+3.1 points to +12.4 points)"
    )


@pytest.mark.parametrize("change", ["config", "input"])
def test_a_half_folder_made_from_something_else_is_wiped(config: RunConfig, root: Path, change: str) -> None:
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
def test_checkpoints_of_another_configuration_are_not_lost_by_a_slip(
    config: RunConfig, root: Path, force: bool
) -> None:
    stage = replace(first(Work()), scratch=("checkpoints",))
    kept = root / "data.partial" / "checkpoints" / "checkpoint-00000002"
    kept.mkdir(parents=True)
    (root / "data.partial" / "fingerprint").write_text("another")
    if force:
        run_stage(stage, config, force=True)
        return
    with pytest.raises(ValueError, match="holds the checkpoints of an interrupted run"):
        run_stage(stage, config)
    assert kept.is_dir()


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
        ("sweep_kl/seed-0.partial/checkpoints", "sweep_kl"),
        ("sft_baseline_epochs.partial/trainer", "sft_baseline"),
    ],
)
def test_a_stage_that_others_need_is_replaced_once_those_are_finished(
    config: RunConfig, root: Path, place: str, command: str
) -> None:
    run_stage(first(Work()), config)
    (root / place / "checkpoint-2").mkdir(parents=True)
    config.data.split_salt = "other"
    with pytest.raises(ValueError, match=f"finish that run with `python -m stages.{command}` and its own settings"):
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
    assert "with `python -m stages.ppo` and `python -m stages.sweep_ptx` and their own settings" in str(refused.value)
    for name in ("ppo", "sweep_ptx/gamma-0-seed-0"):
        shutil.rmtree(root / f"{name}.partial")
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


def test_a_half_folder_of_unknown_origin_is_wiped(config: RunConfig, root: Path) -> None:
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


def test_a_cut_after_both_renames_leaves_only_rubbish_to_clear(config: RunConfig, root: Path) -> None:
    work = Work()
    run_stage(first(work), config)
    shutil.copytree(root / "data", root / "data.old")
    run_stage(first(work), config)
    assert work.times == 1
    run_stage(first(work), config, force=True)
    assert not (root / "data.old").exists()


@pytest.mark.parametrize("lost", [False, True])
def test_a_result_that_was_moved_elsewhere_and_linked_is_replaced_here_and_left_there(
    config: RunConfig, root: Path, tmp_path: Path, lost: bool
) -> None:
    work, elsewhere = Work(), tmp_path / "other disk"
    run_stage(first(work), config)
    (root / "data").rename(elsewhere)
    (root / "data").symlink_to(elsewhere)
    run_stage(first(work), config)
    assert work.times == 1, "a linked result is a result"
    if lost:
        shutil.rmtree(elsewhere)
    for times in (2, 3):
        config.seed = times
        run_stage(first(work), config)
        assert work.times == times
        assert not (root / "data").is_symlink()
        assert sorted(path.name for path in root.iterdir() if path.name != ".lock") == ["data"]
    assert lost or (elsewhere / "made.txt").read_text() == "made"


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


def test_only_the_first_process_prints_a_plan(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = []
    stage = first(Work(), dry_run=lambda config: printed.append(config.run_name))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr("stages.runner.main", lambda work, *about, **more: work(config, force=False, dry_run=True))
        stage_main(stage, "")
    assert printed == ["run"]


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


def test_the_peak_of_a_stage_is_not_that_of_an_earlier_one_in_the_same_process() -> None:
    def peak(mebibytes: int) -> float:
        manifest.reset_peak_memory()
        block = b"1" * (mebibytes * 2**20)
        del block
        return manifest.peak_memory_gib()

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"the peak cannot be reset here: {error}")
    large, small = peak(512), peak(1)
    assert large - small > 0.4


def test_what_hangs_on_the_clock_does_not_make_a_later_stage_run_again(config: RunConfig, root: Path) -> None:
    work = Work()
    run_stage(first(Work()), config)
    (root / "data" / "timings.jsonl").write_text("1")
    run_stage(second(work), config)

    def timed(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        (out / "timings.jsonl").write_text("2")
        (out / "made.txt").write_text("made")
        return {}

    run_stage(first(timed), config, force=True)  # type: ignore[arg-type]
    run_stage(second(work), config)
    assert work.times == 1


def test_a_missing_earlier_stage_is_named_with_what_to_run(config: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"run[/\\]data holds no finished result: run `make data` first"):
        run_stage(second(Work()), config)


def test_an_earlier_stages_missing_file_is_named(config: RunConfig, root: Path) -> None:
    run_stage(first(Work()), config)
    (root / "data" / "made.txt").unlink()
    with pytest.raises(ValueError, match=r"made\.txt is missing: run the data stage again with --force"):
        run_stage(second(Work()), config)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "data"}'])
def test_a_damaged_manifest_is_named(config: RunConfig, root: Path, content: str) -> None:
    run_stage(first(Work()), config)
    (root / "data" / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json: damaged manifest"):
        run_stage(first(Work()), config)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_gets_a_file_that_a_killed_run_does_not_leave_in_the_way(
    number: int, config: RunConfig, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    run_stage(first(Work()), config)
    assert f"the file system of {root} has no file locks" in caplog.text
    assert not (root / ".lock.held").exists()
    lines = "import sys, time, filelock; l = filelock.SoftFileLock(sys.argv[1]); l.acquire(); print(1); time.sleep(99)"
    command = [sys.executable, "-uc", lines, str(root / ".lock.held")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(ValueError, match=r"in use by another process.*, delete .*/\.lock\.held"):
            run_stage(first(Work()), config, force=True)
        other.kill()
    run_stage(first(Work()), config, force=True)


def test_a_run_in_use_is_refused_and_free_again_afterwards(config: RunConfig, root: Path) -> None:
    root.mkdir(parents=True)
    with FileLock(root / ".lock"), pytest.raises(ValueError, match="in use by another process"):
        run_stage(first(Work()), config)
    with pytest.raises(ValueError, match="it broke"):
        run_stage(first(Work(fails=True)), config)
    run_stage(first(Work()), config)


def test_a_link_to_a_disk_that_is_not_there_is_named(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    with pytest.raises(ValueError, match=r"runs is a link to .*scratch, which does not exist: mount or create it"):
        run_stage(first(Work()), config)


def test_two_runs_do_not_know_each_other(config: RunConfig) -> None:
    work = Work()
    run_stage(first(work), config)
    run_stage(first(work), replace(config, run_name="another"))
    assert work.times == 2


def test_the_manifest_says_what_a_result_was_made_from(config: RunConfig, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("one")
    config.seed = 5

    def checkpoints(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        for name in ("model/weights.bin", "tensorboard/events"):
            (out / name).parent.mkdir()
            (out / name).write_text("abc")
        return {"number": 1.5}

    run_stage(first(checkpoints, external=lambda config: {"mine": manifest.file_digest(file)}), config)  # type: ignore[arg-type]
    found = json.loads((root / "data" / "manifest.json").read_text())
    assert found["config"]["data"]["max_prompt_tokens"] == config.data.max_prompt_tokens
    assert found["inputs"] == {"mine": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"}, (
        "sha256 of 'one'"
    )
    assert {name: record["sha256"] for name, record in found["outputs"].items()} == {
        "model/weights.bin": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }, "sha256 of 'abc'; TensorBoard's files are no result"
    assert (found["stage"], found["headline"], found["seed"], found["world_size"]) == ("data", {"number": 1.5}, 5, 1)
    assert found["started"] <= found["ended"]
    assert found["seconds"] >= 0
    assert {"torch", "transformers", "trl"} <= found["packages"].keys()
    run_stage(second(Work()), config)
    assert set(json.loads((root / "sft" / "manifest.json").read_text())["inputs"]) == {"data"}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(None, "abcdefghij"), (10, "abcdefghij"), (99, "abcdefghij"), (5, "acegi"), (3, "adg"), (1, "a")],
)
def test_some_of_many_are_spread_over_the_whole(count: int | None, expected: str) -> None:
    assert "".join(evenly("abcdefghij", count)) == expected
