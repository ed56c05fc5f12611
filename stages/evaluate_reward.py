"""Evaluates a reward model on held-out rankings: the run's own, or any other, against the same baselines.

python -m stages.evaluate_reward --config configs/demo.yaml
python -m stages.evaluate_reward --config configs/demo.yaml --evaluate_reward.model path/or/hub/name
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.manifest import model_digests, stage_digest
from stages.ppo import trusts_reward_code
from stages.runner import RunFolder, Stage, stage_main

SPLITS = ("valid", "test")


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes `accuracy.json` and a report page."""
    from evaluation.reward_evaluation import RewardEvaluation, headline
    from evaluation.reward_model import some_prompts
    from evaluation.reward_scores import SavedRewardModel
    from modeling.accelerator import make_accelerator
    from modeling.run import Run
    from reports.reward import write_reward_page
    from reward.batches import example_sets
    from reward.scoring import score_all
    from stages.inputs import left_out_lines, rankings

    accelerator, options, limit = (
        make_accelerator(config.model.device),
        config.evaluate_reward,
        config.reward.max_tokens_per_micro_batch,
    )
    place = str(run.stage("reward") / "model")
    model_config = replace(config.model.of_export(), trust_remote_code=trusts_reward_code(config))
    if options.model is not None:
        place, model_config = options.model, options.of(config.model)
    saved = SavedRewardModel.of(place, model_config, f"evaluate_reward.model={place}")
    ranked = {split: rankings(config, run, split) for split in SPLITS}
    readable = ranked if options.model is None else {split: saved.readable(ranked[split]) for split in SPLITS}
    found, left_out = example_sets(saved.tokenizer, readable, saved.context, saved.answer_suffix)
    for split in SPLITS:
        left_out[split]["refused_by_its_chat_template"] = len(ranked[split]) - len(readable[split])
    model = saved.load(accelerator.device)
    lines = left_out_lines(left_out)
    if (reason := model.encoder.plain_reason) is not None:
        lines.append(f"a prompt is encoded again for each of its answers: {reason}")
    for line in lines:
        accelerator.print(f"evaluate_reward: {line}")
    sets = {split: some_prompts(examples, options.max_prompts) for split, examples in found.items()}
    scores = {split: score_all(model, examples, limit, accelerator) for split, examples in sets.items()}
    baseline = run.stage("sft") / "model" if options.sft_likelihood else None
    settings = Run(accelerator, config.seed, out)
    evaluation = RewardEvaluation(settings, limit, options.bootstrap_resamples, config.model.of_export(), baseline)
    numbers = evaluation.reports(scores, sets)
    name = f"{config.run_name}: {options.model or 'its reward model'}"
    results = {"bias": model.bias, "left_out": left_out, **numbers}
    if accelerator.is_main_process:
        evaluation.write(results)
        write_reward_page(out, name, results)
    return headline(numbers["test"]) | {"report": str(run.stage("evaluate_reward") / "reward.html")}


def external(config: RunConfig) -> dict[str, str]:
    """Digests of the evaluated model."""
    if config.evaluate_reward.model is not None:
        return model_digests(config.evaluate_reward.model, config.evaluate_reward.chat_template)
    return {"reward": stage_digest(RunFolder(Path(config.runs_folder) / config.run_name).stage("reward"))}


STAGE = Stage(
    "evaluate_reward",
    sections=(
        "model", "evaluate_reward", "reward.max_answers_per_prompt", "reward.base", "reward.trust_remote_code",
    ),
    after=("data", "sft", "labels"),
    work=work,
    external=external,
    parallel=True,
    for_people=("reward.html", "reward.md", "reward_pictures"),
)  # fmt: skip

if __name__ == "__main__":
    stage_main(STAGE, "Evaluates a reward model on held-out rankings.")
