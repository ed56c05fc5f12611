"""Scores of the K answers to each prompt: the prompt is encoded once, its keys and values are shared by the answers.

Exact and differentiable. Prompts and answers are padded on the right and masked by length; every token keeps the position it has in the plain
sequence. Shapes: P prompts, A answers of all prompts together, K answers of the prompt that has the most.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from modeling.scalar import ScalarModel
from modeling.sequences import pad_rows, take_positions
from reward.batches import Element


def answer_scores(model: ScalarModel, group: Sequence[Element], pad_id: int, device: torch.device) -> Tensor:
    """scores_A of all answers of all prompts in the group, one forward pass a prompt and one an answer."""
    prompts_PS, prompt_length_P = pad_rows([item.prompt for item in group], pad_id, device)
    answers_AT, answer_length_A = pad_rows([ids for item in group for ids in item.answers], pad_id, device)
    owner_A = torch.repeat_interleave(torch.arange(len(group), device=device), torch.tensor([len(e.answers) for e in group], device=device))

    cache = DynamicCache()
    model.backbone(input_ids=prompts_PS, past_key_values=cache, use_cache=True)
    cache.batch_select_indices(owner_A)

    seen_AS = torch.arange(prompts_PS.shape[1], device=device) < prompt_length_P[owner_A][:, None]
    # Padding repeats its answer's last position: beside a longer answer to a shorter prompt, the next ones may lie beyond the context.
    offset_AT = torch.minimum(torch.arange(answers_AT.shape[1], device=device), answer_length_A[:, None] - 1)
    hidden_ATH = model.backbone(
        input_ids=answers_AT,
        past_key_values=cache,
        use_cache=True,
        attention_mask=torch.cat([seen_AS, torch.ones_like(answers_AT, dtype=torch.bool)], dim=1).long(),
        position_ids=prompt_length_P[owner_A][:, None] + offset_AT,
    ).last_hidden_state
    return model.from_hidden(take_positions(hidden_ATH, answer_length_A[:, None] - 1)).squeeze(1)


def by_prompt(scores_A: Tensor, group: Sequence[Element]) -> tuple[Tensor, Tensor]:
    """(scores_BK, better_BKK) of a group, padded to the largest K; padding is in no pair."""
    width = max(len(item.answers) for item in group)
    rows = torch.split(scores_A, [len(item.answers) for item in group])
    scores_BK = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    better_BKK = torch.zeros((len(group), width, width), dtype=torch.bool, device=scores_A.device)
    for index, item in enumerate(group):
        better_BKK[index, : len(item.answers), : len(item.answers)] = item.better_KK.to(scores_A.device)
    return scores_BK, better_BKK
