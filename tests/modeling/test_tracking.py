"""Metrics files that survive being cut off, and trackers that are told the same.

pytest tests/modeling/test_tracking.py
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from modeling.config import TrackingConfig
from modeling.tracking import RowLog, Tracker, read_metrics, read_numbers


@pytest.fixture(autouse=True)
def writers_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard sorts event files of one second by name, so writer 10 precedes writer 9. Real runs resume in a later
    second.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def test_rows_are_written_at_once_and_read_back(tmp_path: Path) -> None:
    with Tracker(tmp_path / "new" / "run") as tracker:
        tracker.log(1, {"loss": 0.5, "kl": -1e-7})
        assert read_metrics(tracker.path) == [{"step": 1, "loss": 0.5, "kl": -1e-7}]
        tracker.log(2, {"loss": 0.25})
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 0.5, "kl": -1e-7}, {"step": 2, "loss": 0.25}]


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 3, "loss": 0.1}'])
def test_a_row_that_was_cut_off_is_left_out_and_does_not_spoil_the_next(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n' + cut)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    with Tracker(tmp_path, resume_after=2) as tracker:
        tracker.log(3, {"loss": 1.0})
    assert read_metrics(path) == [{"step": step, "loss": 4.0 - step} for step in (1, 2, 3)]


@pytest.mark.parametrize(
    "row",
    [b"", b"\0" * 40, b'{"step": 3, "lo', b"\xff\xfe", b"[3]", b'{"loss": 3.0}'],
    ids=["empty", "zeros", "cut", "bytes", "list", "stepless"],
)
@pytest.mark.parametrize("resume_after", [0, 2, 3, 4])
def test_a_damaged_row_behind_the_checkpoint_is_dropped_and_one_before_it_is_named(
    tmp_path: Path, row: bytes, resume_after: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [b'{"step": 1, "loss": 3.0}', b'{"step": 2, "loss": 2.0}', row, b'{"step": 4, "loss": 0.0}']
    path.write_bytes(b"\n".join(rows) + b"\n")
    said = rf"^{re.escape(str(path))}:3: the row is damaged: repair or remove it$"
    with pytest.raises(ValueError, match=said):
        read_metrics(path)
    if resume_after == 4:
        with pytest.raises(ValueError, match=said):
            RowLog(path, resume_after)
        assert path.read_bytes() == b"\n".join(rows) + b"\n"
        return
    RowLog(path, resume_after).log(3, {"loss": 1.0})
    kept = min(resume_after, 2)
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}][:kept] + [
        {"step": 3, "loss": 1.0}
    ]


def test_what_hangs_on_the_clock_is_kept_apart_and_comes_together_for_readers_and_trackers(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log(1, {"loss": 0.5}, {"seconds_update": 3.0})
        tracker.log(2, {"loss": 0.25}, {"seconds_update": 4.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    expected = [{"step": 1, "loss": 0.5, "seconds_update": 3.0}, {"step": 2, "loss": 0.25, "seconds_update": 4.0}]
    assert read_numbers(tmp_path) == expected
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("seconds_update")] == [3.0, 4.0]
    with Tracker(tmp_path, resume_after=1):
        pass
    assert read_numbers(tmp_path) == expected[:1]


def test_tensorboard_shows_a_step_that_is_made_again_once(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"loss": float(step)})
    with Tracker(tmp_path, resume_after=1) as tracker:
        tracker.log(2, {"loss": 20.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


def test_rows_keep_their_bytes_when_a_run_goes_on(tmp_path: Path) -> None:
    """A line break of another alphabet is none of JSON Lines."""
    rows = [{"text": "one\u2028two\x85three\x0b\x1c", "score": 1e-17}, {"text": "schön 字", "score": 0.1 + 0.2}]
    log = RowLog(tmp_path / "samples.jsonl")
    log.log(1, *rows)
    log.log(2)
    before = log.path.read_bytes()
    log.log(3, rows[0])
    with log.path.open("ab") as file:
        file.write('{"step": 4, "text": "字'.encode()[:-1])
    again = RowLog(log.path, resume_after=2)
    assert log.path.read_bytes() == before
    assert read_metrics(again.path) == [{"step": 1, **row} for row in rows]


FAKE = """
import json
import os

def tell(**what):
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class Run:
    def log(self, values, step=None, **rest):
        tell(log=values, step=step, rest=rest)
    def finish(self):
        tell(finish=True)

def init(**settings):
    tell(init=settings)
    return Run()
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where stand-ins for the packages wandb and trackio write what they are told."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("wandb", "trackio"):
        (packages / f"{name}.py").write_text(FAKE)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("TOLD", str(tmp_path / "told.jsonl"))
    yield tmp_path / "told.jsonl"
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_tracker_is_told_every_step_and_a_resumed_run_goes_on_in_the_same_one(
    told: Path, tmp_path: Path, kind: str
) -> None:
    folder, config = tmp_path / "runs" / "demo" / "ppo.partial", TrackingConfig(to=[kind], project="mine")
    tracker = Tracker(folder, config=config)
    tracker.log(1, {"loss": 0.5}, {"seconds_update": 3.0})
    tracker.log(2, {"loss": 0.25})
    # Killed: nothing was closed.
    with Tracker(folder, resume_after=1, config=config) as tracker:
        tracker.log(2, {"loss": 0.25})
    first, *logged, finish = [json.loads(line) for line in told.read_text().splitlines()]
    assert first["init"]["project"] == "mine"
    assert first["init"]["resume"] == "allow"
    assert first["init"]["name"].startswith("demo/ppo")
    assert first["init"]["group"] == "demo"
    assert [(row["log"], row["step"]) for row in logged if "log" in row] == [
        ({"loss": 0.5, "seconds_update": 3.0}, 1),
        ({"loss": 0.25}, 2),
        ({"loss": 0.25}, 2),
    ]
    assert logged[2] == first, "the same run"
    assert finish == {"finish": True}
    run = json.loads((folder / "tracker_runs.json").read_text())[kind]
    assert first["init"].get("id", first["init"]["name"]).endswith(run)
    assert not (folder / "tensorboard").exists()
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2]
    with Tracker(tmp_path / "runs" / "demo" / "again.partial", config=config):
        pass
    assert json.loads((tmp_path / "runs" / "demo" / "again.partial" / "tracker_runs.json").read_text())[kind] != run


def test_metrics_are_written_where_no_tracker_is_wanted(tmp_path: Path) -> None:
    with Tracker(tmp_path, config=TrackingConfig(to=[])) as tracker:
        tracker.log(1, {"loss": 0.5})
    assert [path.name for path in tmp_path.iterdir() if path.name != "timings.jsonl"] == ["metrics.jsonl"]


def test_a_tracker_whose_package_is_missing_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    TrackingConfig(to=["tensorboard", "trackio"]).validate()
    with pytest.raises(
        ValueError,
        match=r"tracking\.to names wandb, which is not installed: pip install -e '\.\[wandb\]', or leave it out",
    ):
        TrackingConfig(to=["tensorboard", "wandb"]).validate()
    with pytest.raises(ValueError, match=r"tracking\.to=.* names a tracker twice"):
        TrackingConfig(to=["tensorboard", "tensorboard"]).validate()
