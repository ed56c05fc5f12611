"""Whole runs of `train` against the slow reference: the same episodes, every weight and every number.

The models are made float64 first, and what the project computes from them is float64 then. In float32 no bound on
weights would mean much: Adam's first step is the sign of a gradient, and where that is smaller than its rounding, the
sign is anybody's guess.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from modeling.generation import Generation
from modeling.run import Run
from modeling.tracking import read_metrics
from ppo.actor_critic import ActorCritic
from ppo.experience import Experience, Rollout, Rows
from ppo.reward_terms import RewardTerm
from ppo.trainer import PPOData, PPOTrainer
from tests.ppo.conftest import ALONE, CHUNKS, PROMPTS, Chain, as_ranked, small
from tests.ppo.reference import Episode, Four, Outcome, load_adapted, load_whole, look, run
from tests.ppo.toy import doubled

VARIANTS: dict[str, dict[str, Any]] = {
    "cooler, with two terms of the reward and a price on answers that were cut off": {
        "temperature": 0.7,
        "missing_eos_penalty": 1.5,
        "kl_coef": 0.3,
        "rewards": [RewardTerm(weight=0.5), RewardTerm("length", -0.1)],
    },
    "pretraining mix, clipped gradients": {
        "ptx_coef": 3.0,
        "max_grad_norm": 0.05,
        "ptx_examples_per_episode": 2,
        "temperature": 0.7,  # of the roll-out, not of the texts
    },
    "nothing clipped or whitened": {
        "max_grad_norm": None,
        "value_clip_range": None,
        "whiten_advantages": False,
        "discount": 0.9,
    },
    "log-probabilities from decoding": {"old_logprobs": "rollout", "temperature": 1.3},
    "several answers a prompt": {"responses_per_prompt": 2, "clip_range": 0.02, "value_clip_range": 0.01},
    "price in the loss": {"kl_placement": "loss", "kl_coef": 0.5},
    "scaled scores and a price that adapts": {
        "score_scaling": "running",
        "score_clip": 0.8,
        "missing_eos_penalty": 0.5,
        "kl_target": 0.05,
        "kl_horizon": 40,
        "kl_coef": 0.3,
    },
    "the value model first, half a text an episode": {
        "value_warmup_iterations": 1,
        "ptx_coef": 3.0,
        "ptx_examples_per_episode": 0.5,
        "kl_target": 0.05,
        "kl_horizon": 40,
    },
}
WITH_LORA = ("pretraining mix, clipped gradients", "several answers a prompt", "price in the loss")
CASES = [("none", name) for name in VARIANTS if name not in WITH_LORA[1:]] + [("lora", name) for name in WITH_LORA]
WATCHED = (
    "policy_loss", "value_loss", "kl", "kl_k3", "entropy", "score", "score_std", "reward", "explained_variance",
    "policy_grad_norm",
    "value_grad_norm", "clip_fraction", "approximate_kl", "ratio_max", "length", "ended", "value_mean", "kl_coef",
    "learning_rate",
)  # fmt: skip
WATCHED_WITH_TEXT = ("ptx_loss", "ppo_grad_norm", "ptx_grad_norm")
EXACT, COUNTED, DECODED = 1e-9, 1e-6, 2e-5
"""Of the largest weight's move: two orders of adding up a few thousand float64 terms differ by 1e-13 of the largest,
and Adam divides a gradient by its own size, which may be 1e-4 of that. Of a logged number: some are divided by a count
in float32, 6e-8 each. Of a log-probability that was recorded while decoding, in float32: 6e-8 of logits of size 10,
some tens of times."""


@pytest.fixture
def norms_keep_their_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers goes to float32 within RMSNorm whatever comes; on the way back that rounds the sum over answers that
    share a prompt's pass, or each of them, which is not the same."""
    monkeypatch.setattr(
        LlamaRMSNorm, "forward", lambda norm, x: F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    )


class RecordingTrainer(PPOTrainer):
    """Keeps the episodes of each roll-out and the episodes of each optimizer step; ends most episodes early unless
    log-probabilities are those of decoding.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: list[list[Episode]] = []
        self.steps: list[list[list[int]]] = []

    def generate(self, iteration: int) -> Rollout:
        rollout = super().generate(iteration)
        decoded, eos = self.config.old_logprobs == "rollout", self.tokenizer.eos_token_id
        if not decoded:
            rollout.responses = [
                r if k % 4 == 3 else Generation([*r.ids[: k % 4 + k // 4], eos], None, ended=True)
                for k, r in enumerate(rollout.responses)
            ]
            limit = self.config.max_tokens_per_micro_batch
            rollout.make_micro_batches(self.own_rows(), limit)
        self.seen.append(
            [
                Episode(p, r.ids, r.ended, r.logprobs if decoded else [], as_ranked(self.tokenizer, r))
                for p, r in zip(rollout.prompt_ids, rollout.responses, strict=True)
            ]
        )
        self.steps.append([])
        return rollout

    def train_minibatch(self, experience: Experience, minibatch: Sequence[Rows], first: bool) -> dict[str, float]:
        self.steps[-1].append(sorted(row for rows in minibatch for row in rows))
        return super().train_minibatch(experience, minibatch, first)


def recorded(chain: Chain, config: Any, models: ActorCritic, texts: Any, out: Path) -> RecordingTrainer:
    """A recording trainer with seed 0."""
    return RecordingTrainer(config, models, chain.tokenizer, PPOData(PROMPTS, texts), Run(ALONE, 0, out))


def plain_name(name: str) -> str:
    """As the saved models name a weight, without what stands around it and the adapter's name."""
    return name.removeprefix("base_model.model.").replace(".policy.", ".").replace(".value.", ".")


