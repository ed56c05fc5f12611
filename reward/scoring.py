"""Scores of the K answers to each prompt: the prompt is encoded once and shared by its answers
(modeling/shared_prefix.py).

Architectures that cannot do that get one plain forward pass an answer. Shapes: A answers of all prompts together, B
prompts, K answers of the prompt that has the most.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from modeling.batch import Batch
from modeling.config import ModelConfig
from modeling.load import autocast
from modeling.processes import Processes
from modeling.recompute import recomputed
from modeling.scalar import ScalarModel
from reward.batches import Element, micro_batches


def answer_scores(
    model: ScalarModel, group: Sequence[Element], pad_id: int, device: torch.device, recompute: bool = False
) -> Tensor:
    """scores_A of all answers of all prompts in the group, in order. `recompute` keeps each layer's input alone for the
    backward pass.
    """
    batch = answers_of(group, pad_id, device)
    if not recompute:
        return model.scores(batch)
    with recomputed(model.backbone, lambda: batch.around(model.backbone, "last")):
        return model.scores(batch)


def answers_of(group: Sequence[Element], pad_id: int, device: torch.device) -> Batch:
    """All answers of all prompts in the group, in order."""
    rows = [(item.prompt, answer) for item in group for answer in item.answers]
    return Batch([prompt for prompt, _ in rows], [answer for _, answer in rows], pad_id, device)


def by_prompt(scores_A: Tensor, group: Sequence[Element]) -> tuple[Tensor, Tensor]:
    """(scores_BK, better_BKK) of a group, padded to the largest K; padding is in no pair."""
    width = max(len(item.answers) for item in group)
    rows = torch.split(scores_A, [len(item.answers) for item in group])
    scores_BK = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    better_BKK = torch.zeros((len(group), width, width), dtype=torch.bool, device=scores_A.device)
    for index, item in enumerate(group):
        better_BKK[index, : len(item.answers), : len(item.answers)] = item.better_KK.to(scores_A.device)
    return scores_BK, better_BKK


def score_all(
    scalar: ScalarModel,
    items: Sequence[Element],
    max_tokens: int,
    model_config: ModelConfig,
    pad_id: int,
    team: Processes,
) -> list[list[float]]:
    """Scores of every element's answers, in order; the processes share the work."""

    def scores(group: Sequence[Element]) -> Tensor:
        with autocast(model_config, team.device):
            return answer_scores(scalar, group, pad_id, team.device)

    return each_answer(scores, items, max_tokens, scalar.plain_because is None, team)


@torch.no_grad()
def each_answer(
    compute: Callable[[Sequence[Element]], Tensor],
    items: Sequence[Element],
    max_tokens: int,
    shared: bool,
    team: Processes,
) -> list[list[float]]:
    """A number for every answer of every element, in order: `compute` gives numbers_A of a micro-batch; the processes
    share the work.
    """
    # Copies, so that an element which stands in the list twice is found at both places.
    mine = team.share([(index, replace(item)) for index, item in enumerate(items)])
    place = {id(item): index for index, item in mine}
    found: list[tuple[int, list[float]]] = []
    groups = micro_batches([item for _, item in mine], max_tokens, shared)
    for group in tqdm(groups, desc="scoring", unit="batch", leave=False, disable=not team.is_main or len(groups) < 8):
        rows = torch.split(compute(group), [len(item.answers) for item in group])
        found += [(place[id(item)], row.tolist()) for item, row in zip(group, rows, strict=True)]
    return [row for _, row in sorted(team.gather(found))]
