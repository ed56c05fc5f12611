"""Run folders: what is done once is not done twice, and a result says what it was made from.

pytest tests/stages/test_runner.py
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from data.sets import evenly
from stages import manifest
from stages.config import RunConfig
from stages.headline import summary
from stages.runner import RunFolder, run_stage, stage_main
from tests.stages.working import Work, first, second


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


def test_only_the_first_process_prints_a_plan(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = []
    stage = first(Work(), dry_run=lambda config: printed.append(config.run_name))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr("stages.runner.main", lambda work, *about, **more: work(config, force=False, dry_run=True))
        stage_main(stage, "")
    assert printed == ["run"]


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
