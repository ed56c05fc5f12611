"""Checks of settings before a stage loads its models: warnings about settings with which a model learns little, and
errors for batch sizes that are not divisible by the number of processes.
"""

import operator
from collections.abc import Sequence
from typing import Any

from ppo.config import PPOConfig
from stages.config import STAGES, RunConfig

SFT_LEFT = 0.05
"""A larger share of the SFT weights in the policy's moving average at the end of PPO is warned about."""
LORA_RATES = {
    "sft.learning_rate": (5e-6, 2e-4),
    "sft_baseline.learning_rate": (9.65e-6, 2e-4),
    "reward.learning_rate": (9e-6, 2e-4),
    "ppo.learning_rate": (5e-6, 1e-4),
    "ppo.value_learning_rate": (9e-6, 2e-4),
}
"""(default, for full fine-tuning; approximate value for LoRA)."""
SHARED_BATCHES = {"sft": "batch_size", "ppo": "minibatch_size", "sft_baseline": "batch_size"}
"""Batches of which each process takes an equal part."""


def cautions(config: RunConfig, stage: str) -> list[str]:
    """Warnings about the settings of a stage, one sentence each."""
    found = []
    trained = stage not in ("sft", "reward") or getattr(config, stage).epochs > 0
    for name, (full, lora) in LORA_RATES.items():
        rate = setting(config, name)
        if trained and config.model.adapter == "lora" and name.startswith(f"{stage}.") and 0 < rate <= full:
            found.append(
                f"{name}={rate:g} is a learning rate for full fine-tuning, with which LoRA learns almost nothing: set "
                f"it to about {lora:g}, or set model.adapter=none"
            )
    iterations = config.ppo.iterations - config.ppo.value_warmup_iterations
    if stage == "ppo" and config.ppo.warmup_iterations > iterations:
        found.append(
            f"ppo.warmup_iterations={config.ppo.warmup_iterations} is more than the {iterations} iterations of this "
            "run that train the policy (ppo.total_episodes / ppo.batch_size, without ppo.value_warmup_iterations), so "
            "the learning rates never reach their values: lower it, or raise ppo.total_episodes"
        )
    averages = ["evaluate.weights"] * (config.evaluate.weights == "ema")
    averages += ["ppo.held_out.weights"] * (config.ppo.held_out.every > 0 and config.ppo.held_out.weights == "ema")
    if stage == "ppo" and averages:
        found += [f"{line}, or {' and '.join(averages)} to last" for line in ema_warning(config.ppo, averages)]
    return found


def ema_warning(ppo: PPOConfig, settings: Sequence[str] = ()) -> list[str]:
    """A warning if a large share of the SFT weights is left in the policy's EMA at the end of PPO.

    Args:
        settings: the names of the settings that select the EMA; none in `sweep_ptx`, which always evaluates it.
    """
    steps = (ppo.iterations - ppo.value_warmup_iterations) * (ppo.batch_size // ppo.minibatch_size) * ppo.inner_epochs
    left = ppo.ema_decay**steps
    if left <= SFT_LEFT or ppo.learning_rate == 0:
        return []
    fitting = 1 - float(f"{min(1, 7 / max(1, steps)):.1g}")  # leaves about a thousandth
    evaluators = " and ".join(f"{name}=ema" for name in settings)
    used = f"{evaluators} evaluate{'s' * (len(settings) == 1)} it" if settings else "the sweep measures it"
    return [
        f"ppo.ema_decay={ppo.ema_decay:g} leaves {left:.0%} of the SFT weights in the moving average after the "
        f"{steps} optimizer step{'s' * (steps != 1)} of this run, and {used}: set ppo.ema_decay to about {fitting:g}"
    ]


def setting(config: RunConfig, name: str) -> Any:
    """The value of a setting by its dotted name."""
    return operator.attrgetter(name)(config)


def refuse_uneven_batches(config: RunConfig, processes: int, stage: str = "") -> None:
    """Raises ValueError when a batch of the stage, or of any stage of the pipeline if none is given, is not divisible
    by the number of processes.
    """
    for section in (stage,) if stage else (name for name in SHARED_BATCHES if name in STAGES):
        name = f"{section}.{SHARED_BATCHES[section]}"
        size = setting(config, name)
        if size % processes:
            raise ValueError(f"{name}={size} is not divisible by the {processes} processes: change it or their number")
