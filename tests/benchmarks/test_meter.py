"""Time and memory of a part of a process.

pytest tests/benchmarks/test_meter.py
"""

import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.meter import metered, status_gib

MIB = 2**20


def test_memory_is_that_of_the_work_and_not_of_what_came_before() -> None:
    """400 MiB before, 100 MiB within, of which half is freed at the end."""
    before = bytearray(400 * MIB)
    before[::4096] = b"x" * len(before[::4096])
    del before
    with metered() as cost:
        kept = bytearray(b"x" * (50 * MIB))
        bytearray(b"x" * (50 * MIB))
    assert len(kept) == 50 * MIB
    assert 99 < (cost.peak_gib - cost.loaded_gib) * 1024 < 160


def test_cpu_seconds_are_not_wall_seconds() -> None:
    with metered() as cost:
        time.sleep(0.3)
        start = time.process_time()
        while time.process_time() - start < 0.1:
            pass
    assert 0.1 <= cost.cpu_seconds < 0.25
    assert cost.wall_seconds >= 0.4


def test_loaded_weights_count_as_loaded(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(64 * MIB // 4)}, file)
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(load_file(file)["weight"])
    assert status_gib("VmRSS") > 0
    with metered([model]) as cost:
        assert float(model.weight.detach().sum()) == 64 * MIB // 4
    assert cost.peak_gib - cost.loaded_gib < 0.01
