"""Stage 2: fits the reward model to rankings (Ouyang et al. 2022, section 3.5 and appendix C.2)."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from tqdm import tqdm
from transformers import get_scheduler

from modeling import loss_scale
from modeling.accelerator import share_of
from modeling.checkpoint import SaveTimer, TrainingState
from modeling.finite import require_finite
from modeling.models import RewardModel
from modeling.run import Run
from modeling.seeds import derive_seed
from modeling.tracking import Tracker
from reward.accuracy import pair_margins, pair_outcomes
from reward.batches import IDLE, RankingExample, as_pairs, micro_batches
from reward.checkpoint import Checkpoints, set_step
from reward.config import RewardConfig
from reward.loss import pairwise_loss
from reward.scoring import answers_of, by_prompt, score_all

ADVICE = "lower reward.learning_rate, or with float16 try another model.precision; nothing is exported"
Evaluated = dict[str, dict[str, float]]


class RewardTrainer:
    """Trains a reward model in place.

        trainer = RewardTrainer(config, reward_model(model), train_set, run, {"valid": valid_set})
        epochs = trainer.train()

    Metrics and checkpoints are written to `run.out`, and training resumes from the newest complete checkpoint there.
    Raises ValueError when a loss or gradient norm is not finite, the disk is full, or every checkpoint is damaged.
    """

    def __init__(
        self,
        config: RewardConfig,
        model: RewardModel,
        train_set: Sequence[RankingExample],
        run: Run,
        watched: Mapping[str, Sequence[RankingExample]] | None = None,
    ) -> None:
        """
        Args:
            watched: sets that are evaluated after each epoch.
        """
        self.config, self.model, self.watched = config, model, watched or {}
        self.run, self.accelerator = run, run.accelerator
        self.examples, self.batch_size = batching(config, train_set)
        if config.activation_checkpointing:
            model.encoder.enable_checkpointing()
        parameters = {name: weight for name, weight in model.encoder.model.named_parameters() if weight.requires_grad}
        self.weights = list(parameters.values())
        betas = (0.9, config.adam_beta2)
        self.optimizer = torch.optim.Adam(self.weights, lr=config.learning_rate, betas=betas, fused=True)
        self.steps_per_epoch = math.ceil(len(self.examples) / self.batch_size)
        self.schedule = get_scheduler(
            "cosine_with_min_lr",
            self.optimizer,
            0,
            self.steps_per_epoch * config.epochs,
            scheduler_specific_kwargs={"min_lr_rate": config.final_lr_fraction},
        )
        self.scaler = loss_scale.loss_scaler(model.encoder.autocast_dtype, self.weights)
        self.state = TrainingState({"reward": (parameters, self.optimizer)}, stateful={"scaler": self.scaler})
        self.checkpoints = (
            Checkpoints(run.out / "checkpoints", 2, self.accelerator, run.seed) if run.out is not None else None
        )
        self.epochs: list[dict[str, Any]] = []
        self.done = 0
        """Finished optimizer steps."""
        if self.checkpoints is not None:
            self.done, self.epochs = self.checkpoints.begin(self.state)
            set_step(self.schedule, self.done)

    def train(self) -> list[dict[str, Any]]:
        """Trains the remaining steps; returns {epoch, and {accuracy, loss} of each watched set} for each epoch."""
        run, total = self.run, self.steps_per_epoch * self.config.epochs
        tracks = run.out is not None and self.accelerator.is_main_process
        timer = SaveTimer(self.config.checkpoint_minutes, self.accelerator)
        with (
            Tracker(run.out, self.done, run.tracking) if tracks and run.out is not None else nullcontext() as tracker,
            tqdm(
                total=total, initial=self.done, desc="reward", unit="step", disable=not self.accelerator.is_main_process
            ) as bar,
        ):
            for step, epoch, batch in self.batches():
                numbers = self.train_batch(batch, step) | {"epoch": epoch + 1.0}
                epoch_ends = step % self.steps_per_epoch == 0
                if epoch_ends and self.watched:
                    numbers |= self.finish_epoch(epoch, step)
                if tracker is not None:
                    tracker.log(step, numbers)
                # After the rows: a resumed run assumes that those up to its checkpoint have been written.
                if self.checkpoints is not None and (epoch_ends or timer.due()):
                    self.checkpoints.save(step, self.epochs, self.state)
                    timer.restart()
                bar.update()
                bar.set_postfix(loss=f"{numbers['loss']:.3f}", accuracy=f"{numbers['accuracy']:.2f}")
        return self.epochs

    def batches(self) -> Iterator[tuple[int, int, list[RankingExample]]]:
        """(step from 1, epoch from 0, examples) of the remaining steps. Each epoch has its own order."""
        step = 0
        for epoch in range(self.config.epochs):
            order = random.Random(derive_seed(self.run.seed, "reward", epoch))
            shuffled = order.sample(range(len(self.examples)), len(self.examples))
            for start in range(0, len(shuffled), self.batch_size):
                step += 1
                if step > self.done:
                    yield step, epoch, [self.examples[index] for index in shuffled[start : start + self.batch_size]]

    def train_batch(self, batch: Sequence[RankingExample], step: int) -> dict[str, float]:
        """One optimizer step; returns the batch's loss and accuracy before it, gradient norm and learning rate, and in
        float16 whether the step was skipped.
        """
        numbers = self.gradient(batch)
        require_finite({"loss": numbers["loss"]}, f"reward, step {step}", ADVICE)
        norm, skipped = loss_scale.unscale_and_clip(self.scaler, self.optimizer, self.config.max_grad_norm)
        found = {} if skipped else {"grad_norm": norm}
        require_finite(found, f"reward, step {step}", ADVICE)
        numbers |= found | {"learning_rate": self.schedule.get_last_lr()[0]}
        if self.scaler.is_enabled():
            numbers["skipped"] = float(skipped)
        loss_scale.step(self.scaler, self.optimizer)
        self.schedule.step()
        return numbers

    def gradient(self, batch: Sequence[RankingExample]) -> dict[str, float]:
        """Computes the batch's gradient, summed over the processes; returns the batch's loss, accuracy and pairs."""
        prompts = sum(item.pairs > 0 for item in batch)
        totals = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        shared = self.model.encoder.plain_reason is None
        groups = micro_batches(share_of(self.accelerator, list(batch)), self.config.max_tokens_per_micro_batch, shared)
        root, sharding = self.model.encoder.model, self.run.sharding
        with sharding.computing(root):
            for group in sharding.even(groups, IDLE):
                scores_BK, preference_mask_BKK = by_prompt(
                    self.model(answers_of(group, self.accelerator.device)), group
                )
                loss = pairwise_loss(scores_BK, preference_mask_BKK, normalizer=prompts)
                self.scaler.scale(loss).backward()
                right = ((scores_BK[:, :, None] > scores_BK[:, None, :]) & preference_mask_BKK).sum()
                totals += torch.stack([loss.detach().double(), right.double(), preference_mask_BKK.sum().double()])
            sharding.reduce_gradients(root, self.weights)
        loss_sum, right_sum, pairs = reduce(totals, "sum").tolist()
        return {"loss": loss_sum, "accuracy": right_sum / max(pairs, 1.0), "pairs": pairs}

    def finish_epoch(self, epoch: int, step: int) -> dict[str, float]:
        """Evaluates the watched sets; returns their numbers as metrics."""
        found = self.evaluate()
        self.epochs.append({"epoch": epoch + 1} | found)
        require_finite({f"{name}_loss": found[name]["loss"] for name in found}, f"reward, step {step}", ADVICE)
        return {f"{name}_{key}": value for name in found for key, value in found[name].items()}

    def evaluate(self) -> Evaluated:
        """{accuracy over all pairs, loss} of each watched set."""
        limit = self.config.max_tokens_per_micro_batch
        return {
            name: agreement(score_all(self.model, items, limit, self.accelerator), items)
            for name, items in self.watched.items()
        }


def batching(config: RewardConfig, train_set: Sequence[RankingExample]) -> tuple[Sequence[RankingExample], int]:
    """(the examples to shuffle, batch size): prompts, or single comparisons, as many per step as the prompts of a batch
    have on average.
    """
    if config.batching == "prompts":
        return train_set, config.batch_size
    pairs = as_pairs(train_set)
    return pairs, max(1, round(config.batch_size * len(pairs) / len(train_set)))


def agreement(scores: Sequence[Sequence[float]], items: Sequence[RankingExample]) -> dict[str, float]:
    """{accuracy: over all strict pairs; loss: the mean over a prompt's pairs, then over prompts, as in training}."""
    outcomes = [outcome for row, item in zip(scores, items, strict=True) for outcome in pair_outcomes(row, item)]
    with np.errstate(invalid="ignore"):  # NaN stays NaN, and the caller reports it
        losses = [
            float(np.logaddexp(0, -pair_margins(row, item)).mean()) for row, item in zip(scores, items, strict=True)
        ]
    return {"accuracy": sum(outcomes) / len(outcomes), "loss": sum(losses) / len(losses)}
