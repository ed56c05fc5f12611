"""Shared by the sweeps. Each PPO run and each measurement of a policy is a stage of its own in the sweep's folder, so
that it resumes and is reused when the sweep gets more points.
"""

import gc
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modeling.config import TrackingConfig
from stages import manifest, ppo
from stages.config import RunConfig
from stages.evaluate import refuse_copied_gold
from stages.manifest import model_digests
from stages.runner import RunFolder, Stage, run_stage

if TYPE_CHECKING:
    from data.intervals import Bootstrap
    from evaluation.sweeps.measure import Measured

Sweep = Literal["sweep_kl", "sweep_ptx"]
EMA = "policy_ema.safetensors"
"""The EMA of the finished policy's weights."""
INPUTS = ("data", "sft", "reward")


def run_root(config: RunConfig) -> RunFolder:
    """The run's folder."""
    return RunFolder(Path(config.runs_folder) / config.run_name)


def refuse_truncated_sampling(config: RunConfig, sweep: Sweep) -> None:
    """Raises ValueError unless answers are samples of the whole distribution, which the estimate of the KL needs."""
    how = config.evaluate
    if how.greedy or how.top_k or how.top_p < 1:
        raise ValueError(
            f"{sweep} estimates the KL from samples of the whole distribution: set evaluate.temperature above 0, "
            "evaluate.top_k=0 and evaluate.top_p=1"
        )


def refuse_unusable_gold(config: RunConfig, sweep: Sweep) -> None:
    """Raises ValueError, before anything is trained, if `gold` is not a reward model, or a prompt leaves no room for an
    answer in its context.
    """
    from data.sets import evenly, read_set
    from evaluation.best_of_n import Proxy
    from modeling.load import read_settings, require_reward_model

    options, run = getattr(config, sweep), run_root(config)
    if options.gold is None:
        return
    refuse_copied_gold(options.gold, run.stage("reward") / "model", f"{sweep}.gold")
    setting = f"{sweep}.gold={options.gold}"
    untrusted = replace(config.model.of_export(), trust_remote_code=False)
    require_reward_model(read_settings(options.gold, untrusted), setting, trusted=False)
    gold = Proxy.of(run.stage("sft") / "model", Path(options.gold), config.model, False)
    try:
        gold.tokens.check(evenly(read_set(run.stage("data"), "sft", "test"), options.prompts))
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


def train(config: RunConfig, name: str, seed: int, force: bool) -> Path:
    """Runs PPO with these settings unless it is done; returns its folder, with the EMA's weights and snapshots.

    Args:
        name: `<sweep>/<name of the run>`.
        seed: of PPO; the other stages keep the run's.
    """

    def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        from modeling.tracking import read_metrics
        from ppo.snapshots import save_policy

        gc.collect()  # frees the models of the previous point
        trainer = ppo.trainer_of(replace(config, seed=seed, tracking=TrackingConfig(to=[])), run, out)
        save_policy(out / EMA, trainer.train().average, trainer.accelerator)
        return ppo.headline(read_metrics(out / "metrics.jsonl"))

    stage = replace(
        ppo.STAGE,
        name=name,
        after=INPUTS,
        work=work,
        external=lambda config: ppo.external(config) | {"seed of PPO": str(seed)},
        for_people=(),
    )
    run_stage(stage, config, force)
    return run_root(config).stage(name)


def measure(config: RunConfig, name: str, weights: Path | None, answers: int, force: bool) -> "Measured":
    """Measures a policy, or SFT if there are no `weights`, unless it is done.

    Args:
        name: `<sweep>/<name of the measurement>`.
        answers: per prompt.
    """
    from evaluation.sweeps.measure import Measured

    sweep = name.split("/")[0]

    def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        return measure_policy(config, sweep, weights, answers, out)

    def external(config: RunConfig) -> dict[str, str]:
        gold = getattr(config, sweep).gold
        return model_digests(*(str(place) for place in (weights, gold) if place)) | {"answers": str(answers)}

    stage = Stage(
        name,
        sections=(
            "model", "labels", "data.pretraining_tokens", "reward.base", "reward.trust_remote_code",
            "reward.max_tokens_per_micro_batch", "evaluate.temperature", "evaluate.max_new_tokens",
            f"{sweep}.prompts", f"{sweep}.gold", f"{sweep}.perplexity_examples",
        ),
        after=INPUTS,
        work=work,
        external=external,
        parallel=True,
        discardable=("scratch",),
    )  # fmt: skip
    run_stage(stage, config, force)
    return Measured.read(run_root(config).stage(name))


