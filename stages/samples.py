"""Samples K answers per prompt from the SFT model, to be ranked.

python -m stages.samples --config configs/demo.yaml --samples.answers_per_prompt 6
"""

from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.runner import RunFolder, Stage, stage_main, summary


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes samples_<split>.jsonl."""
    from data.files import write_records
    from data.records import SPLITS, Demonstration
    from data.sets import evenly, read_set
    from labeling.sampling import AnswerSampler, distinct_samples, rankable
    from modeling.accelerator import make_accelerator
    from modeling.load import autocast, load_causal, load_tokenizer

    accelerator = make_accelerator(config.model.device)
    numbers: dict[str, Any] = {
        "prompts": 0,
        "answers": 0,
        "dropped_fewer_than_two": 0,
        "complete": 0,
        "without_demonstration": 0,
    }
    if config.labels.labeler == "none":
        return numbers
    sft, model_config = run.stage("sft") / "model", config.model.of_export()
    tokenizer = load_tokenizer(sft, model_config)
    model = load_causal(sft, model_config, tokenizer).to(accelerator.device)
    how = config.samples
    numbers["generation"] = how.recorded(config.seed)
    accelerator.print(f"samples: generation with {summary(numbers['generation'])}", flush=True)
    sampler = AnswerSampler(model, tokenizer, how, config.seed, accelerator, out / "scratch")
    for split in SPLITS:
        prompts = read_set(run.stage("data"), "rm", split)
        if config.labels.labeler == "simulated":
            # The rubric compares answers with a demonstration; prompts without one are used in RL only.
            numbers["without_demonstration"] += len(prompts)
            prompts = [prompt for prompt in prompts if isinstance(prompt, Demonstration)]
            numbers["without_demonstration"] -= len(prompts)
        prompts = evenly(
            prompts, config.samples.max_train_prompts if split == "train" else config.samples.max_heldout_prompts
        )
        with autocast(config.model, accelerator.device):
            answers = sampler.answers(prompts, how.answers_per_prompt, f"samples {split}")
        kept, dropped = rankable(
            [distinct_samples(tokenizer, prompt, row) for prompt, row in zip(prompts, answers, strict=True)]
        )
        if not kept:
            raise ValueError(
                f"every {split} prompt got fewer than two distinct answers, so none can be ranked: raise "
                "samples.temperature, samples.top_k or samples.top_p"
            )
        if accelerator.is_main_process:
            write_records(out / f"samples_{split}.jsonl", kept)
        numbers["prompts"] += len(kept)
        numbers["answers"] += sum(len(row.completions) for row in kept)
        numbers["complete"] += sum(sum(row.complete) for row in kept)
        numbers["dropped_fewer_than_two"] += dropped
    numbers["complete"] = numbers["complete"] / max(1, numbers["answers"])
    return numbers


STAGE = Stage(
    "samples",
    sections=("model", "samples", "labels.labeler"),
    after=("data", "sft"),
    work=work,
    parallel=True,
    discardable=("scratch",),
)

if __name__ == "__main__":
    stage_main(STAGE, "Samples K answers per prompt from the SFT model.")