def copies(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {plain_name(name): weight.detach().clone() for name, weight in weights.items()}


def load_four(chain: Chain, adapter: str, start: dict[str, torch.Tensor]) -> Four:
    if adapter == "none":
        return load_whole(chain.sft, chain.reward)
    return load_adapted(chain.sft, chain.reward, start, chain.config.lora.alpha / chain.config.lora.rank)


def assert_same_weights(ours: dict[str, Any], theirs: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> None:
    found = copies(ours)
    assert found.keys() == theirs.keys()
    moved = max(float((theirs[name].detach() - start[name]).abs().max()) for name in theirs)
    assert moved > 1e-3, "training moved nothing"
    worst = {name: float((found[name] - theirs[name].detach()).abs().max()) / moved for name in theirs}
    name = max(worst, key=lambda key: worst[key])
    assert worst[name] <= EXACT, f"{name} is off by {worst[name]:.1e} of the largest move"


def assert_same_numbers(rows: list[dict[str, float]], outcome: Outcome, names: tuple[str, ...]) -> None:
    assert len(rows) == len(outcome.rows)
    for number, (row, expected) in enumerate(zip(rows, outcome.rows, strict=True)):
        assert [name for name in names if name in row] == [name for name in names if name in expected]
        for name in filter(row.__contains__, names):
            assert row[name] == pytest.approx(expected[name], rel=COUNTED, abs=COUNTED), (number, name)


@pytest.mark.usefixtures("norms_keep_their_precision")
@pytest.mark.parametrize(("adapter", "variant"), CASES)
def test_a_run_is_the_papers_step_by_step(chains, adapter: str, variant: str, tmp_path: Path):
    chain: Chain = chains(adapter)
    config = small(**{"inner_epochs": 2, "warmup_iterations": 3, "checkpoint_every": 2} | VARIANTS[variant])
    models = doubled(chain.models(rewards=config.rewards))
    count = int(config.ptx_examples_per_episode * config.minibatch_size)
    texts = [CHUNKS[k % len(CHUNKS)][k % 2 :] for k in range(count)]
    policy_start, value_start = copies(models.policy_parameters), copies(models.value_parameters)
    four = load_four(chain, adapter, policy_start)

    trainer = recorded(chain, config, models, texts, tmp_path)
    average, seen = trainer.train(), trainer.seen
    assert len(seen) == config.iterations == 2
    for episode in seen[0]:
        own = look(four, replace(episode, recorded=[]), config.temperature).logprobs
        assert (episode.recorded or own) == pytest.approx(own, abs=DECODED)
    outcome = run(config, four, seen, trainer.steps, texts)

    names = WATCHED + (WATCHED_WITH_TEXT if config.ptx_coef else ())
    assert_same_numbers(read_metrics(tmp_path / "metrics.jsonl"), outcome, names)
    for ours, theirs, start in (
        (models.policy_parameters, four.policy.trained, policy_start),
        (models.value_parameters, four.value.trained, value_start),
        (average.average, outcome.average, policy_start),
    ):
        assert_same_weights(ours, theirs, start)


@pytest.mark.parametrize("responses_per_prompt", [1, 2])
def test_each_inner_epoch_visits_every_episode_once_in_minibatches_of_its_own(
    chains, responses_per_prompt: int, tmp_path: Path
):
    """The first pass takes episodes in order; a further one shuffles prompts, and their responses stay together."""
    chain: Chain = chains("lora")
    several = {"responses_per_prompt": responses_per_prompt, "inner_epochs": 2, "checkpoint_every": 2}
    config = small(total_episodes=32, batch_size=16, max_new_tokens=3, **several)
    trainer = recorded(chain, config, chain.models(), CHUNKS, tmp_path)
    trainer.train()
    minibatches = trainer.steps
    assert len(minibatches) == config.iterations == 2
    in_order = [[start, start + 1, start + 2, start + 3] for start in (0, 4, 8, 12)]
    for steps in minibatches:
        first, second = steps[:4], steps[4:]
        assert first == in_order
        assert [len(rows) for rows in second] == [4, 4, 4, 4]
        assert sorted(row for rows in second for row in rows) == list(range(16))
        assert not any(rows in in_order for rows in second) or responses_per_prompt > 1
        assert second != first
        for rows in second:
            prompts = [row // responses_per_prompt for row in rows]
            assert all(prompts.count(prompt) == responses_per_prompt for prompt in prompts)
    assert minibatches[0][4:] != minibatches[1][4:], "a shuffle of its own each iteration"
