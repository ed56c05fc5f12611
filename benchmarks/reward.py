"""Reward-model training compared with trl's RewardTrainer, on the same model and token ids: prompts per CPU second,
and peak memory of the process.

make bench-reward
python -m benchmarks.reward --rounds 1 --settings k9_100_100
"""

from benchmarks.compare import Benchmark, Side, main
from benchmarks.work import RewardWork


def sides(work: RewardWork) -> tuple[Side, Side]:
    """Ours and the peer."""
    return Side("ours", work), Side("trl", work, "peers")


BENCHMARK = Benchmark(
    name="reward",
    unit="prompts per CPU second",
    clock="cpu_seconds",
    memory="peak_gib",
    settings={
        "k9_100_100": sides(RewardWork(prompt_tokens=100)),
        "k9_300_100": sides(RewardWork(prompt_tokens=300)),
    },
    trl="1.16",
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
