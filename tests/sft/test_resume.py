"""SFT resumes from the newest complete checkpoint, in any state of the later ones, with the same batches."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modeling.checkpoint import seal
from sft.resume import EpochOrder, newest_complete
from tests.cuts import contents

FILES = ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "global_step/rank_0.pt")


def checkpoint(folder: Path, step: int, sealed: bool = True) -> Path:
    """A checkpoint with the files that the Trainer writes."""
    place = folder / f"checkpoint-{step}"
    for name in FILES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(f"{name} of step {step}")
    if sealed:
        seal(place)
    return place


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "missing": Path.unlink, "flipped": flip}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, "checksums.json"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_removed(tmp_path: Path, name: str, damage: str) -> None:
    checkpoint(tmp_path, 9)
    DAMAGES[damage](checkpoint(tmp_path, 10) / name)
    place, said = newest_complete(tmp_path)
    assert place == tmp_path / "checkpoint-9"
    assert len(said) == 1
    assert said[0].startswith("checkpoint-10 is incomplete or damaged (")
    assert said[0].endswith("and was removed: resuming from checkpoint-9")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


@pytest.mark.parametrize("count", range(len(FILES) + 1))
def test_a_checkpoint_without_checksums_does_not_count_for_any_number_of_its_files(tmp_path: Path, count: int) -> None:
    place = checkpoint(tmp_path, 10, sealed=False)
    for name in FILES[count:]:
        (place / name).unlink()
    found, said = newest_complete(tmp_path)
    assert found is None
    assert said == ["checkpoint-10 is incomplete or damaged (checksums.json is missing) and was removed: starting over"]
    assert not list(tmp_path.iterdir())


def test_steps_are_compared_as_numbers_and_leftovers_go(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    shutil.copytree(tmp_path / "checkpoint-9", tmp_path / ".checkpoint-8.discarded")
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_complete(tmp_path) == (tmp_path / "checkpoint-100", [])
    assert not (tmp_path / ".checkpoint-8.discarded").exists()
    assert newest_complete(tmp_path / "nothing") == (None, [])


def test_an_older_checkpoint_whose_deletion_was_cut_off_goes_and_an_older_complete_one_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
    assert newest_complete(tmp_path) == (tmp_path / "checkpoint-3", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_where_complete_checkpoints_are_all_damaged_the_run_refuses_and_removes_nothing(tmp_path: Path) -> None:
    flip(checkpoint(tmp_path, 4) / "optimizer.pt")
    checkpoint(tmp_path, 8, sealed=False)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint in .* \(checkpoint-8: .*; checkpoint-4: .* with --force"):
        newest_complete(tmp_path)
    assert contents(tmp_path) == before


def test_the_order_depends_only_on_seed_and_epoch() -> None:
    lengths = [n % 7 for n in range(50)]

    def order(seed: int, epoch: float, drawn_before: int = 0) -> list[int]:
        sampler = EpochOrder(lengths, 4, seed)
        for _ in range(drawn_before):
            list(sampler)
        state: Any = SimpleNamespace(epoch=epoch)
        sampler.on_epoch_begin(state, state, state)
        return list(sampler)

    whole = order(0, 0)
    assert sorted(whole[:50]) == list(range(50))
    assert whole[50:] == whole[:2], "the last batch of four is full"
    # A resumed run enters its epoch in the middle.
    assert order(0, 1.0) == order(0, 1.4) == order(0, 1.0, drawn_before=1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
