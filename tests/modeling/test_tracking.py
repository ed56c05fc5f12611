"""Metrics files that survive being cut off.

pytest tests/modeling/test_tracking.py
"""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modeling.tracking import Tracker, read_metrics


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


def test_resuming_drops_the_rows_that_will_be_made_again(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"loss": float(step)})
    with Tracker(tmp_path, resume_after=3) as tracker:
        tracker.log(4, {"loss": 40.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert not list(tmp_path.glob("*.partial"))


def test_starting_anew_drops_all_rows(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log(1, {"loss": 1.0})
    with Tracker(tmp_path):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log(1, {"loss": 0.5})
        tracker.log(2, {"loss": 0.25})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
