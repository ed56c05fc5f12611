"""Same seed, same text, whatever the batch size, the order of the prompts or the number of processes: also where
rounding could choose.

pytest tests/modeling/engines/test_invariance.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.engines import native, sampling
from modeling.engines.native import generate, logits_alone
from modeling.engines.sampling import LEVELS
from modeling.engines.types import Sampling
from modeling.seeds import derive_seed
from modeling.tiny import ARCHITECTURES

PROMPTS = [[3 + (7 * row + 3 * column) % 400 for column in range(1 + 5 * row % 23)] for row in range(14)]
SEEDS = [derive_seed("invariance", row) for row in range(len(PROMPTS))]
SIZES = (1, 3, 8, 64)


def texts(
    model: Any, batch_size: int, temperature: float = 1.0, steps: int = 9, order: list[int] | None = None
) -> list[list[int]]:
    """The responses in the prompts' own order, asked for in another one."""
    order = order or list(range(len(PROMPTS)))
    made = generate(
        model, [PROMPTS[i] for i in order], [SEEDS[i] for i in order], Sampling(steps, temperature, batch_size), (), 0
    )
    found = dict(zip(order, made, strict=True))
    return [found[i].ids for i in sorted(order)]


def rounding(model: Any, size: float) -> Any:
    """The model, whose logits are off by about `size` in a way that hangs on the shape of the batch, and exact for a
    row alone.
    """

    def shaken(module: Any, inputs: Any, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(output.shape[0])
        return output if output.shape[0] == 1 else output + size * torch.randn(output.shape, generator=generator)

    model.get_output_embeddings().register_forward_hook(shaken)
    return model


@torch.no_grad()
def border(model: Any, prompt: list[int], digit: int) -> float:
    """Where, after this prompt, the first choice of a draw changes from one group to the next. Groups are tokens of the
    same last digit.
    """
    probability_V = logits_alone(model, prompt)[0].double().softmax(-1)
    fan = next(base for base in range(2, 99) if base**LEVELS >= len(probability_V))
    return float(sum(probability_V[last::fan].sum() for last in range(digit + 1)))


@pytest.mark.parametrize(("architecture", "temperature"), [*((name, 1.0) for name in ARCHITECTURES), ("llama", 0.0)])
def test_the_text_is_the_same_for_every_batch_size_order_and_share(
    tiny_causal: Callable[[str], Any], architecture: str, temperature: float
) -> None:
    model = tiny_causal(architecture)
    expected = texts(model, 1, temperature)
    assert all(texts(model, size, temperature) == expected for size in SIZES[1:])
    shuffled = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(0)).tolist()
    assert texts(model, 8, temperature, order=shuffled) == expected
    for rank in range(2):
        share = list(range(rank, len(PROMPTS), 2))
        assert texts(model, 8, temperature, order=share) == [expected[i] for i in share]


def test_a_uniform_number_on_a_border_draws_the_same_token_in_every_batch(
    tiny_causal: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_causal("llama")
    on_border = {
        seed: border(model, prompt, row % 3) for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True))
    }
    original = native.uniforms
    monkeypatch.setattr(
        native, "uniforms", lambda seed, steps: [[on_border[seed], 0.3, 0.6, 0.2], *original(seed, steps)[1:]]
    )
    # Spread of logits here is about 12: 1e-6 is half of what rounding was measured to do.
    rounding(model, 1e-6)
    found = [texts(model, size, steps=2) for size in SIZES]
    assert all(other == found[0] for other in found)
    monkeypatch.setattr(sampling, "NOISE", 0.0)
    unsettled = [texts(model, size, steps=2) for size in SIZES]
    assert any(other != found[0] for other in unsettled[1:]), "nothing had to be settled, so this test shows nothing"


def test_two_likeliest_tokens_that_tie_are_the_same_one_in_every_batch(
    tiny_causal: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_causal("gpt2")
    weight = model.get_output_embeddings().weight.data
    weight[256:] = weight[:256].clone()
    rounding(model, 1e-6)
    found = [texts(model, size, temperature=0, steps=2) for size in SIZES]
    assert all(other == found[0] for other in found)
    monkeypatch.setattr(sampling, "TIE", -1.0)
    unsettled = [texts(model, size, temperature=0, steps=2) for size in SIZES]
    assert any(other != found[0] for other in unsettled[1:]), "nothing had to be settled, so this test shows nothing"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_border_moves_further_than_the_margin(
    tiny_causal: Callable[[str], Any], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_causal(architecture)
    seen: list[tuple[list[int], Tensor]] = []

    def keep(model: Any, rows: Any, logits_BV: Tensor, *rest: Any) -> list[int]:
        seen.extend(([*row.prompt, *row.ids], logits_V) for row, logits_V in zip(rows, logits_BV, strict=True))
        return original(model, rows, logits_BV, *rest)

    original = native.choose
    monkeypatch.setattr(native, "choose", keep)
    texts(model, 16, steps=4)
    furthest = 0.0
    for ids, logits_V in seen:
        with torch.no_grad():
            alone_V, batched_V = logits_alone(model, ids)[0].double(), logits_V.double()
        spread = 1 + float(alone_V.max() - alone_V.min())
        fan = next(base for base in range(2, 99) if base**LEVELS >= len(alone_V))
        level = [
            torch.nn.functional.pad(x_V.softmax(-1), (0, fan**LEVELS - len(x_V))).view([fan] * LEVELS)
            for x_V in (alone_V, batched_V)
        ]
        for axis in range(LEVELS):
            # The choice along the last axis that is left, given those after it: sum out the axes before it.
            mass = [x.flatten(0, LEVELS - 2 - axis).sum(0) if axis < LEVELS - 1 else x for x in level]
            share = [
                (x / x.sum(0, keepdim=True).clamp(min=1e-300)).flatten(1) if x.dim() > 1 else x[:, None] for x in mass
            ]
            before = [x.cumsum(0)[:-1] for x in share]
            square = share[0].square().cumsum(0)
            deviation = (
                (square[:-1] * (1 - before[0]) ** 2 + (square[-1] - square[:-1]) * before[0] ** 2).clamp(min=0).sqrt()
            )
            moved = (before[0] - before[1]).abs()
            counts = deviation > 1e-6
            if counts.any():
                furthest = max(furthest, float((moved / (spread * deviation))[counts].max()))
    assert sampling.NOISE / 100 < furthest < sampling.NOISE
