"""PPO compared with trl's PPOTrainer on the same models and prompts, with 8 minibatches per roll-out as in the paper:
episodes per CPU second, and peak memory above the loaded models.

make bench-ppo
python -m benchmarks.ppo --rounds 1 --settings full

The peer cannot share a base among its four models, so `lora` is compared with its full fine-tuning.
"""

from benchmarks.compare import Benchmark, Side, main
from benchmarks.work import PPOWork


def sides(work: PPOWork) -> tuple[Side, Side]:
    """Ours and the peer."""
    return Side("ours", work), Side("trl", PPOWork(work.models), "peers")


BENCHMARK = Benchmark(
    name="ppo",
    unit="episodes per CPU second",
    clock="cpu_seconds",
    memory="above_loaded_gib",
    settings={
        "full": sides(PPOWork()),
        "early": sides(PPOWork("early")),
        "lora": sides(PPOWork(adapter="lora")),
    },
    trl="1.12",
    columns=("response_tokens", "ended"),
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
