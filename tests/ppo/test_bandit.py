"""Where the best policy can be written down, PPO finds it: pi*(y) in proportion to pi_ref(y) exp(r(y) / beta), for one
word and for two.
"""

import math
from pathlib import Path
from typing import Any

import pytest

from ppo.trainer import PPOData
from tests.ppo.conftest import load_base, small
from tests.ppo.toy import EOS, ask, next_words, toy_chain

TABLE = [-0.2, 0.7, 0.8, -0.9, 0.6, -0.6, 0.2, 0.4, 0.0, -0.4]
"""The reward by the last word, PAD the first and EOS the second of them."""
PROMPT = [2, 3]
EPISODES, DECAY = 96, 0.9
NOISE = {1: 0.04, 2: 0.08}
"""By words a response. The average that is judged spans the last 1 / (1 - DECAY) updates, here roll-outs of 96
episodes. Counting among 960 gives a frequency p an error of sqrt(2 p (1 - p) / (960 pi)) on average; half their sum is
0.039 at most for 10 words, and about 0.08 for the 91 responses of two, of which few are frequent."""

Text = tuple[int, ...]
Distribution = dict[Text, float]
"""log-probabilities of responses; all of them."""


def responses(model: Any, words: int) -> Distribution:
    """log pi of every response of at most so many words."""
    found: Distribution = {}
    for first, logprob in enumerate(next_words(model, PROMPT).tolist()):
        if words == 1 or first == EOS:
            found[(first,)] = logprob
        else:
            found |= {
                (first, second): logprob + rest
                for second, rest in enumerate(next_words(model, [*PROMPT, first]).tolist())
            }
    return found


def tilted(reference: Distribution, beta: float) -> Distribution:
    """pi* for this price of a nat."""
    heights = {y: logprob + TABLE[y[-1]] / beta for y, logprob in reference.items()}
    total = math.log(sum(math.exp(height) for height in heights.values()))
    return {y: height - total for y, height in heights.items()}


def distance(p: Distribution, q: Distribution) -> float:
    """Total variation."""
    return sum(abs(math.exp(p[y]) - math.exp(q[y])) for y in p) / 2


def kl(p: Distribution, q: Distribution) -> float:
    return sum(math.exp(p[y]) * (p[y] - q[y]) for y in p)


def shortsighted(reference: Distribution, best: Distribution) -> Distribution:
    """What comes of a reward that does not reach back to the word before the last: that one stays, and the last is the
    best after it.
    """

    def first(of: Distribution, y: Text) -> float:
        return math.log(sum(math.exp(logprob) for other, logprob in of.items() if other[0] == y[0]))

    return {y: first(reference, y) + best[y] - first(best, y) for y in best}


def best_alone(reference: Distribution) -> Distribution:
    """All that the likeliest of the best-rewarded says, which is where PPO without a price ends."""
    best = max(reference, key=lambda y: (TABLE[y[-1]], reference[y]))
    return {y: 0.0 if y == best else -math.inf for y in reference}


CASES = [
    ("reward", 1, 0.1, {}),
    ("reward", 1, 0.3, {"minibatch_size": 48, "whiten_advantages": False}),
    # The first word learns from what the value model says of the second, and waits for that to be learnt.
    ("reward", 2, 0.3, {"iterations": 90, "learning_rate": 3e-3}),
    # Whitening measures rewards in standard deviations; a price beside them in the loss would then be one a standard
    # deviation.
    pytest.param(
        "loss", 1, 0.3, {"whiten_advantages": False, "iterations": 50, "learning_rate": 3e-3}, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("placement", "words", "beta", "changes"), CASES)
def test_ppo_finds_the_best_policy_at_this_price(
    tmp_path: Path, placement: str, words: int, beta: float, changes: dict[str, Any]
):
    changes = dict(changes)
    chain = toy_chain(tmp_path / "stages", TABLE, seed=7 if words == 1 else 3)
    reference = responses(load_base(chain), words)
    best = tilted(reference, beta)
    others = [
        reference,
        best_alone(reference),
        tilted(reference, 2 * beta),
        tilted(reference, beta / 2),
        tilted(reference, -beta),
    ]
    if words == 2:
        others.append(shortsighted(reference, best))
    assert min(distance(best, other) for other in others) > 2 * NOISE[words], "another policy would pass for the best"

    iterations = changes.pop("iterations", 35)
    config = small(
        **{
            "total_episodes": iterations * EPISODES, "batch_size": EPISODES, "minibatch_size": EPISODES,
            "rollout_batch_size": EPISODES,
            "max_tokens_per_micro_batch": 10**4, "max_new_tokens": words, "kl_coef": beta, "kl_placement": placement,
            "learning_rate": 5e-3,
            "ema_decay": DECAY, "checkpoint_every": iterations, "samples_every": iterations,
        } | changes
    )  # fmt: skip
    models = chain.models()
    average = chain.trainer(tmp_path / "ppo", config, models, PPOData([ask(*PROMPT)])).train()
    with average.in_place():
        learnt = responses(models.policy.causal, words)
    assert sum(math.exp(logprob) for logprob in learnt.values()) == pytest.approx(1)
    assert distance(learnt, best) < NOISE[words]
    assert kl(learnt, best) < NOISE[words]
