"""Settings of the sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data.numbers import AtLeastThree, NonNegativeFloat, PositiveInt, Seed, check_numbers


@dataclass(kw_only=True)
class SweepConfig:
    """Settings of the measurement at each point. Answers are sampled with the settings of `evaluate`. All ours."""

    total_episodes: PositiveInt | None = None
    """Episodes of each PPO run that the sweep trains; null takes ppo.total_episodes. Ours."""
    prompts: PositiveInt | None = 64
    """Maximum number of held-out prompts, spread evenly over the test split; null uses all. Ours."""
    answers_per_prompt: PositiveInt = 2
    """Answers sampled per prompt from each policy; the KL is estimated on them. Ours."""
    gold: str | None = None
    """Folder of a reward model for the gold score, preferably trained on other rankings; null uses the labeler's
    rubric. A reward model that PPO was trained on is refused: the run's own, one in ppo.rewards, or reward.base with
    reward.epochs=0. Ours."""
    perplexity_examples: PositiveInt = 64
    """Number of held-out pretraining examples for the pretraining loss. Ours."""

    def check(self, name: str, lists: Sequence[str]) -> None:
        """Raises ValueError for a number out of range, or a duplicate in one of the `lists`.

        Args:
            name: the section's dotted name.
        """
        check_numbers(self, name)
        for key in lists:
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}.{key}={values} contains a value twice")


@dataclass(kw_only=True)
class SweepKLConfig(SweepConfig):
    """Proxy and gold score against the KL to SFT, over a PPO run's snapshots and over best-of-n (Gao et al. 2022)."""

    seeds: list[Seed] = field(default_factory=list)
    """Seeds of PPO runs that are trained for the sweep, with the run's data, SFT and reward model; empty evaluates the
    snapshots of the run's own PPO, which ppo.snapshot_every keeps. Ours."""
    kl_coef: NonNegativeFloat | None = None
    """KL penalty coefficient of the runs in `seeds`; null keeps ppo.kl_coef. Ours: at 0 the policy moves further from
    SFT, so the curve covers a wider range of KL."""
    snapshots: AtLeastThree = 8
    """Maximum number of snapshots per run, spread evenly over its training; at least 3, for a curve. Ours."""
    best_of_n: AtLeastThree = 16
    """Answers per prompt from SFT for best-of-n, at every n up to this. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        self.check("sweep_kl", ["seeds"])
        for name in ("total_episodes", "kl_coef"):
            if not self.seeds and getattr(self, name) is not None:
                raise ValueError(
                    f"sweep_kl.{name} is for PPO runs that the sweep trains: set sweep_kl.seeds=[0], or leave it out"
                )


@dataclass(kw_only=True)
class SweepPtxConfig(SweepConfig):
    """Pretraining loss against reward over PPO's two coefficients (Ouyang et al. 2022, figures 33 and 34)."""

    gammas: list[NonNegativeFloat] = field(default_factory=lambda: [0.0, 1.0, 10.0, 27.8, 100.0])
    """Values of ppo.ptx_coef, at the run's ppo.kl_coef. C.4: 27.8, whose loss units the paper does not state. Ours."""
    betas: list[NonNegativeFloat] = field(default_factory=lambda: [0.02, 0.2, 2.0])
    """Values of ppo.kl_coef at ppo.ptx_coef=0. C.4: 0.02. Ours."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """PPO seeds at each point; results are means over them. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        self.check("sweep_ptx", ["gammas", "betas", "seeds"])
        if not self.seeds or not (self.gammas or self.betas):
            raise ValueError("sweep_ptx has nothing to train: it needs a value in seeds, and one in gammas or betas")
