"""What is measured of a process, and what is made of an operation count.

pytest tests/benchmarks/test_gauge.py
"""

import time

import pytest
import torch

from benchmarks.gauge import gib, metered, touch
from benchmarks.profiling import count, cpu_shares, matmul_rate, profiled

MIB = 2**20


def test_memory_is_that_of_the_work_and_not_of_what_came_before() -> None:
    """A passing 400 MiB before, 100 MiB within, of which half is gone at the end."""
    before = bytearray(400 * MIB)
    before[::4096] = b"x" * len(before[::4096])
    del before
    with metered() as cost:
        kept = bytearray(b"x" * (50 * MIB))
        bytearray(b"x" * (50 * MIB))
    assert len(kept) == 50 * MIB
    assert 99 < (cost.peak_gib - cost.loaded_gib) * 1024 < 160


def test_seconds_are_of_the_processor_and_not_of_the_clock() -> None:
    with metered() as cost:
        time.sleep(0.3)
        start = time.process_time()
        while time.process_time() - start < 0.1:
            pass
    assert 0.1 <= cost.cpu_seconds < 0.25


def test_loaded_weights_count_as_held_before_the_work(tmp_path: object) -> None:
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    file = Path(str(tmp_path)) / "weights.safetensors"
    save_file({"weight": torch.ones(64 * MIB // 4)}, str(file))
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(load_file(str(file))["weight"])
    before = gib("VmRSS")
    touch([model])
    assert gib("VmRSS") - before < 0.07
    with metered() as cost:
        assert float(model.weight.detach().sum()) == 64 * MIB // 4
    assert cost.peak_gib - cost.loaded_gib < 0.01


def test_every_kind_of_product_is_counted_as_often_as_it_is_computed() -> None:
    """A linear layer's forward pass and its two backward products, in place too, and attention with its 2 products
    forward and 5 backward.
    """
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    query, key, value = (torch.randn(2, 4, 6, 8, requires_grad=True) for _ in range(3))
    into = torch.zeros(3, 7)

    def work() -> None:
        (a @ b).sum().backward()
        with torch.no_grad():
            into.addmm_(a, b)
        torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()

    assert count(work) == 4 * 2 * 3 * 5 * 7 + 7 * 2 * (2 * 4) * 6 * 6 * 8


def test_products_are_told_from_other_operations() -> None:
    a = torch.randn(600, 600)
    mostly, _ = cpu_shares(lambda: torch.mm(a, a))
    none, top = cpu_shares(lambda: a.exp())
    assert mostly > 0.5
    assert none == 0.0
    assert "aten::exp" in dict(top)


def test_the_achieved_rate_is_what_was_counted_over_the_time_it_took() -> None:
    a = torch.randn(400, 400)
    found = profiled(lambda: torch.mm(a, a), seconds=0.5, episodes=4)
    assert found["counted_gflop_an_episode"] == pytest.approx(2 * 400**3 / 1e9 / 4)
    assert found["achieved_gflops"] == pytest.approx(2 * 400**3 / 1e9 / 0.5)
    assert found["product_gflops"] == pytest.approx(found["achieved_gflops"] / found["product_share"])


def test_the_machine_multiplies_at_a_likely_rate() -> None:
    assert 0.5 < matmul_rate(3) < 100_000
