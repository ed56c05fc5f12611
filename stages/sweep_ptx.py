"""Loss on pretraining text against reward, over the coefficients of the pretraining mix (gamma) and of the KL penalty
(beta), as in figures 33 and 34 of Ouyang et al. 2022. Not part of the pipeline.

python -m stages.sweep_ptx --config configs/demo.yaml --sweep_ptx.total_episodes 128 --sweep_ptx.gammas [0,1,10]
"""

from dataclasses import replace

from ppo.config import PPOConfig
from ppo.monitors import StoppedRunError
from stages.cautions import ema_warning
from stages.config import RunConfig
from stages.launch import connected
from stages.runner import main
from stages.sweeps import (
    EMA,
    bootstrap_of,
    measure,
    refuse_truncated_sampling,
    refuse_unusable_gold,
    train,
    write_sweep,
)


def work(config: RunConfig, force: bool) -> None:
    """Trains and measures every point, and measures SFT; writes sweep_ptx/sweep.json and its picture.

    A PPO run that a monitor stops is listed under `stopped`, and the sweep continues.
    """
    from evaluation.sweeps.measure import Measured
    from evaluation.sweeps.ptx import Point, ptx_sweep

    accelerator, options = connected(config), config.sweep_ptx
    refuse_truncated_sampling(config, "sweep_ptx")
    refuse_unusable_gold(config, "sweep_ptx")
    planned = points(config)
    for settings in planned:
        settings.validate()
    config = replace(config, evaluate=replace(config.evaluate, weights="last"))  # PPO's own EMA warning does not apply
    for line in ema_warning(planned[0]):
        accelerator.print(f"sweep_ptx: warning: {line}")
    accelerator.print("sweep_ptx: SFT")
    sft = measure(config, "sweep_ptx/measured-sft", None, options.answers_per_prompt, force)
    found, stopped = list[Point](), dict[str, str]()
    for number, settings in enumerate(planned, start=1):
        measured = dict[int, Measured]()
        for seed in options.seeds:
            name = f"gamma-{settings.ptx_coef:.12g}-beta-{settings.kl_coef:.12g}-seed-{seed}"
            accelerator.print(f"sweep_ptx: point {number} of {len(planned)}, {name}")
            try:
                folder = train(replace(config, ppo=settings), f"sweep_ptx/{name}", seed, force)
            except StoppedRunError as error:
                accelerator.print(f"sweep_ptx: {name} was stopped: {error}")
                stopped[name] = str(error)
                continue
            point = f"sweep_ptx/measured-{name}"
            measured[seed] = measure(config, point, folder / EMA, options.answers_per_prompt, force)
        if measured:
            found.append(Point(settings.ptx_coef, settings.kl_coef, measured))
    results = ptx_sweep(sft, found, config.labels.tie_width, bootstrap_of(config, sft))
    about = {"kl_coef": config.ppo.kl_coef, "episodes": planned[0].total_episodes, "stopped": stopped}
    folder = write_sweep(config, "sweep_ptx", sft, about | results)
    accelerator.print(f"sweep_ptx: done, {folder / 'sweep.json'} and {folder / 'sweep.png'}")


def points(config: RunConfig) -> list[PPOConfig]:
    """PPO's settings at each point, without duplicates: gammas at the run's beta, then betas at gamma 0."""
    options, beta = config.sweep_ptx, config.ppo.kl_coef
    pairs = [*((gamma, beta) for gamma in options.gammas), *((0.0, beta) for beta in options.betas)]
    common = replace(
        config.ppo, total_episodes=options.total_episodes or config.ppo.total_episodes, kl_target=None, snapshot_every=0
    )
    return [replace(common, ptx_coef=gamma, kl_coef=beta) for gamma, beta in dict.fromkeys(pairs)]


if __name__ == "__main__":
    main(work, "python -m stages.sweep_ptx", "Loss on pretraining text against reward over PPO's coefficients.")
