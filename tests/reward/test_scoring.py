"""Scores from a prompt that its answers share, against one plain forward of prompt and answer for each.

pytest tests/reward/test_scoring.py
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.architecture import backbone_of
from modeling.models import reward_model
from modeling.tiny import ARCHITECTURES, CONTEXT_LENGTH
from reward.batches import RankingExample
from reward.loss import pairwise_loss
from reward.scoring import answers_of, by_prompt

CPU = torch.device("cpu")
FLOAT32 = 3e-5


def some_examples(seed: int, count: int = 4, longest: int = 14) -> list[RankingExample]:
    """Ragged prompts and answers with pad (0) and EOS (2) among their tokens, judged at random."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = [chance.randrange(512) for _ in range(chance.randint(1, longest))]
        answers = [
            [chance.choice([0, 2, chance.randrange(512)]) for _ in range(chance.randint(1, longest))]
            for _ in range(chance.randint(2, 5))
        ]
        preference_mask_KK = torch.zeros(len(answers), len(answers), dtype=torch.bool)
        preference_mask_KK[0, 1:] = True
        made.append(RankingExample(prompt, answers, preference_mask_KK))
    return made


def plain_scores(model: Any, item: RankingExample) -> Tensor:
    """One plain forward an answer, unpadded, through the backbone and head by their own names."""
    backbone = getattr(model, model.base_model_prefix)
    rows = [
        backbone(input_ids=torch.tensor([item.prompt + answer])).last_hidden_state[0, -1] for answer in item.answers
    ]
    return model.score(torch.stack(rows))[:, 0]


def scores_of(model: Any, group: list[RankingExample]) -> Tensor:
    return reward_model(model)(answers_of(group, CPU))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_gradients_equal_plain_forwards(
    tiny_scalar: Callable[[str], Any], architecture: str, shared: bool
) -> None:
    model = tiny_scalar(architecture)
    group = some_examples(seed=1)
    plain_A = torch.cat([plain_scores(model, item) for item in group])
    if not shared:
        backbone_of(model).shared_prefix_reason = "the test says so"
    scores_A = scores_of(model, group)
    weight_A = torch.linspace(-1, 2, len(scores_A))
    (scores_A * weight_A).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    torch.testing.assert_close(scores_A, plain_A, atol=FLOAT32, rtol=0)
    assert plain_A.std() > 0.3
    (plain_A * weight_A).sum().backward()
    largest = max(float(parameter.grad.abs().max()) for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-5 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradient_of_the_loss_reaches_the_prompt_through_every_answer(
    tiny_scalar: Callable[[str], Any], architecture: str
) -> None:
    model = tiny_scalar(architecture)
    item = some_examples(seed=2, count=1)[0]
    embedding = model.get_input_embeddings().weight
    only_in_prompt = next(token for token in item.prompt if not any(token in answer for answer in item.answers))
    gradients = []
    for scores_A in (plain_scores(model, item), scores_of(model, [item])):
        scores_BK, preference_mask_BKK = by_prompt(scores_A, [item])
        gradients.append(
            torch.autograd.grad(pairwise_loss(scores_BK, preference_mask_BKK), embedding)[0][only_in_prompt]
        )
    largest = float(gradients[0].abs().max())
    assert largest > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5 * largest + 1e-6, rtol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neighbours_in_a_group_change_nothing(tiny_scalar: Callable[[str], Any], architecture: str) -> None:
    model, group = tiny_scalar(architecture), some_examples(seed=3)
    with torch.no_grad():
        together_A = scores_of(model, group)
        alone_A = torch.cat([scores_of(model, [item]) for item in group])
    torch.testing.assert_close(together_A, alone_A, atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_long_prompt_may_stand_beside_long_answers_that_each_fit_the_context(
    tiny_scalar: Callable[[str], Any], architecture: str
) -> None:
    # Padding after the first one's answers lies beyond the context: no position may be asked for there.
    model = tiny_scalar(architecture)
    preference_mask_KK = torch.tensor([[False, True], [False, False]])
    group = [
        RankingExample([5 + i % 90 for i in range(CONTEXT_LENGTH - 4)], [[7, 8, 9, 2], [9, 2]], preference_mask_KK),
        RankingExample([5, 6, 7], [[100 + i % 90 for i in range(CONTEXT_LENGTH - 3)], [9, 2]], preference_mask_KK),
    ]
    with torch.no_grad():
        expected_A = torch.cat([plain_scores(model, item) for item in group])
        torch.testing.assert_close(scores_of(model, group), expected_A, atol=FLOAT32, rtol=0)


def test_scores_go_back_to_their_prompts() -> None:
    one, two = torch.tensor([[False, True], [False, False]]), torch.tensor([[False, False, True]] * 2 + [[False] * 3])
    group = [RankingExample([1], [[1], [2]], one), RankingExample([1], [[1], [2], [3]], two)]
    scores_BK, preference_mask_BKK = by_prompt(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), group)
    assert scores_BK.tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]
    assert preference_mask_BKK[0].nonzero().tolist() == [[0, 1]]
    assert preference_mask_BKK[1].nonzero().tolist() == [[0, 2], [1, 2]]


def test_two_equal_prompts_in_a_group_keep_their_own_answers(tiny_scalar: Callable[[str], Any]) -> None:
    """The second group is of the same prompt, whose pass it shares with the first."""
    model = tiny_scalar("llama")
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    group = [
        RankingExample([5, 6], [[7, 2], [8]], nothing),
        RankingExample([9], [[7], [8]], nothing),
        RankingExample([5, 6], [[8, 2], [7]], nothing),
    ]
    with torch.no_grad():
        expected_A = torch.cat([plain_scores(model, item) for item in group])
        torch.testing.assert_close(scores_of(model, group), expected_A, atol=FLOAT32, rtol=0)
