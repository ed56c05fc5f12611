"""Stage 2: trains the reward model and evaluates it on held-out rankings.

python -m stages.reward --config configs/demo.yaml --reward.epochs 2
python -m stages.reward --config configs/demo.yaml --reward.base path/to/a/reward/model --reward.epochs 0
torchrun --nproc_per_node 8 -m stages.reward --config configs/demo.yaml
"""

from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.manifest import model_digests
from stages.runner import RunFolder, Stage, stage_main


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Trains; saves `model`, with LoRA on the SFT model also `adapter`, and `accuracy.json` with a report page."""
    from data.records import SPLITS
    from data.sets import evenly, read_set
    from evaluation.reward_evaluation import RewardEvaluation, headline
    from evaluation.reward_model import prompts_of, some_prompts
    from modeling.accelerator import from_main, make_accelerator
    from modeling.run import Run
    from modeling.sharding import Sharding
    from reports.reward import write_reward_page
    from reward.batches import demonstrations, example_sets
    from reward.fit import RewardData, fit
    from reward.score_code import score_code
    from stages.cautions import cautions
    from stages.inputs import left_out_lines, rankings
    from stages.preflight import check_reward_base

    accelerator, sft = make_accelerator(config.model.device), run.stage("sft") / "model"
    for line in cautions(config, "reward"):
        accelerator.print(f"reward: warning: {line}")
    start = from_main(accelerator, lambda: check_reward_base(config, config.model.of_export(), sft))
    if (problem := from_main(accelerator, lambda: unread_prompt(config, run))) is not None:
        accelerator.print(f"reward: warning: {problem}")
    tokenizer = start.tokenizer()
    answer_suffix = start.answer_suffix(tokenizer)
    splits = SPLITS if config.reward.epochs > 0 else SPLITS[1:]
    ranked = {split: rankings(config, run, split) for split in splits}
    sets, left_out = example_sets(tokenizer, ranked, start.context, answer_suffix)
    sets["train"] = some_prompts(sets.get("train", []), config.reward.max_train_prompts)
    for line in left_out_lines(left_out):
        accelerator.print(f"reward: {line}")
    # The set is ordered by source, so evenly spread rows represent each source in proportion.
    shown = evenly(read_set(run.stage("data"), "sft", "train"), config.reward.bias_demonstrations)
    fitting = demonstrations(tokenizer, shown, start.context, answer_suffix)
    if too_long := len(shown) - len(fitting):
        accelerator.print(f"reward: {too_long} demonstrations for the bias are too long and left out")
    watched = {
        split: some_prompts(sets[split], config.reward.epoch_evaluation_prompts)
        for split in ("train", "valid")
        if config.reward.epoch_evaluation_prompts
    }
    held_out = {split: sets[split] for split in ("valid", "test")}
    settings = Run(accelerator, config.seed, out, config.tracking, Sharding.from_environment())
    made = fit(config.reward, start, tokenizer, RewardData(sets["train"], held_out, fitting, watched), settings)
    limit, resamples = config.reward.max_tokens_per_micro_batch, config.evaluate_reward.bootstrap_resamples
    baseline = sft if config.evaluate_reward.sft_likelihood else None
    evaluation = RewardEvaluation(settings, limit, resamples, config.model.of_export(), baseline)
    numbers = evaluation.reports(made["scores"], sets)
    train_prompts = len(set(prompts_of(sets["train"])))
    curve = evaluation.learning_curve(config.reward, start, sets)
    if curve:
        curve.append({"fraction": 1.0, "prompts": train_prompts, "accuracy": numbers["test"]["accuracy"]})
    found = {"bias": made["bias"], "left_out": left_out, **numbers, "epochs": made["epochs"], "learning_curve": curve}
    if accelerator.is_main_process:
        evaluation.write(found)
        write_reward_page(out, config.run_name, found)
        (out / "score.py").write_text(score_code(out / "model", start.model_config.of_export()))
    if (accuracy := numbers["test"]["accuracy"])["low"] <= 0.5:
        advice = "Give it more rankings, or raise reward.epochs or reward.learning_rate"
        if config.reward.epochs == 0:
            advice = "Train it on your rankings (reward.epochs), or choose another reward.base"
        accelerator.print(
            "reward: warning: on held-out pairs the reward model is not shown to be better than chance: "
            f"{accuracy['mean']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%}), so PPO may maximize noise. "
            f"{advice}"
        )
    return headline(numbers["test"]) | {
        "valid_accuracy": numbers["valid"]["accuracy"]["mean"],
        "train_prompts": train_prompts,
        "bias": made["bias"],
    }


def unread_prompt(config: RunConfig, run: RunFolder) -> str | None:
    """Why a prompt of a later stage cannot be read by a reward model. This one may be trained for another purpose."""
    from modeling.load import load_tokenizer
    from stages.readers import check_readers

    try:
        check_readers(config, run.stage("data"), load_tokenizer(run.stage("sft") / "model", config.model.of_export()))
    except ValueError as error:
        return str(error)
    return None


def external(config: RunConfig) -> dict[str, str]:
    """Digests of a local `reward.base`."""
    return model_digests(config.reward.base, config.reward.chat_template)


STAGE = Stage(
    "reward",
    sections=("model", "reward", "evaluate_reward.sft_likelihood", "evaluate_reward.bootstrap_resamples"),
    after=("data", "sft", "labels"),
    work=work,
    external=external,
    parallel=True,
    for_people=("reward.html", "reward.md", "reward_pictures", "score.py"),
    scratch=("checkpoints",),
    hash_exclude=(
        "tracking",
        "reward.checkpoint_minutes",
        "reward.activation_checkpointing",
        "reward.max_tokens_per_micro_batch",
    ),
)

if __name__ == "__main__":
    stage_main(STAGE, "Stage 2: the reward model.")
