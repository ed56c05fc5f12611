"""Stage 2: trains the reward model and evaluates it on held-out rankings.

python -m stages.reward --config configs/demo.yaml --reward.epochs 2
python -m stages.reward --config configs/demo.yaml --reward.base path/to/a/reward/model --reward.epochs 0
torchrun --nproc_per_node 8 -m stages.reward --config configs/demo.yaml
"""

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.config import RunConfig
from stages.manifest import model_digests
from stages.runner import RunFolder, Stage, stage_main

if TYPE_CHECKING:
    from accelerate import Accelerator

    from reward.batches import RankingExample
    from reward.start import Start


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Trains; saves `model`, with LoRA on the SFT model also `adapter`, and `accuracy.json` with a report page."""

    from data.records import SPLITS
    from data.sets import read_set
    from evaluation.likelihood import sft_baselines
    from evaluation.reward_model import report
    from modeling.accelerator import from_main, make_accelerator
    from modeling.run import Run
    from modeling.sharding import Sharding
    from reward.batches import demonstrations
    from reward.fit import RewardData, fit
    from stages.cautions import cautions
    from stages.inputs import evenly, left_out_lines, ranked_examples
    from stages.preflight import check_reward_base

    accelerator, judging, sft = (
        make_accelerator(config.model.device),
        config.evaluate_reward,
        run.stage("sft") / "model",
    )
    for line in cautions(config, "reward"):
        accelerator.print(f"reward: warning: {line}")
    start = from_main(accelerator, lambda: check_reward_base(config, sft))
    tokenizer = start.tokenizer()
    answer_suffix = start.answer_suffix(tokenizer)
    splits = SPLITS if config.reward.epochs > 0 else SPLITS[1:]
    sets, left_out = ranked_examples(config, run, splits, tokenizer, start.context, answer_suffix)
    sets["train"] = evenly(sets.get("train", []), config.reward.max_train_prompts)
    for line in left_out_lines(left_out):
        accelerator.print(f"reward: {line}")
    # The set is ordered by source, so evenly spread rows represent each source in proportion.
    shown = evenly(read_set(run.stage("data"), "sft", "train"), config.reward.bias_demonstrations)
    fitting = demonstrations(tokenizer, shown, start.context, answer_suffix)
    if too_long := len(shown) - len(fitting):
        accelerator.print(f"reward: {too_long} demonstrations for the bias are too long and left out")
    watched = {
        split: evenly(sets[split], config.reward.epoch_evaluation_prompts)
        for split in ("train", "valid")
        if config.reward.epoch_evaluation_prompts
    }
    held_out = {split: sets[split] for split in ("valid", "test")}
    settings = Run(accelerator, config.seed, out, config.tracking, Sharding.from_environment())
    made = fit(config.reward, start, tokenizer, RewardData(sets["train"], held_out, fitting, watched), settings)
    numbers = {}
    for split, scores in made["scores"].items():
        others = (
            sft_baselines(sft, config.model, sets[split], config.reward.max_tokens_per_micro_batch, accelerator)
            if judging.sft_likelihood and split == "test"
            else {}
        )
        numbers[split] = report(scores, sets[split], others, judging.bootstrap_resamples)
    curve = learning_curve(config, start, tokenizer, sets, accelerator, out / "checkpoints")
    if curve:
        curve.append({"fraction": 1.0, "prompts": len(sets["train"]), "accuracy": numbers["test"]["accuracy"]})
    if accelerator.is_main_process:
        write_report(
            out,
            config.run_name,
            {"bias": made["bias"], "left_out": left_out, **numbers, "epochs": made["epochs"], "learning_curve": curve},
        )
    return headline(numbers["test"]) | {
        "valid_accuracy": numbers["valid"]["accuracy"]["mean"],
        "train_prompts": len(sets["train"]),
        "bias": made["bias"],
    }


def learning_curve(
    config: RunConfig,
    start: "Start",
    tokenizer: Any,
    sets: dict[str, list["RankingExample"]],
    accelerator: "Accelerator",
    out: Path,
) -> list[dict[str, Any]]:
    """Held-out accuracy of models trained on nested subsets of the data, with checkpoints below `out`."""
    from evaluation.reward_model import report
    from modeling.config import TrackingConfig
    from modeling.load import autocast_dtype
    from modeling.models import reward_model
    from modeling.run import Run
    from modeling.seeds import derive_seed
    from reward.scoring import score_all
    from reward.trainer import RewardTrainer

    limit = config.reward.max_tokens_per_micro_batch
    order = random.Random(derive_seed(config.seed, "learning curve")).sample(sets["train"], len(sets["train"]))
    curve = []
    for fraction in sorted(config.reward.learning_curve):
        part = order[: max(1, round(fraction * len(order)))]
        dtype = autocast_dtype(start.model_config, accelerator.device)
        model = reward_model(start.model(tokenizer, config.seed, accelerator.device), dtype)
        run = Run(accelerator, config.seed, out / f"fraction-{fraction}", TrackingConfig(to=[]))
        RewardTrainer(config.reward, model, part, run).train()
        model.eval()
        found = score_all(model, sets["test"], limit, accelerator)
        accuracy = report(found, sets["test"], resamples=config.evaluate_reward.bootstrap_resamples)["accuracy"]
        curve.append({"fraction": fraction, "prompts": len(part), "accuracy": accuracy})
    return curve


def write_report(out: Path, name: str, evaluation: dict[str, Any]) -> None:
    """Writes `accuracy.json` and a report page."""
    from evaluation.reward_page import write_reward_page

    (out / "accuracy.json").write_text(json.dumps(evaluation, indent=2) + "\n")
    write_reward_page(out, name, evaluation)


def headline(test: dict[str, Any]) -> dict[str, Any]:
    """The results on held-out rankings for the manifest and the last log line."""
    from evaluation.verdict import best_baseline

    best = best_baseline(test)
    assert best is not None, "length baselines are always available"
    return {
        "reward_accuracy": test["accuracy"]["mean"],
        "best_baseline": test["baselines"][best]["accuracy"]["mean"],
        "above_best_baseline": test["baselines"][best]["difference"]["mean"],
        "score_std": test["score_std"],
    }


def external(config: RunConfig) -> dict[str, str]:
    """Digests of a local `reward.base`. Raises ValueError if it is this stage's own output."""
    own = RunFolder(Path(config.runs_folder) / config.run_name).stage("reward").resolve()
    if config.reward.base is not None and own in (
        Path(config.reward.base).resolve(),
        *Path(config.reward.base).resolve().parents,
    ):
        raise ValueError(
            f"reward.base={config.reward.base} is this run's own reward model, which the stage would train again and "
            "again: copy it elsewhere"
        )
    return model_digests(config.reward.base, config.reward.chat_template)


STAGE = Stage(
    "reward",
    sections=("model", "reward", "evaluate_reward.sft_likelihood", "evaluate_reward.bootstrap_resamples"),
    after=("data", "sft", "labels"),
    work=work,
    external=external,
    parallel=True,
    for_people=("reward.html", "reward.md", "reward_pictures"),
    scratch=("checkpoints",),
    hash_exclude=("tracking", "reward.checkpoint_minutes"),
)  # fmt: skip

if __name__ == "__main__":
    stage_main(STAGE, "Stage 2: the reward model.")
