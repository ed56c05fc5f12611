"""Mistakes that PPO trainers for language models have made, each tried on whole iterations.

Elsewhere: advantages whitened by each process for itself (test_processes.py), gradients lost between adapters
(test_value_start.py).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling.batch import Batch
from modeling.config import ModelConfig
from modeling.load import load_tokenizer
from modeling.run import Run
from modeling.tiny import make_tiny_model
from modeling.tracking import read_metrics
from ppo.actor_critic import ActorCritic
from ppo.experience import Experience, Rollout, Scores
from ppo.trainer import PPOData, PPOTrainer
from tests.ppo.conftest import ALONE, PROMPTS, Chain, load_base, save_reward, small
from tests.ppo.toy import EOS, PAD, ask, doubled, next_words, toy_chain

TABLE = [0.5, 1.0, -1.0, 0.3, -0.3, 0.8, -0.6, 0.1, 0.2, -0.8]
ASKED = [ask(2, 3), ask(4), ask(5, 6, 7, 8), ask(9, 2, 4)]
TEXTS = [[3, 4, 5, 6]]
FLOAT32 = 2e-5
"""A few tens of roundings at 6e-8 in numbers of size 10."""


class RecordingTrainer(PPOTrainer):
    """Keeps the roll-out, and the norm of the gradient of each optimizer step."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.norms: list[float] = []
        self.experience: Experience
        for optimizer in (self.optimizers.policy, self.optimizers.value):
            optimizer.register_step_pre_hook(self.measure)

    def measure(self, optimizer: torch.optim.Optimizer, *given: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.norms.append(float(torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])))

    def advantages(self, scores: Scores, rollout: Rollout) -> Experience:
        self.experience = super().advantages(scores, rollout)
        return self.experience


def one_iteration(
    chain: Chain, out: Path, models: ActorCritic | None = None, prompts: Any = ASKED, **changes: Any
) -> tuple[dict[str, float], RecordingTrainer]:
    """(metrics, trainer) of a run of one iteration. Nothing is learnt unless `changes` say so."""
    settings: dict[str, Any] = {
        "total_episodes": 16, "batch_size": 16, "minibatch_size": 8, "max_new_tokens": 8, "learning_rate": 0.0,
        "value_learning_rate": 0.0,
    }  # fmt: skip
    run, data = Run(ALONE, 0, out), PPOData(prompts, TEXTS)
    trainer = RecordingTrainer(small(**settings | changes), models or chain.models(), chain.tokenizer, data, run)
    trainer.train()
    return read_metrics(out / "metrics.jsonl")[-1], trainer


@pytest.fixture
def toy(tmp_path: Path) -> Chain:
    """Its responses end at any length, and many contain the pad token."""
    return toy_chain(tmp_path / "stages", TABLE)


def distributions(chain: Chain, rollout: Rollout, temperature: float = 1.0) -> list[tuple[int, Any]]:
    """(token, log-probabilities of all tokens in its place) of each response token under the SFT model, each by a plain
    call on the tokens before it.
    """
    model = load_base(chain)
    return [
        (token, (next_words(model, prompt + response[:t]) / temperature).log_softmax(-1))
        for prompt, response in zip(rollout.prompt_ids, rollout.ids, strict=True)
        for t, token in enumerate(response)
    ]


def plain_logprobs(chain: Chain, rollout: Rollout, temperature: float = 1.0) -> list[float]:
    """Log-probability of each response token under the SFT model."""
    return [float(row_V[token]) for token, row_V in distributions(chain, rollout, temperature)]


def test_max_grad_norm_applies_to_each_model_once_a_step(toy: Chain, tmp_path: Path):
    """PPO's and the pretraining mix's gradients are clipped together."""
    numbers, trainer = one_iteration(toy, tmp_path / "tight", max_grad_norm=0.01, ptx_coef=1.0)
    assert min(numbers["policy_grad_norm"], numbers["value_grad_norm"]) > 0.02, "there was nothing to clip"
    assert trainer.norms == pytest.approx([0.01] * 4, rel=1e-3)
    numbers, trainer = one_iteration(toy, tmp_path / "free", max_grad_norm=None, ptx_coef=1.0)
    measured = sum(trainer.norms) / 2
    assert measured == pytest.approx(numbers["policy_grad_norm"] + numbers["value_grad_norm"], rel=1e-4)


def test_the_score_is_the_reward_of_eos_or_of_the_last_token_of_a_truncated_response(toy: Chain, tmp_path: Path):
    _, trainer = one_iteration(toy, tmp_path)
    rollout, responses = trainer.experience.rollout, trainer.experience.rollout.ids
    rewards_BT = rollout.padded(trainer.experience.rewards_R)
    for response, ended, rewards in zip(responses, rollout.ended_B.tolist(), rewards_BT.tolist(), strict=True):
        assert ended is (response[-1] == EOS)
        assert EOS not in response[:-1]
        # Before the first update KL is 0, so the score is the only reward.
        assert [place for place, reward in enumerate(rewards) if reward != 0] == [len(response) - 1]
        assert rewards[len(response) - 1] == pytest.approx(TABLE[response[-1]], abs=1e-5)
    assert {len(response) for response in responses if response[-1] == EOS} >= {1, 2}
    assert 0 < sum(rollout.ended_B) < 16


