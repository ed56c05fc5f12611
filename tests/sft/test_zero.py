"""Checkpoints of DeepSpeed; training with it is tested in tests/distributed/test_launch.py."""

from pathlib import Path

import pytest

from sft.zero import refuse_other_checkpoint


@pytest.mark.parametrize(("written", "now"), [(2, 0), (0, 2), (2, 1)])
def test_a_checkpoint_of_another_launch_is_refused(tmp_path: Path, written: int, now: int) -> None:
    (tmp_path / "global_step3").mkdir()
    for rank in range(written):
        (tmp_path / "global_step3" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    refuse_other_checkpoint(tmp_path, written)
    with pytest.raises(ValueError, match="was written with"):
        refuse_other_checkpoint(tmp_path, now)
