"""Stage 2: fits the reward model to rankings (Ouyang et al. 2022, section 3.5 and appendix C.2)."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm
from transformers import get_scheduler

from modeling.config import ModelConfig
from modeling.load import autocast
from modeling.processes import Processes, sum_gradients, sum_over_processes
from modeling.scalar import ScalarModel, scalar_model
from modeling.seeds import derive_seed
from modeling.tracking import Tracker
from reward.batches import Element, micro_batches
from reward.config import RewardConfig
from reward.loss import pairwise_loss
from reward.scoring import answer_scores, by_prompt


def train(
    config: RewardConfig,
    model_config: ModelConfig,
    model: Any,
    train_set: Sequence[Element],
    pad_id: int,
    seed: int,
    team: Processes,
    tracker: Tracker | None,
) -> None:
    """Trains in place; the main process logs loss, accuracy on the batch before its step, gradient norm and learning rate.

    Raises ValueError when the loss stops being a number.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, betas=(0.9, config.adam_beta2))
    batches_an_epoch = math.ceil(len(train_set) / config.batch_size)
    schedule = get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        0,
        batches_an_epoch * config.epochs,
        scheduler_specific_kwargs={"min_lr_rate": config.final_lr_fraction},
    )
    scalar = scalar_model(model)
    step = 0
    with tqdm(total=batches_an_epoch * config.epochs, desc="reward", unit="step", disable=not team.is_main) as bar:
        for epoch in range(config.epochs):
            order = random.Random(derive_seed(seed, "reward", epoch)).sample(range(len(train_set)), len(train_set))
            for start in range(0, len(order), config.batch_size):
                step += 1
                batch = [train_set[index] for index in order[start : start + config.batch_size]]
                numbers = accumulate(scalar, batch, config, model_config, pad_id, team)
                if not math.isfinite(numbers["loss"]):
                    raise ValueError(f"the reward model's loss became {numbers['loss']} at step {step}: lower reward.learning_rate")
                sum_gradients(trained)
                norm = float(torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm))
                if not math.isfinite(norm):
                    raise ValueError(f"the norm of the reward model's gradient became {norm} at step {step}: lower reward.learning_rate")
                numbers |= {"grad_norm": norm, "learning_rate": schedule.get_last_lr()[0], "epoch": epoch + 1.0}
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                if tracker is not None:
                    tracker.log(step, numbers)
                bar.update()
                bar.set_postfix(loss=f"{numbers['loss']:.3f}", accuracy=f"{numbers['accuracy']:.2f}")


def accumulate(
    scalar: ScalarModel, batch: Sequence[Element], config: RewardConfig, model_config: ModelConfig, pad_id: int, team: Processes
) -> dict[str, float]:
    """Adds this process's share of the batch's gradient to the parameters; returns the whole batch's loss and pair accuracy."""
    prompts = sum(item.pairs > 0 for item in batch)
    totals = torch.zeros(3, dtype=torch.float64, device=team.device)
    for group in micro_batches(team.share(list(batch)), config.max_tokens_per_micro_batch):
        with autocast(model_config, team.device):
            scores_A = answer_scores(scalar, group, pad_id, team.device)
        scores_BK, better_BKK = by_prompt(scores_A, group)
        loss = pairwise_loss(scores_BK, better_BKK, normalizer=prompts)
        loss.backward()
        right = ((scores_BK[:, :, None] > scores_BK[:, None, :]) & better_BKK).sum()
        totals += torch.stack([loss.detach().double(), right.double(), better_BKK.sum().double()])
    loss_sum, right_sum, pairs = sum_over_processes(totals).tolist()
    return {"loss": loss_sum, "accuracy": right_sum / max(pairs, 1.0), "pairs": pairs}


@torch.no_grad()
def score_all(
    scalar: ScalarModel, items: Sequence[Element], max_tokens: int, model_config: ModelConfig, pad_id: int, team: Processes
) -> list[list[float]]:
    """Scores of every element's answers, in order; the processes share the work."""
    # Copies, so that an element which stands in the list twice is found at both places.
    mine = team.share([(index, replace(item)) for index, item in enumerate(items)])
    place = {id(item): index for index, item in mine}
    found: list[tuple[int, list[float]]] = []
    for group in micro_batches([item for _, item in mine], max_tokens):
        with autocast(model_config, team.device):
            scores = answer_scores(scalar, group, pad_id, team.device)
        rows = torch.split(scores, [len(item.answers) for item in group])
        found += [(place[id(item)], row.tolist()) for item, row in zip(group, rows, strict=True)]
    return [row for _, row in sorted(team.gather(found))]
