"""Trains a reward model, sets its bias, saves it and scores held-out rankings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modeling.accelerator import from_main
from modeling.adapters import copy_weights, lora_weights, merged, save_adapter, trained_weights, what_lora_adapts
from modeling.export import export
from modeling.finite import require_finite
from modeling.load import autocast_dtype
from modeling.models import RewardModel, plain, reward_model
from modeling.run import Run
from modeling.sharding import gathered_weights
from reward.batches import RankingExample
from reward.config import RewardConfig
from reward.scoring import score_all
from reward.start import Start
from reward.trainer import ADVICE, RewardTrainer


@dataclass(frozen=True)
class RewardData:
    """Rankings in the reward model's tokens."""

    train: Sequence[RankingExample]
    held_out: Mapping[str, Sequence[RankingExample]]
    """The sets that are scored after training."""
    demonstrations: Sequence[RankingExample]
    """Their mean score becomes 0 (Ouyang et al. 2022, section 3.5)."""
    watched: Mapping[str, Sequence[RankingExample]]
    """The sets that are evaluated after each epoch."""


def fit(config: RewardConfig, start: Start, tokenizer: Any, data: RewardData, run: Run) -> dict[str, Any]:
    """Returns {epochs: the evaluation after each, bias, scores: of the held-out sets}. Saves `model` in `run.out`, and
    `adapter` if it is a LoRA adapter of the SFT model.

    A run that was killed after training reads its result from `scores.json`; one that was killed during training
    resumes from its last checkpoint.
    """
    assert run.out is not None
    out, accelerator = run.out, run.accelerator
    file = out / "scores.json"
    kept: dict[str, Any] | None = from_main(
        accelerator, lambda: json.loads(file.read_text()) if file.is_file() else None
    )
    if kept is not None:
        return kept
    model = sharded_model(start, tokenizer, run, train=config.epochs > 0)
    trained = model.encoder.model
    accelerator.print(f"reward: {run.sharding.description(trained, accelerator.num_processes)}")
    if (reason := model.encoder.plain_reason) is not None:
        accelerator.print(f"reward: a prompt is encoded again for each of its answers: {reason}")
    if hasattr(trained, "peft_config"):
        accelerator.print(f"reward: {what_lora_adapts(trained)}")
    epochs: list[dict[str, Any]] = []
    if config.epochs > 0:
        epochs = RewardTrainer(config, model, data.train, run, data.watched).train()
    limit = config.max_tokens_per_micro_batch
    shown = score_all(model, data.demonstrations, limit, accelerator)
    model.bias += sum(row[0] for row in shown) / len(shown)
    scores = {name: score_all(model, items, limit, accelerator) for name, items in data.held_out.items()}
    require_finite({"score_bias": model.bias}, "reward", ADVICE)
    for name, rows in scores.items():
        require_finite({f"a score of the {name} split": sum(map(sum, rows))}, "reward", ADVICE)
    weights = gathered_weights(trained) if run.sharding.active else None

    def write() -> None:
        saved = trained
        if weights is not None:
            saved = start.model(tokenizer, run.seed, accelerator.device, train=config.epochs > 0)
            saved.load_state_dict(weights)
        elif start.model_config.quantization != "none":
            float32 = replace(start, model_config=replace(start.model_config, quantization="none"))
            saved = float32.model(tokenizer, run.seed, accelerator.device, train=config.epochs > 0)
            copy_weights(trained_weights(trained), saved, "the adapter")
        plain(saved).config.score_bias = model.bias
        if saved is not plain(saved) and not start.own_base:
            save_adapter(saved, out / "adapter", head=plain(saved).score.weight)
        if (answer_suffix := start.answer_suffix(tokenizer)) is not None:
            plain(saved).config.score_closing = answer_suffix
        export(merged(saved), tokenizer, out / "model", start.model_config)

    from_main(accelerator, write)
    made = {"epochs": epochs, "bias": model.bias, "scores": scores}
    if accelerator.is_main_process:
        (out / "scores.partial").write_text(json.dumps(made) + "\n")
        (out / "scores.partial").rename(file)
    return made


def sharded_model(start: Start, tokenizer: Any, run: Run, train: bool = True) -> RewardModel:
    """A new copy of the model, sharded over the processes if configured; with LoRA only its base."""
    model = start.model(tokenizer, run.seed, run.accelerator.device, train)
    made = reward_model(model, autocast_dtype(start.model_config, run.accelerator.device))
    head = plain(model).score.parameters() if model is not plain(model) else ()
    run.sharding.shard(model, [*lora_weights(model), *head])
    return made
