"""Stage 2: the reward model, and how often it agrees with the labeler on held-out rankings.

python -m stages.reward --config configs/demo.yaml --reward.epochs 2
torchrun --nproc_per_node 8 -m stages.reward --config configs/demo.yaml
"""

import json
from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.runner import RunFolder, Stage, stage_main


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Trains; saves `model`, with LoRA `adapter` too, and `accuracy.json`."""
    import torch

    from data.sets import read_set
    from data.tokenize import encode_completion, encode_prompt
    from evaluation.reward_model import report
    from modeling.adapters import add_lora, merged
    from modeling.load import context_length, load_scalar, load_tokenizer, save
    from modeling.processes import processes
    from modeling.scalar import initialise_head, scalar_model
    from modeling.seeds import derive_seed
    from modeling.tracking import Tracker
    from reward.batches import Element, elements
    from reward.train import score_all, train
    from stages.inputs import rankings

    team = processes(config.model.device)
    sft = run.stage("sft") / "model"
    tokenizer = load_tokenizer(sft, config.model)
    pad_id = tokenizer.pad_token_id
    sets, left_out = {}, {}
    model = load_scalar(sft, config.model, tokenizer).to(team.device)
    initialise_head(model, derive_seed(config.seed, "reward head"))
    for split in ("train", "valid", "test"):
        found = rankings(run.stage("data"), run.stage("labels"), split)
        if not found:
            raise ValueError(f"there are no {split} rankings: run the labels stage, or give some in data.rankings")
        sets[split], left_out[split] = elements(tokenizer, found, context_length(model.config))
    if config.model.adapter == "lora":
        torch.manual_seed(derive_seed(config.seed, "reward adapter"))
        model = add_lora(model, config.model.lora)
        scalar_model(model).head.requires_grad_(True)
    scalar = scalar_model(model)
    tracker = Tracker(out) if team.is_main else None
    train(config.reward, config.model, model, sets["train"], pad_id, config.seed, team, tracker)

    limit = config.reward.max_tokens_per_micro_batch
    demonstrations = read_set(run.stage("data"), "sft", "train")[: config.reward.bias_demonstrations]
    shown = [
        Element(encode_prompt(tokenizer, d), [encode_completion(tokenizer, d.completion)], torch.zeros(1, 1, dtype=torch.bool))
        for d in demonstrations
    ]
    means = [row[0] for row in score_all(scalar, shown, limit, config.model, pad_id, team)]
    bias = sum(means) / len(means)
    numbers = {split: report(score_all(scalar, sets[split], limit, config.model, pad_id, team), sets[split]) for split in ("valid", "test")}
    if team.is_main:
        inner = model.get_base_model() if config.model.adapter == "lora" else model
        inner.config.score_bias = bias
        if config.model.adapter == "lora":
            model.save_pretrained(out / "adapter")
        save(merged(model), tokenizer, out / "model")
        (out / "accuracy.json").write_text(json.dumps({"bias": bias, "left_out": left_out, **numbers}, indent=2) + "\n")
    return {
        "reward_accuracy": numbers["test"]["accuracy"]["mean"],
        "valid_accuracy": numbers["valid"]["accuracy"]["mean"],
        "longest_baseline": numbers["test"]["longest_baseline"]["mean"],
        "train_prompts": len(sets["train"]),
        "bias": bias,
        "score_std": numbers["test"]["score_std"],
    }


STAGE = Stage("reward", sections=("model", "reward"), after=("data", "sft", "labels"), work=work, parallel=True)

if __name__ == "__main__":
    stage_main(STAGE, "Stage 2: the reward model.")
