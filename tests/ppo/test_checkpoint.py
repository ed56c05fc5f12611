"""Checkpoints hold everything to the last bit, survive being cut off, and are told apart from damaged ones."""

import errno
import json
import resource
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import modeling.checkpoint
from modeling.checkpoint import TrainingState, random_state
from modeling.sharded_checkpoint import allocate_optimizer
from modeling.tracking import RowLog
from ppo.checkpoint import Checkpoints, Progress
from ppo.config import PPOConfig
from ppo.ema import MovingAverage
from ppo.optimizers import Optimizers
from tests.cuts import Cut, contents, cut_at, state
from tests.fakes import FakeAccelerator
from tests.ppo.conftest import ALONE


class Number:
    """Something that adapts."""

    def __init__(self, value: float) -> None:
        self.value, self.count = value, 0

    def state_dict(self) -> dict[str, float | int]:
        return {"value": self.value, "count": self.count}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        self.value, self.count = float(state["value"]), int(state["count"])


@dataclass
class Toy(TrainingState):
    """Two small matrices in training, with their optimizers, an average and an adaptive number."""

    average: MovingAverage = field(default_factory=lambda: MovingAverage({}, 0.9))


def make(seed: int = 0, steps: int = 3, width: int = 4) -> Toy:
    generator = torch.Generator().manual_seed(seed)
    policy, value = (
        {"w": nn.Parameter(torch.randn(width, 5, generator=generator)), "b": nn.Parameter(torch.zeros(5))}
        for _ in range(2)
    )
    models: Any = SimpleNamespace(policy_parameters=policy, value_parameters=value, autocast_dtype=None)
    optimizers = Optimizers.make(models, PPOConfig(learning_rate=0.1, value_learning_rate=0.1))
    optimized = {"policy": (policy, optimizers.policy), "value": (value, optimizers.value)}
    average = MovingAverage(policy, 0.9)
    trained = Toy(optimized, {"average": average.average}, {"number": Number(0.1 + 0.2)}, average)
    for _ in range(steps):
        train(trained)
    return trained


def train(trained: Toy) -> None:
    """A step whose size depends on all that a checkpoint must hold: weights, moments, the average, torch's generator,
    the number.
    """
    number: Any = trained.stateful["number"]
    for parameters, _ in trained.models.values():
        loss = sum((p * torch.rand(p.shape) * number.value + p.square()).sum() for p in parameters.values())
        loss.backward()
    for _, optimizer in trained.models.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    trained.average.update()
    number.value = number.value / 3 + 1e-9
    number.count += 10**15


def at(iteration: int, trained: Toy, random: dict[str, torch.Tensor] | None = None) -> Progress:
    return Progress(iteration, 7 * iteration, 11 * iteration, trained.states(), random or random_state(ALONE.device))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A run's checkpoints of iterations 1 and 2."""
    torch.manual_seed(4)
    trained = make()
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2, ALONE, seed=0)
    checkpoints.begin(trained)
    for iteration in (1, 2):
        train(trained)
        checkpoints.save(at(iteration, trained), trained)
    return checkpoints.folder


def test_everything_comes_back_to_the_last_bit(tmp_path: Path):
    torch.manual_seed(4)
    before, after = make(), make(seed=9, steps=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2, ALONE, seed=0)
    checkpoints.save(at(3, before), before)
    train(before)
    train(before)
    drawn = torch.rand(3)
    torch.manual_seed(99)
    progress = Checkpoints(checkpoints.folder, 2, ALONE, seed=0).begin(after)
    assert (progress.iteration, progress.prompt_position, progress.text_position) == (3, 21, 33)
    train(after)
    train(after)
    one, other = before.tensors(), after.tensors()
    assert {name.split("/")[0] for name in one} == set(GROUPS)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert before.states() == after.states()
    assert before.states()["number"]["count"] == 5 * 10**15
    assert torch.equal(torch.rand(3), drawn)


GROUPS = ("average", "policy", "policy_optimizer", "value", "value_optimizer")


def file_of(place: Path, group: str) -> Path:
    """The file with a group's tensors, written by one process."""
    return place / "state" / f"shard-00001-model-0000{GROUPS.index(group) + 1}-of-00005.safetensors"


def truncate(place: Path) -> None:
    path = file_of(place, "value_optimizer")
    path.write_bytes(path.read_bytes()[:-1])


def flip(place: Path) -> None:
    path = file_of(place, "policy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "state/shard-00001-model-00005-of-00005.safetensors has": truncate,
    "state/shard-00001-model-00002-of-00005.safetensors does not match its SHA-256": flip,
    "state/shard-00001-model-00001-of-00005.safetensors is missing": lambda place: file_of(place, "average").unlink(),
    "checksums.json is missing": lambda place: (place / "checksums.json").unlink(),
    "checksums.json cannot be read": lambda place: (place / "checksums.json").write_text('{"state/shard-00'),
    "checksums.json cannot be read ": lambda place: (place / "checksums.json").write_text("[]"),
    "progress.json does not match its SHA-256": lambda place: (place / "progress.json").write_bytes(
        (place / "progress.json").read_bytes().replace(b'"iteration": 2', b'"iteration": 3')
    ),
}