def test_a_sampled_pad_token_counts_as_a_token(toy: Chain, tmp_path: Path):
    numbers, trainer = one_iteration(toy, tmp_path, max_new_tokens=3)
    rollout, scores = trainer.experience.rollout, trainer.experience.scores
    assert any(PAD in response[:-1] for response in rollout.ids)
    assert any(response[-1] == PAD for response in rollout.ids)
    assert rollout.mask_BT.sum(1).tolist() == [len(response) for response in rollout.ids]
    assert scores.logprobs_R.tolist() == pytest.approx(plain_logprobs(toy, rollout), abs=FLOAT32)
    assert scores.rewards_B.tolist() == pytest.approx([TABLE[response[-1]] for response in rollout.ids], abs=1e-5)
    assert numbers["length"] == sum(map(len, rollout.ids)) / 16


def test_entropy_is_a_mean_over_response_tokens_alone(toy: Chain, tmp_path: Path):
    numbers, trainer = one_iteration(toy, tmp_path, minibatch_size=16, temperature=0.8)
    rollout = trainer.experience.rollout
    assert len(set(rollout.lengths)) > 2
    entropies = [float(-(row_V.exp() * row_V).sum()) for _, row_V in distributions(toy, rollout, 0.8)]
    assert numbers["entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=FLOAT32)


def test_scores_of_an_episode_do_not_depend_on_its_micro_batch(chains: Callable[[str], Chain], tmp_path: Path):
    chain = chains("lora")
    alone, *others = [
        one_iteration(chain, tmp_path / str(size), doubled(chain.models()), PROMPTS, max_tokens_per_micro_batch=size)[1]
        for size in (1, 150, 10**4)
    ]
    expected = alone.experience
    assert len({len(prompt) for prompt in expected.rollout.prompt_ids}) > 2
    for together in (trainer.experience for trainer in others):
        assert len(together.rollout.batches) < len(expected.rollout.batches) == 16
        assert together.rollout.ids == expected.rollout.ids
        for name in ("logprobs_R", "ref_logprobs_R", "values_R", "rewards_B"):
            found, wanted = getattr(together.scores, name), getattr(expected.scores, name)
            torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0, msg=name)


@pytest.mark.parametrize("old_logprobs", ["recompute", "rollout"])
def test_dropout_is_off_in_rollout_and_update_whatever_the_models_config_says(tmp_path: Path, old_logprobs: str):
    """Even in train mode, in which the layers are with activation checkpointing."""
    made = make_tiny_model(tmp_path / "sft" / "model", "gpt2")
    dropout = {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5}
    (made / "config.json").write_text(json.dumps(json.loads((made / "config.json").read_text()) | dropout))
    config = ModelConfig(base="unused", adapter="none", device="cpu", precision="float32")
    chain = Chain(tmp_path / "sft", save_reward(tmp_path / "reward", made), config, load_tokenizer(made, config))
    models, batch = chain.models(), Batch([[5, 6, 7]], [[8, 9]])
    values_R = models.value(batch)
    numbers, _ = one_iteration(
        chain, tmp_path / "out", models, PROMPTS, inner_epochs=2, ptx_coef=1.0, old_logprobs=old_logprobs
    )
    # Decoding, and the other micro-batches of the second inner epoch, round differently from scoring.
    assert numbers["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert numbers["kl"] == pytest.approx(0.0, abs=0.0 if old_logprobs == "recompute" else 1e-5)
    assert torch.equal(models.value(batch), values_R)
    assert torch.equal(models.policy.train()(batch)[0], models.reference(batch)[0])


@pytest.mark.parametrize("engine", ["native", "transformers"])
def test_generation_settings_saved_with_the_model_do_not_reach_the_rollout(tmp_path: Path, engine: str):
    habits = {
        "do_sample": True, "temperature": 0.2, "top_k": 2, "top_p": 0.3, "min_p": 0.2, "repetition_penalty": 4.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [3], "bad_words_ids": [[6]], "min_new_tokens": 3, "max_new_tokens": 4,
        "eos_token_id": [EOS, 7], "pad_token_id": PAD,
    }  # fmt: skip
    old = "rollout" if engine == "native" else "recompute"
    found = []
    for name in ("plain", "spoilt"):
        chain = toy_chain(tmp_path / name, TABLE)
        if name == "spoilt":
            (chain.sft / "model" / "generation_config.json").write_text(json.dumps(habits))
        out = tmp_path / name / "out"
        found.append(one_iteration(chain, out, engine=engine, old_logprobs=old, temperature=1.3)[1].experience)
    plain, spoilt = found
    # But every end token that the model's settings name ends a response.
    assert any(7 in response[:-1] for response in plain.rollout.ids)
    assert spoilt.rollout.ids == [row[: row.index(7) + 1] if 7 in row else row for row in plain.rollout.ids]
    # Log-probabilities, recorded ones too, are those of the whole distribution at the temperature.
    expected = plain_logprobs(chain, spoilt.rollout, temperature=1.3)
    assert spoilt.scores.logprobs_R.tolist() == pytest.approx(expected, abs=FLOAT32)
