"""The supervised baseline (Ouyang et al. 2022, 3.5 and C.1): 16 epochs, of which reward-model score selects one.

python -m stages.sft_baseline --config configs/demo.yaml
torchrun --nproc_per_node 8 -m stages.sft_baseline --config configs/demo.yaml

It runs two stages outside the pipeline: `sft_baseline_epochs` trains and keeps the epochs, `sft_baseline` scores them
and saves the chosen one. After the reward model was trained or changed, running it again repeats only the second.
"""

from pathlib import Path
from typing import Any

from stages import manifest, ppo, sft
from stages.config import SIDE_STAGES, RunConfig
from stages.runner import RunFolder, Stage, main, run_stage

EPOCHS_NAME, NAME = SIDE_STAGES


def train_epochs(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Trains; writes the weights of each kept epoch."""
    from data.tokenize import count_prompt_tokens
    from modeling.accelerator import make_accelerator
    from modeling.run import Run
    from sft.epochs import KeepEpochs, kept_epochs
    from sft.train import fit
    from stages.inputs import refuse_too_long

    accelerator, settings = make_accelerator(config.model.device), config.sft_baseline
    base, sets = sft.prepare(config, settings, run, accelerator)
    longest = max(count_prompt_tokens(base.tokenizer, sets.valid), default=0)
    refuse_too_long(config, {"sft_baseline.scoring": longest}, base.model.config)
    where = Run(accelerator, config.seed, out, config.tracking)
    trained = fit(settings, base, sets, where, KeepEpochs(out, settings, accelerator))
    return trained.numbers | {"kept_epochs": len(kept_epochs(settings))}


def choose_epoch(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Scores the kept epochs if there is a reward model; writes epochs.jsonl, choice.json and `model`."""
    from data.intervals import Bootstrap
    from data.sets import evenly, read_set
    from evaluation.best_of_n import Proxy
    from evaluation.sft_baseline import EpochChoice, EpochScorer, losses_by_epoch
    from modeling.accelerator import from_main, make_accelerator
    from modeling.adapters import add_lora, merged
    from modeling.export import export
    from modeling.load import base_model_place, load_causal, load_tokenizer
    from modeling.run import Run
    from modeling.tracking import read_metrics
    from sft.epochs import epoch_file, kept_epochs, load_epoch

    accelerator, settings = make_accelerator(config.model.device), config.sft_baseline.scoring
    epochs = run.stage(EPOCHS_NAME)
    files = {epoch: epoch_file(epochs, epoch) for epoch in kept_epochs(config.sft_baseline)}
    place = from_main(accelerator, lambda: base_model_place(config.model))
    tokenizer = load_tokenizer(place, config.model)
    model = load_causal(place, config.model, tokenizer)
    if config.model.adapter == "lora":
        model = add_lora(model, config.model.lora)
    prompts = evenly(read_set(run.stage("data"), "sft", "valid"), settings.max_prompts)
    answers = {}
    if reward_digest(run):
        reward = run.stage("reward") / "model"
        answers = EpochScorer(
            settings=settings,
            model_config=config.model,
            run=Run(accelerator, config.seed, out),
            proxy=Proxy.between(tokenizer, reward, config.model, ppo.trusts_reward_code(config)),
            prompts=prompts,
            max_tokens=config.reward.max_tokens_per_micro_batch,
        ).answers(model, files)
    choice = EpochChoice(
        losses=losses_by_epoch(read_metrics(epochs / "metrics.jsonl")),
        kept=list(files),
        answers=answers,
        bootstrap=Bootstrap(settings.bootstrap_resamples, [prompt.user_id for prompt in prompts]),
    )

    def save() -> dict[str, Any]:
        load_epoch(files[choice.chosen], model)
        export(merged(model), tokenizer, out / "model", config.model)
        return choice.write(out, prompts, tokenizer)

    facts = from_main(accelerator, save)
    score = choice.score.get(choice.chosen)
    return {
        "epoch": facts["epoch"],
        "chosen_by": facts["by"],
        "valid_loss": choice.valid_loss[choice.chosen],
        "score": None if score is None else score["mean"],
    }


def reward_digest(run: RunFolder) -> dict[str, str]:
    """The digest of the run's reward model; none if there is no finished one."""
    place = run.stage("reward")
    return {"reward": manifest.stage_digest(place)} if manifest.read(place) is not None else {}


EPOCHS = Stage(
    EPOCHS_NAME,
    sections=("model", "sft_baseline", "data.pretraining_tokens"),
    after=("data",),
    work=train_epochs,
    external=sft.external,
    parallel=True,
    scratch=("trainer",),
    hash_exclude=(
        "tracking",
        "sft_baseline.checkpoint_minutes",
        "sft_baseline.activation_checkpointing",
        "sft_baseline.micro_batch_size",
        "sft_baseline.max_kept_gib",
        "sft_baseline.scoring",
    ),
)
STAGE = Stage(
    NAME,
    sections=("model", "sft_baseline.scoring", "reward.base", "reward.trust_remote_code"),
    after=("data", EPOCHS_NAME),
    work=choose_epoch,
    external=lambda config: reward_digest(RunFolder(Path(config.runs_folder) / config.run_name)),
    parallel=True,
    for_people=("answers.jsonl",),
    discardable=("scratch",),
)


def work(config: RunConfig, force: bool) -> None:
    """Runs both stages."""
    for stage in (EPOCHS, STAGE):
        run_stage(stage, config, force)


if __name__ == "__main__":
    main(work, "python -m stages.sft_baseline", "Trains the supervised baseline and selects an epoch.")