@pytest.mark.parametrize("why", DAMAGES)
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(
    two: Path, why: str, capsys: pytest.CaptureFixture[str]
):
    DAMAGES[why](two / "checkpoint-00000002")
    assert Checkpoints(two, 2, ALONE, seed=0).begin(make()).iteration == 1
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"checkpoint-00000002 is damaged ({why.strip()}" in said
    assert "resuming from checkpoint-00000001" in said


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_removes_nothing(two: Path):
    truncate(two / "checkpoint-00000001")
    flip(two / "checkpoint-00000002")
    before = contents(two)
    with pytest.raises(
        ValueError, match=r"is complete \(checkpoint-00000002: .*; checkpoint-00000001: .* start over with --force"
    ):
        Checkpoints(two, 2, ALONE, seed=0).begin(make())
    assert contents(two) == before


def test_a_checkpoint_of_another_model_is_refused(two: Path):
    with pytest.raises(ValueError, match="does not match the model of this run: start over with --force"):
        Checkpoints(two, 2, ALONE, seed=0).begin(make(width=3))


def test_old_checkpoints_are_removed_once_enough_newer_ones_are_complete(two: Path):
    trained = make()
    checkpoints = Checkpoints(two, 2, ALONE, seed=0)
    checkpoints.begin(trained)
    truncate(two / "checkpoint-00000001")
    checkpoints.save(at(3, trained), trained)
    assert sorted(path.name for path in two.iterdir()) == ["checkpoint-00000002", "checkpoint-00000003"]
    flip(two / "checkpoint-00000003")
    again = Checkpoints(two, 2, ALONE, seed=0)
    again.begin(trained)
    again.save(at(4, trained), trained)
    assert {path.name for path in two.iterdir()} >= {"checkpoint-00000002", "checkpoint-00000004"}, "3 does not count"
    again.save(at(5, trained), trained)
    assert sorted(path.name for path in two.iterdir()) == ["checkpoint-00000004", "checkpoint-00000005"]


