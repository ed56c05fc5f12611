"""Scores of the K answers to each prompt. Where the architecture supports it, a prompt is encoded once for all its
answers (modeling/shared_prefix.py).

Shapes: A answers of all prompts, B prompts, K answers of the prompt that has the most.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from modeling.accelerator import share_of
from modeling.batch import Batch
from modeling.models import PolicyModel, RewardModel
from modeling.sharding import Sharding
from reward.batches import IDLE, RankingExample, micro_batches


def answers_of(group: Sequence[RankingExample], device: torch.device) -> Batch:
    """All answers of all prompts in the group, in order."""
    rows = [(item.prompt, answer) for item in group for answer in item.answers]
    return Batch([prompt for prompt, _ in rows], [answer for _, answer in rows], device)


def by_prompt(scores_A: Tensor, group: Sequence[RankingExample]) -> tuple[Tensor, Tensor]:
    """(scores_BK, preference_mask_BKK) of a group, padded to the largest K; padding is in no pair."""
    width = max(len(item.answers) for item in group)
    rows = torch.split(scores_A, [len(item.answers) for item in group])
    scores_BK = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    preference_mask_BKK = torch.zeros((len(group), width, width), dtype=torch.bool, device=scores_A.device)
    for index, item in enumerate(group):
        preference_mask_BKK[index, : len(item.answers), : len(item.answers)] = item.preference_mask_KK.to(
            scores_A.device
        )
    return scores_BK, preference_mask_BKK


def score_all(
    model: RewardModel, items: Sequence[RankingExample], max_tokens: int, accelerator: Accelerator
) -> list[list[float]]:
    """Scores of every example's answers, in order; the examples are divided among the processes."""
    return each_answer(
        model, lambda group: model(answers_of(group, accelerator.device)), items, max_tokens, accelerator
    )


@torch.no_grad()
def each_answer(
    model: RewardModel | PolicyModel,
    compute: Callable[[Sequence[RankingExample]], Tensor],
    items: Sequence[RankingExample],
    max_tokens: int,
    accelerator: Accelerator,
) -> list[list[float]]:
    """A number for every answer of every example, in order: `compute` gives numbers_A of a micro-batch by one
    pass of the model; the processes share the work.
    """
    # Copies, so that an example that is in the list twice has two ids.
    mine = share_of(accelerator, [(index, replace(item)) for index, item in enumerate(items)])
    place = {id(item): index for index, item in mine}
    found: list[tuple[int, list[float]]] = []
    root, shared = model.encoder.model, model.encoder.plain_reason is None
    sharding = Sharding.of(root)
    groups = sharding.even(micro_batches([item for _, item in mine], max_tokens, shared), IDLE)
    bar = tqdm(
        groups, desc="scoring", unit="batch", leave=False, disable=not accelerator.is_main_process or len(groups) < 8
    )
    with sharding.computing(root):
        for group in bar:
            rows = torch.split(compute(group), [len(item.answers) for item in group])
            if group is not IDLE:
                found += [(place[id(item)], row.tolist()) for item, row in zip(group, rows, strict=True)]
    return [row for _, row in sorted(gather_object(found))]
