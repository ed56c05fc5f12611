"""Two processes against one, with one thread each: PPO and reward-model training, replicated (DDP) and sharded (FSDP2).

make bench-scale
python -m benchmarks.scale --rounds 1 --settings ppo_sharded

Strong scaling: the same batches on one process and on two, so 2 is the limit of the ratio. PPO has 256 episodes in 8
minibatches of 32 (64 in the paper): with few episodes per optimizer step, summing gradients and Adam weigh more. Speeds
are items per wall second of training, without loading, and need a machine with two idle cores. Memory is the maximum
over processes, minus the memory after imports: at the peak (`memory_ratio`), and between phases, when a process holds
only its shards of a sharded model and optimizer.
"""

from benchmarks.compare import Benchmark, Side, main
from benchmarks.work import PPOWork, RewardWork, Work


def processes(work: Work, config: str, layout: str) -> tuple[Side, Side]:
    """Two processes and one."""
    flags = ("--config_file", f"configs/accelerate/{config}.yaml", "--num_processes", "2", "--main_process_port", "0")
    launcher = ("-m", "accelerate.commands.launch", *flags)
    return (
        Side(f"2 processes, {layout}", work, launcher=launcher, layout=f"2 processes, models {layout}"),
        Side("1 process", work, layout="1 process, models whole"),
    )


PPO, REWARD = PPOWork(iterations=1, episodes=256), RewardWork(prompts=16, prompts_per_step=8)
BENCHMARK = Benchmark(
    name="scale",
    unit="episodes or prompts per wall second",
    clock="wall_seconds",
    memory="above_libraries_gib",
    settings={
        "ppo_replicated": processes(PPO, "ddp", "replicated"),
        "ppo_sharded": processes(PPO, "fsdp2", "sharded"),
        "reward_replicated": processes(REWARD, "ddp", "replicated"),
        "reward_sharded": processes(REWARD, "fsdp2", "sharded"),
    },
    columns=("between_phases_gib",),
)

if __name__ == "__main__":
    main(BENCHMARK, __doc__)
