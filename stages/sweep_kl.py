"""Over-optimization: proxy and gold score against the square root of the KL to SFT, over the snapshots of PPO and over
best-of-n, with the fits of Gao et al. 2022. Not part of the pipeline.

python -m stages.sweep_kl --config configs/demo.yaml --ppo.snapshot_every 1        # the run's own PPO
python -m stages.sweep_kl --config configs/demo.yaml --sweep_kl.seeds [0] --sweep_kl.kl_coef 0
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from ppo.config import PPOConfig
from stages import manifest
from stages.config import RunConfig
from stages.launch import connected
from stages.outdated import outdated
from stages.pins import pinned
from stages.runner import main
from stages.sweeps import (
    bootstrap_of,
    measure,
    refuse_truncated_sampling,
    refuse_unusable_gold,
    run_root,
    train,
    write_sweep,
)

FEWEST = 3
"""Minimum number of snapshots, since a fit has two parameters."""


def work(config: RunConfig, force: bool) -> None:
    """Trains the runs of `seeds`, measures every snapshot and SFT, writes sweep_kl/sweep.json and sweep.png."""
    from data.sets import evenly
    from evaluation.sweeps.kl import Snapshot, kl_sweep
    from ppo.snapshots import snapshots

    accelerator, options = connected(config), config.sweep_kl
    refuse_truncated_sampling(config, "sweep_kl")
    refuse_unusable_gold(config, "sweep_kl")
    found = []
    for name, folder in runs(config, force):
        kept = list(snapshots(folder).items())[::-1]  # from the end, so that the last one is among them
        chosen = evenly(kept, options.snapshots)[::-1]
        for number, (iteration, path) in enumerate(chosen, start=1):
            accelerator.print(f"sweep_kl: {name}, snapshot {number} of {len(chosen)}")
            point = f"sweep_kl/measured-{name}-iteration-{iteration:08d}"
            measured = measure(config, point, path, options.answers_per_prompt, force)
            found.append(Snapshot(name, iteration, measured))
    accelerator.print("sweep_kl: best-of-n")
    sft = measure(config, "sweep_kl/measured-sft", None, options.best_of_n, force)
    about = {"kl_coef": own_settings(config).kl_coef} if options.seeds else {}
    inputs = {} if options.seeds else {"ppo": manifest.stage_digest(run_root(config).stage("ppo"))}
    folder = write_sweep(config, "sweep_kl", sft, about | kl_sweep(sft, found, bootstrap_of(config, sft)), inputs)
    accelerator.print(f"sweep_kl: done, {folder / 'sweep.json'} and {folder / 'sweep.png'}")


def runs(config: RunConfig, force: bool) -> Iterator[tuple[str, Path]]:
    """(name, folder) of each PPO run. Raises ValueError, before anything is trained, when it has too few snapshots."""
    from modeling.accelerator import make_accelerator

    options = config.sweep_kl
    if not options.seeds:
        root = run_root(config)
        folder = root.stage("ppo")
        manifest.stage_digest(folder)
        found, _ = pinned(config, root.root)
        for line in outdated(root.root, ["ppo"], asdict(found)):
            make_accelerator(config.model.device).print(f"sweep_kl: warning: {line}", flush=True)
        refuse_few_snapshots(config, folder)
        yield "ppo", folder
        return
    own = own_settings(config)
    own.snapshot_every = max(1, own.iterations // options.snapshots)
    own.validate()
    if own.iterations < FEWEST:
        raise ValueError(
            f"PPO of {own.iterations} iteration(s) leaves too few snapshots for a curve, which needs {FEWEST}: raise "
            "sweep_kl.total_episodes, or lower ppo.batch_size"
        )
    for seed in options.seeds:
        yield f"seed-{seed}", train(replace(config, ppo=own), f"sweep_kl/seed-{seed}", seed, force)


def own_settings(config: RunConfig) -> PPOConfig:
    """PPO's settings in the runs of `sweep_kl.seeds`."""
    options = config.sweep_kl
    return replace(
        config.ppo,
        total_episodes=options.total_episodes or config.ppo.total_episodes,
        kl_coef=config.ppo.kl_coef if options.kl_coef is None else options.kl_coef,
        kl_target=config.ppo.kl_target if options.kl_coef is None else None,
    )


def refuse_few_snapshots(config: RunConfig, folder: Path) -> None:
    """Raises ValueError when the run's own PPO has too few snapshots for a curve."""
    from ppo.snapshots import snapshots

    if (count := len(snapshots(folder))) < FEWEST:
        made = manifest.read(folder)
        assert made is not None, "manifest.stage_digest"
        iterations = int(made.headline["episodes"] // made.config["ppo"]["batch_size"])
        every = max(1, iterations // config.sweep_kl.snapshots)
        raise ValueError(
            f"{folder} holds {count} snapshot(s) of the policy, and a curve needs {FEWEST}: run PPO again with "
            f"--ppo.snapshot_every {every}, or train runs for the sweep with --sweep_kl.seeds [0]"
        )


if __name__ == "__main__":
    main(work, "python -m stages.sweep_kl", "Proxy and gold score against the KL to SFT.")