def test_a_kill_between_any_two_changes_on_the_disk_leaves_a_complete_checkpoint_and_the_same_bytes(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def go_on(folder: Path) -> None:
        trained = make()
        checkpoints = Checkpoints(folder, 2, ALONE, seed=0)
        for iteration in range(checkpoints.begin(trained).iteration + 1, 4):
            train(trained)
            checkpoints.save(at(iteration, trained), trained)

    shutil.copytree(two, tmp_path / "whole")
    go_on(tmp_path / "whole")
    expected = state(tmp_path / "whole")
    assert {name.split("/")[0] for name in expected} == {"checkpoint-00000002", "checkpoint-00000003"}
    for number in range(100):
        folder = tmp_path / f"cut-{number}"
        shutil.copytree(two, folder)
        with monkeypatch.context() as patch:
            cut_at(patch, number)
            try:
                go_on(folder)
                break
            except Cut:
                assert all(modeling.checkpoint.what_is_wrong(place) is None for place in folder.glob("checkpoint-*"))
        go_on(folder)
        assert state(folder) == expected
    assert number > 15


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The operating system itself refuses to write more into any one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_does_not_fit_is_removed_and_the_last_one_stays_complete(two: Path):
    trained = make(width=5000)
    shutil.rmtree(two)
    checkpoints = Checkpoints(two, 2, ALONE, seed=0)
    checkpoints.begin(trained)
    checkpoints.save(at(1, trained), trained)
    before = contents(two)
    with (
        no_file_above(150_000),
        pytest.raises(
            ValueError, match=r"cannot write .*checkpoint-00000002 \(File too large\): about 0\.7 MiB are needed"
        ),
    ):
        checkpoints.save(at(2, trained), trained)
    assert contents(two) == before
    checkpoints.save(at(2, trained), trained)
    assert modeling.checkpoint.what_is_wrong(two / "checkpoint-00000002") is None


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota"), SafetensorError("I/O error: (os error 28)")],
)
def test_a_full_disk_is_reported_as_such_and_other_errors_as_they_are(
    two: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    trained = make()
    checkpoints = Checkpoints(two, 2, ALONE, seed=0)
    checkpoints.begin(trained)

    def full(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(modeling.checkpoint, "save_tensors", full)
    with pytest.raises(
        ValueError, match="the last checkpoint is kept: free some space and run the command again to resume from it"
    ):
        checkpoints.save(at(3, trained), trained)
    error.args = (errno.EACCES, "not allowed") if isinstance(error, OSError) else ("another",)
    if isinstance(error, OSError):
        error.errno = errno.EACCES
    with pytest.raises(type(error)):
        checkpoints.save(at(3, trained), trained)
    assert sorted(path.name for path in two.iterdir()) == ["checkpoint-00000001", "checkpoint-00000002"]


def test_rows_that_do_not_fit_on_the_disk_stop_the_run_and_are_made_again(tmp_path: Path):
    rows = RowLog(tmp_path / "metrics.jsonl")
    rows.log(1, {"score": 1.0})
    with no_file_above(40), pytest.raises(ValueError, match=r"cannot write .*metrics\.jsonl \(File too large\)"):
        rows.log(2, {"score": 2.0, "kl": 0.123456789})
    RowLog(rows.path, resume_after=1).log(2, {"score": 2.0})
    assert [json.loads(line)["step"] for line in rows.path.read_text().splitlines()] == [1, 2]


def test_a_run_that_has_no_room_for_its_checkpoints_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained = make()
    size = trained.bytes_once_saved()
    # Two stay while a third is written.
    for free, enough in ((3 * size, True), (3 * size - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        checkpoints = Checkpoints(tmp_path / "not" / "there", 2, ALONE, seed=0)
        if enough:
            assert checkpoints.begin(trained).iteration == 0
        else:
            with pytest.raises(
                ValueError,
                match=r"needs about 0\.2 MiB for checkpoints of 0\.1 MiB, and 0\.2 MiB are free: free some space, "
                r"lower",
            ):
                checkpoints.begin(trained)


def test_the_estimated_size_is_that_of_a_checkpoint(two: Path):
    trained = make(width=50_000)
    checkpoints = Checkpoints(two, 1, ALONE, seed=0)
    checkpoints.save(at(3, trained), trained)
    assert sum(map(len, contents(two).values())) == pytest.approx(trained.bytes_once_saved(), rel=0.02)


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch):
    """Processes that run one after the other: each does the work of the first one itself."""
    monkeypatch.setattr(modeling.checkpoint, "from_main", lambda accelerator, make: make())


@pytest.mark.usefixtures("in_turn")
def test_every_process_gets_its_own_random_state_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(random_state(ALONE.device))
    trained = make()
    first = FakeAccelerator(0, 2)
    monkeypatch.setattr(modeling.checkpoint, "gather_object", lambda items: [*items, states[1]])
    Checkpoints(tmp_path / "c", 2, first, seed=0).save(at(1, trained, states[0]), trained)
    drawn = {}
    for name, accelerator in {
        "first": first,
        "second": FakeAccelerator(1, 2),
        "third": FakeAccelerator(2, 3),
        "fourth": FakeAccelerator(3, 4),
    }.items():
        progress = Checkpoints(tmp_path / "c", 2, accelerator, seed=0).begin(make())
        drawn[name] = torch.rand(3).tolist()
        assert not torch.equal(progress.random["cpu"], torch.get_rng_state()), "taken before anything was drawn"
    for name, seed in (("first", 1), ("second", 2)):
        torch.manual_seed(seed)
        assert drawn[name] == torch.rand(3).tolist()
    assert len({tuple(values) for values in drawn.values()}) == 4
    torch.manual_seed(77)
    Checkpoints(tmp_path / "c", 2, FakeAccelerator(2, 3), seed=0).begin(make())
    assert drawn["third"] == torch.rand(3).tolist(), (
        "a process that was not there before has a state that follows from the seed"
    )
    assert capsys.readouterr().out == "", "only the first process prints"
    Checkpoints(tmp_path / "c", 2, FakeAccelerator(0, 3), seed=0).begin(make())
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "written by 2 process(es) and the run continues with 3" in said[0]


@pytest.mark.usefixtures("in_turn")
def test_a_run_starts_from_a_random_state_that_follows_from_its_seed_and_place(tmp_path: Path):
    states = []
    for before, accelerator, seed in ((1, ALONE, 0), (2, ALONE, 0), (3, FakeAccelerator(1, 2), 0), (4, ALONE, 5)):
        torch.manual_seed(before)
        states.append(Checkpoints(tmp_path / "none", 2, accelerator, seed).begin(make()).random["cpu"].tolist())
    assert states[0] == states[1]
    assert states[0] != states[2]
    assert states[0] != states[3]


def test_adams_step_counter_comes_back_beside_its_parameter():
    parameter = nn.Parameter(torch.zeros(3, device="meta"))  # in the place of a GPU
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    allocate_optimizer(
        "adam", optimizer, {"w": parameter}, {"adam/w//step": torch.Size([]), "adam/w//exp_avg": torch.Size([3])}
    )
    assert {key: value.device.type for key, value in optimizer.state[parameter].items()} == {
        "step": "meta",
        "exp_avg": "meta",
    }