def measure_policy(config: RunConfig, sweep: str, weights: Path | None, answers: int, out: Path) -> dict[str, Any]:
    """Writes measured.json."""
    from data.sets import evenly, read_set, read_texts
    from evaluation.best_of_n import Proxy
    from evaluation.sweeps.measure import JUDGES, Measurement
    from modeling.accelerator import from_main, make_accelerator
    from modeling.config import GenerationSettings
    from modeling.load import load_tokenizer
    from modeling.run import Run
    from ppo.snapshots import load_policy

    accelerator, how, options = make_accelerator(config.model.device), config.evaluate, getattr(config, sweep)
    run, model_config, trust = run_root(config), config.model.of_export(), ppo.trusts_reward_code(config)
    data, sft = run.stage("data"), run.stage("sft") / "model"
    gold = None
    if options.gold is not None:
        gold = Proxy.of(sft, Path(options.gold), config.model, False)
    measurement = Measurement(
        run=Run(accelerator, config.seed, out),
        sft=sft,
        model_config=model_config,
        prompts=evenly(read_set(data, "sft", "test"), options.prompts),
        texts=list(read_texts(data, "heldout")),
        text_tokens=config.data.pretraining_tokens,
        examples=options.perplexity_examples,
        sampling=GenerationSettings(how.max_new_tokens, how.temperature, batch_size=how.batch_size),
        labels=config.labels,
        proxy=Proxy.of(sft, run.stage("reward") / "model", config.model, trust),
        gold=gold,
        max_tokens=config.reward.max_tokens_per_micro_batch,
    )
    load = None
    if weights is not None:
        tokenizer = load_tokenizer(sft, model_config)

        def load() -> Any:
            return load_policy(weights, sft, model_config, tokenizer)

    found = measurement.measure(load, answers)

    def write() -> dict[str, Any]:
        assert found is not None
        found.write(out)
        average = {part: sum(found.means(part)) / len(found.kl) for part in JUDGES}
        return average | {"kl": sum(found.kl) / len(found.kl)}

    return from_main(accelerator, write)


def bootstrap_of(config: RunConfig, sft: "Measured") -> "Bootstrap":
    """The bootstrap over the prompts' users."""
    from data.intervals import Bootstrap

    return Bootstrap(config.evaluate.bootstrap_resamples, sft.users)


def write_sweep(
    config: RunConfig, sweep: Sweep, sft: "Measured", found: Mapping[str, Any], inputs: Mapping[str, str] | None = None
) -> Path:
    """Writes sweep.json and its picture in the first process; returns the sweep's folder. The report leaves the sweep
    out once one of its `inputs` has been replaced: the stages that every sweep reads, and those given.
    """
    from modeling.accelerator import from_main, make_accelerator
    from modeling.disk import write_whole
    from reports.sweeps import write_picture

    folder, options = run_root(config).stage(sweep), getattr(config, sweep)
    made = manifest.read(folder / "measured-sft")
    assert made is not None, "measure"
    about = {
        "inputs": {name: made.inputs[name] for name in INPUTS} | dict(inputs or {}),
        "prompts": len(sft.kl),
        "users": len(set(sft.users)),
        "answers_per_prompt": options.answers_per_prompt,
        "temperature": config.evaluate.temperature,
        "max_new_tokens": config.evaluate.max_new_tokens,
        "gold": options.gold or "rubric",
        "perplexity_examples": len(sft.losses),
    }

    def write() -> None:
        write_whole(folder / "sweep.json", (json.dumps({**about, **found}, indent=2) + "\n").encode())
        write_picture(folder)

    from_main(make_accelerator(config.model.device), write)
    return folder
