"""Samples K answers per prompt from the SFT model or a later policy, to be ranked.

python -m stages.samples --config configs/demo.yaml --samples.answers_per_prompt 6
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.config import RunConfig
from stages.headline import summary
from stages.manifest import model_digests
from stages.runner import RunFolder, Stage, stage_main

if TYPE_CHECKING:
    from data.records import Prompt

TRAIN = "samples_train.jsonl"


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes samples_<split>.jsonl."""
    from data.files import write_records
    from data.records import SPLITS
    from labeling.sampling import AnswerSampler, distinct_samples, rankable, with_echo
    from modeling.accelerator import from_main, make_accelerator
    from modeling.foreign import refuse_other_kinds
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
    how, model_config = config.samples, config.model.of_export()
    place = how.policy or str(run.stage("sft") / "model")
    if how.policy is not None:
        from_main(accelerator, lambda: refuse_other_kinds(place, model_config, f"samples.policy={place}"))
    tokenizer = load_tokenizer(place, model_config)
    model = load_causal(place, model_config, tokenizer).to(accelerator.device)
    numbers["generation"] = how.recorded(config.seed)
    accelerator.print(f"samples: generation with {summary(numbers['generation'])}", flush=True)
    sampler = AnswerSampler(model, tokenizer, how, config.seed, accelerator, out / "scratch")
    for split in SPLITS:
        prompts, without_demonstration = prompts_to_sample(config, run.stage("data"), split)
        numbers["without_demonstration"] += without_demonstration
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
            ranked = [with_echo(row) for row in kept] if split == "train" and how.echo else kept
            write_records(out / f"samples_{split}.jsonl", ranked)
        numbers["prompts"] += len(kept)
        numbers["answers"] += sum(len(row.completions) for row in kept)
        numbers["complete"] += sum(sum(row.complete) for row in kept)
        numbers["dropped_fewer_than_two"] += dropped
    numbers["complete"] = numbers["complete"] / max(1, numbers["answers"])
    return numbers


def prompts_to_sample(config: RunConfig, data: Path, split: str) -> "tuple[list[Prompt], int]":
    """(the prompts of a split whose answers are ranked, the number of those that lack a demonstration and are not).

    The rubric compares answers with a demonstration; prompts without one are used in RL only.
    """
    from data.records import Demonstration
    from data.sets import evenly, read_set

    how = config.samples
    prompts = everything = read_set(data, "rm", split)
    if config.labels.labeler == "simulated":
        prompts = [prompt for prompt in everything if isinstance(prompt, Demonstration)]
    without_demonstration = len(everything) - len(prompts)
    if split == "train":
        prompts = not_sampled(prompts, how.leave_out)
    limit = how.max_train_prompts if split == "train" else how.max_heldout_prompts
    return evenly(prompts, limit), without_demonstration


def not_sampled(prompts: "list[Prompt]", earlier: Sequence[str]) -> "list[Prompt]":
    """The prompts that are in none of these earlier samples; all of them if there are no others."""
    from data.files import read_records
    from data.records import Samples

    known = {row.prompt_id for folder in earlier for row in read_records(Path(folder) / TRAIN, Samples)}
    return [prompt for prompt in prompts if prompt.prompt_id not in known] or prompts


def external(config: RunConfig) -> dict[str, str]:
    """Digests of another policy and of earlier samples."""
    return model_digests(config.samples.policy, *config.samples.leave_out)


STAGE = Stage(
    "samples",
    sections=("model", "samples", "labels.labeler"),
    after=("data", "sft"),
    work=work,
    external=external,
    parallel=True,
    discardable=("scratch",),
)

if __name__ == "__main__":
    stage_main(STAGE, "Samples K answers per prompt from the SFT model.")
