"""What the pretraining mix is for (Ouyang et al. 2022, sections 3.5 and 4.2): PPO alone unlearns text, PPO-ptx keeps
it, for the same reward.
"""

import math
import random
from pathlib import Path
from typing import Any

import torch

from modeling.tracking import read_metrics
from ppo.trainer import PPOData
from tests.ppo.conftest import Chain, load_base, small
from tests.ppo.toy import ask, next_words, toy_chain

WORDS, WANTED, SIGN = 12, 7, 11
"""Of the vocabulary; the one that is rewarded; the one with which prompts begin and that is in no text."""
ITERATIONS, EPISODES = 25, 48


def texts(count: int, seed: int) -> list[list[int]]:
    """Counting in a circle through words 2 to 10, from anywhere; one word in four is any of them, so that there is
    something to be unsure of.
    """
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        text = [draw.randrange(2, SIGN)]
        while len(text) < 10:
            text.append(draw.randrange(2, SIGN) if draw.random() < 0.25 else (text[-1] - 2 + 1) % 9 + 2)
        found.append(text)
    return found


def loss_of(model: Any, held: list[list[int]]) -> float:
    """Nats a word of text, by plain calls."""
    losses = [-float(next_words(model, text[:t])[text[t]]) for text in held for t in range(1, len(text))]
    return sum(losses) / len(losses)


def taught(folder: Path) -> Chain:
    """A world whose SFT model has read such text until it knows it."""
    chain = toy_chain(folder, [1.0 if word == WANTED else 0.0 for word in range(WORDS)])
    model = load_base(chain).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(150):
        ids = torch.tensor(texts(32, seed=100 + step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(chain.sft / "model")
    return chain


def test_the_pretraining_loss_is_held_with_the_mix_and_lost_without(tmp_path: Path):
    chain = taught(tmp_path / "stages")
    held = texts(8, seed=1)
    before = loss_of(load_base(chain), held)
    assert before < 0.6 * math.log(WORDS), "there is nothing to lose"
    after, rows = {}, {}
    for gamma in (0.0, 3.0):
        config = small(
            total_episodes=EPISODES * ITERATIONS, batch_size=EPISODES, minibatch_size=EPISODES,
            rollout_batch_size=EPISODES,
            max_new_tokens=2, max_tokens_per_micro_batch=10**4,
            learning_rate=5e-3, kl_coef=0.0, ptx_coef=gamma, checkpoint_every=ITERATIONS, samples_every=ITERATIONS,
        )  # fmt: skip
        models = chain.models()
        out = tmp_path / f"gamma-{gamma}"
        data = PPOData([ask(SIGN, number) for number in (2, 5, 8)], texts(200, seed=2))
        chain.trainer(out, config, models, data).train()
        after[gamma] = loss_of(models.policy.causal, held)
        rows[gamma] = read_metrics(out / "metrics.jsonl")
    for row in rows.values():
        assert row[0]["score"] < 0.4
        assert sum(numbers["score"] for numbers in row[-5:]) / 5 > 0.6, "the reward did not pull"
    assert after[0.0] > 3 * before
    assert after[3.0] < 1.1 * before
