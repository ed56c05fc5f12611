"""Stage 2: fits the reward model to rankings (Ouyang et al. 2022, section 3.5 and appendix C.2)."""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import get_scheduler

from modeling.checkpoint import SaveTimer
from modeling.config import ModelConfig, TrackingConfig
from modeling.finite import require_finite
from modeling.load import autocast
from modeling.processes import Processes, sum_gradients, sum_over_processes
from modeling.scalar import ScalarModel, scalar_model
from modeling.seeds import derive_seed
from modeling.tracking import Tracker
from reward.accuracy import pair_margins, pair_outcomes
from reward.batches import Element, as_pairs, micro_batches
from reward.checkpoint import Checkpoints, Trained
from reward.config import RewardConfig
from reward.loss import pairwise_loss
from reward.scoring import answer_scores, by_prompt, score_all

ADVICE = "lower reward.learning_rate; nothing is exported"


def train(
    config: RewardConfig,
    model_config: ModelConfig,
    model: Any,
    train_set: Sequence[Element],
    pad_id: int,
    seed: int,
    team: Processes,
    out: Path | None = None,
    tracking: TrackingConfig | None = None,
    watched: Mapping[str, Sequence[Element]] | None = None,
) -> list[dict[str, Any]]:
    """Trains in place; the main process logs loss, accuracy on the batch before its step, gradient norm and learning
    rate.

    Metrics and checkpoints are written to `out`, and training resumes from the newest complete checkpoint there;
    without `out`, nothing is written.
    Returns for each epoch {epoch, and {accuracy, loss} of each of the `watched` sets}, also logged with its last step.
    Raises ValueError when a loss or gradient norm is not finite, the disk is full, or every checkpoint is damaged.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = list(parameters.values())
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, betas=(0.9, config.adam_beta2), fused=True)
    elements, batch_size = batching(config, train_set)
    batches_an_epoch = math.ceil(len(elements) / batch_size)
    schedule = get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        0,
        batches_an_epoch * config.epochs,
        scheduler_specific_kwargs={"min_lr_rate": config.final_lr_fraction},
    )
    scalar = scalar_model(model)
    state, epochs, done = Trained(parameters, optimizer, schedule), list[dict[str, Any]](), 0
    checkpoints = Checkpoints(out / "checkpoints", 2, team, seed) if out is not None else None
    if checkpoints is not None:
        done, epochs = checkpoints.begin(state)
    steps = batches_an_epoch * config.epochs
    timer = SaveTimer(config.checkpoint_minutes, team)
    step = 0
    with (
        Tracker(out, done, tracking) if out is not None and team.is_main else nullcontext() as tracker,
        tqdm(total=steps, initial=done, desc="reward", unit="step", disable=not team.is_main) as bar,
    ):
        for epoch in range(config.epochs):
            order = random.Random(derive_seed(seed, "reward", epoch)).sample(range(len(elements)), len(elements))
            for start in range(0, len(order), batch_size):
                step += 1
                if step <= done:
                    continue
                batch = [elements[index] for index in order[start : start + batch_size]]
                numbers = accumulate(scalar, batch, config, model_config, pad_id, team)
                require_finite({"loss": numbers["loss"]}, f"reward, step {step}", ADVICE)
                sum_gradients(trained)
                norm = float(torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm))
                require_finite({"grad_norm": norm}, f"reward, step {step}", ADVICE)
                numbers |= {"grad_norm": norm, "learning_rate": schedule.get_last_lr()[0], "epoch": epoch + 1.0}
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                epoch_ends = start + batch_size >= len(order)
                if epoch_ends and watched:
                    epochs.append({"epoch": epoch + 1} | look_at(watched, scalar, config, model_config, pad_id, team))
                    losses = {f"{name}_loss": epochs[-1][name]["loss"] for name in watched}
                    require_finite(losses, f"reward, step {step}", ADVICE)
                    numbers |= {f"{name}_{key}": value for name in watched for key, value in epochs[-1][name].items()}
                if tracker is not None:
                    tracker.log(step, numbers)
                # After the rows, because a resumed run assumes that those up to its checkpoint have been written.
                if checkpoints is not None and (epoch_ends or timer.due()):
                    checkpoints.save(step, epochs, state)
                    timer.restart()
                bar.update()
                bar.set_postfix(loss=f"{numbers['loss']:.3f}", accuracy=f"{numbers['accuracy']:.2f}")
    return epochs


def batching(config: RewardConfig, train_set: Sequence[Element]) -> tuple[Sequence[Element], int]:
    """(what is shuffled, how many of it make a batch): prompts, or as many comparisons a step as those prompts have on
    average.
    """
    if config.batching == "prompts":
        return train_set, config.batch_size
    pairs = as_pairs(train_set)
    return pairs, max(1, round(config.batch_size * len(pairs) / len(train_set)))


def look_at(
    watched: Mapping[str, Sequence[Element]],
    scalar: ScalarModel,
    config: RewardConfig,
    model_config: ModelConfig,
    pad_id: int,
    team: Processes,
) -> dict[str, dict[str, float]]:
    """{accuracy over all pairs, loss} of each set with the weights as they are."""
    limit = config.max_tokens_per_micro_batch
    return {
        name: fit(score_all(scalar, items, limit, model_config, pad_id, team), items) for name, items in watched.items()
    }


def fit(scores: Sequence[Sequence[float]], items: Sequence[Element]) -> dict[str, float]:
    """{accuracy: over all strict pairs; loss: the mean over a prompt's pairs, then over prompts, as in training}."""
    outcomes = [outcome for row, item in zip(scores, items, strict=True) for outcome in pair_outcomes(row, item)]
    with np.errstate(invalid="ignore"):  # what is no number stays none, and the caller says so
        losses = [
            float(np.logaddexp(0, -pair_margins(row, item)).mean()) for row, item in zip(scores, items, strict=True)
        ]
    return {"accuracy": sum(outcomes) / len(outcomes), "loss": sum(losses) / len(losses)}


def accumulate(
    scalar: ScalarModel,
    batch: Sequence[Element],
    config: RewardConfig,
    model_config: ModelConfig,
    pad_id: int,
    team: Processes,
) -> dict[str, float]:
    """Adds this process's share of the batch's gradient to the parameters; returns the whole batch's loss and pair
    accuracy.
    """
    prompts = sum(item.pairs > 0 for item in batch)
    totals = torch.zeros(3, dtype=torch.float64, device=team.device)
    for group in micro_batches(
        team.share(list(batch)), config.max_tokens_per_micro_batch, shared=scalar.plain_because is None
    ):
        with autocast(model_config, team.device):
            scores_A = answer_scores(scalar, group, pad_id, team.device, config.activation_checkpointing)
        scores_BK, better_BKK = by_prompt(scores_A, group)
        loss = pairwise_loss(scores_BK, better_BKK, normalizer=prompts)
        loss.backward()
        right = ((scores_BK[:, :, None] > scores_BK[:, None, :]) & better_BKK).sum()
        totals += torch.stack([loss.detach().double(), right.double(), better_BKK.sum().double()])
    loss_sum, right_sum, pairs = sum_over_processes(totals).tolist()
    return {"loss": loss_sum, "accuracy": right_sum / max(pairs, 1.0), "pairs": pairs}
