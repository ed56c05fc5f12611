"""Drawing the next token so that rounding cannot choose it.

Batches of different shapes round differently, so a uniform number close to the border between two tokens could fall on
either side of it. `draw` tells which rows came that close; native.py settles those from a pass over the row alone. To
come close must be rare, or settling costs more than it is worth. Inverting one cumulative distribution over a large
vocabulary has a border at every token, and most are tokens of next to no probability: one draw in 80 came close with a
vocabulary of 49,152. So a token is chosen as a number is, digit by digit: each of LEVELS choices is among some 15
groups, at a uniform number of its own, by inverting the cumulative distribution of the groups' probabilities given the
choices before. That is exact too (the probabilities multiply to the token's own), and comes close 25 times more seldom
(docs/engines.md). Shapes: B rows, V vocabulary, L levels, F groups of a choice (the fan).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from modeling.finite import require_finite

LEVELS = 4
"""Choices a token: the vocabulary is cut into V ** (1 / LEVELS) groups at each."""
NOISE = 3e-6
"""How far rounding may move a border between two choices, in units of (1 + spread) * deviation (see `draw`). Measured
against passes over rows alone, at all borders, for batches of 3 to 24, on tiny models, a random Llama of 6 layers and
SmolLM2-135M: at most 1.1e-6."""
TIE = 1e-5
"""Two logits nearer than this part of the logits' spread may change places. Measured on the same models: a logit moves
by at most 2e-6 of it.
"""
WIDEST = 100.0
"""Logits' spread beyond this is masking, not a model's opinion."""

OVERFLOW = "weights or activations of the model overflow"


@dataclass(frozen=True)
class Draw:
    """One token a row."""

    token_B: Tensor
    logprob_B: Tensor
    """Of the token in the distribution that it was drawn from."""
    close_B: Tensor
    """Whether rounding in float32 could have chosen the token."""


def uniforms(seed: int, steps: int) -> list[list[float]]:
    """LEVELS uniform numbers for each of `steps` tokens, from the seed's own stream; a longer one only goes on where a
    shorter stopped.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers: list[list[float]] = (
        torch.rand(steps * LEVELS, generator=generator, dtype=torch.float64).view(steps, LEVELS).tolist()
    )
    return numbers


def draw(logits_BV: Tensor, uniform_BL: Tensor, temperature: float) -> Draw:
    """The token that the uniform numbers (float64, below 1) choose; the likeliest one at temperature 0.

    Rounding moves logits by amounts independent of each other, in proportion to the logits' spread. That moves a border
    at C, between choices of probability p_i, with a deviation of sqrt((1 - C)^2 * sum of p_i^2 before it + C^2 * sum of
    p_i^2 after it).
    """
    logits_BV = logits_BV.float()
    top_B1 = logits_BV.amax(-1, keepdim=True)
    require_finite({"a logit": float(top_B1.sum())}, "decoding", OVERFLOW)
    spread_B1 = (top_B1 - logits_BV.amin(-1, keepdim=True)).clamp(max=WIDEST)
    if temperature == 0:
        best_B2, token_B2 = logits_BV.topk(2, dim=-1)
        logprob_B = (best_B2[:, :1] - logits_BV.logsumexp(-1, keepdim=True)).squeeze(1)
        return Draw(token_B2[:, 0], logprob_B, (best_B2[:, 0] - best_B2[:, 1]) <= TIE * spread_B1.squeeze(1))

    # Token numbers written in base F, the last digit being the first choice: groups then add up along a middle axis,
    # which is quick.
    vocabulary = logits_BV.shape[1]
    fan = max(2, round(vocabulary ** (1 / LEVELS)))
    while fan**LEVELS < vocabulary:
        fan += 1
    count, size = logits_BV.shape[0], -(-vocabulary // fan ** (LEVELS - 1))
    mass = logits_BV.new_zeros(count, size * fan ** (LEVELS - 1))
    weight_BV = mass[:, :vocabulary]
    torch.sub(logits_BV, top_B1, out=weight_BV)
    if temperature != 1.0:
        weight_BV.div_(temperature)
    weight_BV.exp_()
    masses = [mass]
    for level in range(LEVELS - 1):
        mass = mass.view(count, -1, fan ** (LEVELS - 1 - level)).sum(1)
        masses.append(mass)

    noise_B1 = NOISE * (1 + spread_B1.double() / temperature)
    row_B = torch.arange(count, device=logits_BV.device)
    place_B = torch.zeros_like(row_B)
    close_B = torch.zeros(count, dtype=torch.bool, device=logits_BV.device)
    for level in range(LEVELS):
        stride = fan**level
        among = masses[LEVELS - 1 - level]
        mass_BF = among.view(count, -1, stride)[row_B, :, place_B].double()
        cumulative_BF = mass_BF.cumsum(-1)
        total_B1 = cumulative_BF[:, -1:]
        height_B1 = torch.minimum(uniform_BL[:, level, None] * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
        choice_B1 = torch.searchsorted(cumulative_BF, height_B1, right=True)
        border_BF, square_BF = cumulative_BF / total_B1, (mass_BF / total_B1).square().cumsum(-1)
        deviation_BF = (
            square_BF * (1 - border_BF).square() + (square_BF[:, -1:] - square_BF) * border_BF.square()
        ).sqrt()
        close_B |= ((height_B1 / total_B1 - border_BF).abs() <= noise_B1 * deviation_BF)[:, :-1].any(-1)
        place_B = choice_B1.squeeze(1) * stride + place_B
    total_B = masses[-1].double().sum(-1)
    weight_B = masses[0][row_B, place_B].double()
    return Draw(place_B, (weight_B / total_B).log().float(), close_B)
