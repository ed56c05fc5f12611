"""Evaluates a reward model on held-out rankings, after training or separately."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from evaluation.likelihood import sft_baselines
from evaluation.reward_model import Scores, by_prompt, report
from modeling.config import ModelConfig, TrackingConfig
from modeling.run import Run
from modeling.seeds import derive_seed
from reward.batches import RankingExample
from reward.config import RewardConfig
from reward.fit import sharded_model
from reward.scoring import score_all
from reward.start import Start
from reward.trainer import RewardTrainer

Sets = Mapping[str, Sequence[RankingExample]]
"""Rankings of each split."""


@dataclass(frozen=True)
class RewardEvaluation:
    """Reports of the reward model's scores, and of the baselines."""

    run: Run
    """The files are written to its `out`."""
    max_tokens: int
    """Maximum number of tokens per forward pass."""
    resamples: int
    """Number of bootstrap resamples."""
    model_config: ModelConfig
    """Configuration of the SFT model."""
    sft: Path | None = None
    """The SFT model, whose likelihood is a baseline on the test split; None leaves that baseline out."""

    def reports(self, scores: Mapping[str, Scores], sets: Sets) -> dict[str, dict[str, Any]]:
        """The contents of accuracy.json for each split, from the scores of its answers."""
        found = {}
        for split, own in scores.items():
            others = {}
            if self.sft is not None and split == "test":
                others = sft_baselines(self.sft, self.model_config, sets[split], self.max_tokens, self.run.accelerator)
            found[split] = report(own, sets[split], others, self.resamples)
        return found

    def learning_curve(self, config: RewardConfig, start: Start, sets: Sets) -> list[dict[str, Any]]:
        """Test accuracy of models trained on all rankings of nested subsets of the training prompts; [] if none are
        configured.
        """
        accelerator, tokenizer = self.run.accelerator, start.tokenizer()
        assert self.run.out is not None
        train = by_prompt(sets["train"])
        order = random.Random(derive_seed(self.run.seed, "learning curve")).sample(train, len(train))
        curve = []
        for fraction in sorted(config.learning_curve):
            part = order[: max(1, round(fraction * len(order)))]
            out = self.run.out / "checkpoints" / f"fraction-{fraction}"
            run = replace(self.run, out=out, tracking=TrackingConfig(to=[]))
            model = sharded_model(start, tokenizer, run)
            RewardTrainer(config, model, list(chain.from_iterable(part)), run).train()
            found = score_all(model, sets["test"], self.max_tokens, accelerator)
            accuracy = report(found, sets["test"], resamples=self.resamples)["accuracy"]
            curve.append({"fraction": fraction, "prompts": len(part), "accuracy": accuracy})
        return curve

    def write(self, evaluation: Mapping[str, Any]) -> None:
        """Writes accuracy.json."""
        assert self.run.out is not None
        (self.run.out / "accuracy.json").write_text(json.dumps(evaluation, indent=2) + "\n")


def headline(test: Mapping[str, Any]) -> dict[str, Any]:
    """The results on the test split that the manifest and the last log line show."""
    best = test["best_baseline"]
    return {
        "reward_accuracy": test["accuracy"]["mean"],
        "best_baseline": test["baselines"][best]["accuracy"]["mean"],
        "above_best_baseline": test["baselines"][best]["difference"]["mean"],
        "score_std": test["score_std"],
    }
