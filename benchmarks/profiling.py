"""How much of some work's CPU time is matrix products, and how close they come to what the machine can do.

Runs in the peers' environments too: needs torch and nothing of this project but this folder.
"""

import time
from collections.abc import Callable
from typing import Any

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "_scaled_dot_product_flash_attention_for_cpu")
"""Of torch's operations, those that are matrix products and little else; a backward pass of attention counts with
it.
"""
PHASES = ("rollout", "score", "update")
CALIBRATION = 1024
TOP = 12


def profiled(work: Callable[[], object], seconds: float, episodes: int) -> dict[str, Any]:
    """Does the work twice more, once to count its operations and once to time each kind of them.

    `seconds` is what it takes when nobody looks. Counted are products alone, an addition and a multiplication each;
    rates are in GFLOP/s.
    """
    machine, counted = matmul_rate(), count(work) / 1e9
    share, top = cpu_shares(work)
    return {
        "machine_gflops": machine,
        "counted_gflop_an_episode": counted / episodes,
        "achieved_gflops": counted / seconds,
        "product_share": share,
        "product_gflops": counted / (seconds * share),
        "top_operations": top,
    }


def matmul_rate(repeats: int = 20) -> float:
    """GFLOP/s of square float32 matrix products on the threads that torch has: the best of some, since a neighbour only
    ever slows one down.
    """
    import torch

    a, b = torch.randn(2, CALIBRATION, CALIBRATION)
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        torch.mm(a, b, out=out)
        best = min(best, time.process_time() - start)
    return 2 * CALIBRATION**3 / best / 1e9


def count(work: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products in some work."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    aten = torch.ops.aten

    def product(a: Any, b: Any, *rest: Any, **named: Any) -> int:
        return 2 * a[0] * a[1] * b[-1]

    def add_product(bias: Any, a: Any, b: Any, *rest: Any, **named: Any) -> int:
        return product(a, b)

    def attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def attention_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    missing = {
        aten.addmm_: add_product,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    counter = FlopCounterMode(display=False, custom_mapping=missing)
    with counter:
        work()
    return float(counter.get_total_flops())


def cpu_shares(work: Callable[[], object]) -> tuple[float, list[tuple[str, float]]]:
    """(share of the CPU time of all operations that products take, the operations that take most with their shares)."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    seconds = {event.key: float(event.self_cpu_time_total) for event in recorded.key_averages()}
    total = sum(seconds.values())
    names = {f"aten::{name}{suffix}" for name in PRODUCTS for suffix in ("", "_backward")}
    top = sorted(seconds.items(), key=lambda item: -item[1])[:TOP]
    return sum(seconds.get(name, 0.0) for name in names) / total, [(name, spent / total) for name, spent in top]
