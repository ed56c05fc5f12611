"""Mistakes that PPO trainers for language models have made, each tried on whole roll-outs of `train`.

Elsewhere: advantages whitened by each process for itself (test_processes.py), gradients lost between adapters
    (test_value_start.py), left padding (tests/modeling/test_logprobs.py).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ppo.train as project
from modeling.config import ModelConfig
from modeling.load import load_tokenizer
from modeling.tiny import make_tiny_model
from modeling.tracking import read_metrics
from ppo.models import PPOModels
from ppo.rollout import Rollout
from tests.ppo.conftest import PROMPTS, TEAM, Chain, load_base, save_reward, small
from tests.ppo.toy import EOS, PAD, ask, doubled, next_words, toy_chain

TABLE = [0.5, 1.0, -1.0, 0.3, -0.3, 0.8, -0.6, 0.1, 0.2, -0.8]
ASKED = [ask(2, 3), ask(4), ask(5, 6, 7, 8), ask(9, 2, 4)]
FLOAT32 = 2e-5
"""A few tens of roundings at 6e-8 in numbers of size 10."""


@pytest.fixture
def toy(tmp_path: Path) -> Chain:
    """Answers to it end anywhere, and many hold the pad token."""
    return toy_chain(tmp_path / "stages", TABLE)


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """Fills with what `train` sees."""
    seen: list[Rollout] = []
    plain = project.score

    def kept(*given: Any, **named: Any) -> Rollout:
        seen.append(plain(*given, **named))
        return seen[-1]

    monkeypatch.setattr(project, "score", kept)
    return seen


def one_iteration(
    chain: Chain, out: Path, models: PPOModels | None = None, prompts: Any = ASKED, **changes: Any
) -> dict[str, float]:
    """Its numbers. Nothing is learnt unless `changes` say so."""
    settings = {
        "total_episodes": 16,
        "batch_size": 16,
        "minibatch_size": 8,
        "max_new_tokens": 8,
        "learning_rate": 0.0,
        "value_learning_rate": 0.0,
    }
    config = small(**settings | changes)
    project.train(
        config, chain.config, models or chain.models(), chain.tokenizer, prompts, [[3, 4, 5, 6]], 0, TEAM, out
    )
    return read_metrics(out / "metrics.jsonl")[-1]


def plain_logprobs(chain: Chain, rollout: Rollout, temperature: float = 1.0) -> list[list[float]]:
    """Of the SFT model, token by token, each on what stands before it alone."""
    model = load_base(chain)
    found = []
    for prompt, response in zip(rollout.prompts, rollout.responses, strict=True):
        rows = [(next_words(model, prompt + response[:t]) / temperature).log_softmax(-1) for t in range(len(response))]
        found.append([float(row[token]) for row, token in zip(rows, response, strict=True)])
    return found


def test_max_grad_norm_is_obeyed_by_both_models(toy: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    norms: list[float] = []
    plain = torch.optim.Adam.step

    def watched(optimizer: torch.optim.Adam, *given: Any, **named: Any) -> Any:
        norms.append(
            float(
                torch.nn.utils.get_total_norm(
                    [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                )
            )
        )
        return plain(optimizer, *given, **named)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    numbers = one_iteration(toy, tmp_path / "tight", max_grad_norm=0.01, ptx_coef=1.0)
    assert min(numbers["policy_grad_norm"], numbers["value_grad_norm"]) > 0.02, "there was nothing to clip"
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)
    norms.clear()
    numbers = one_iteration(toy, tmp_path / "free", max_grad_norm=None, ptx_coef=1.0)
    assert sum(norms) / 2 == pytest.approx(numbers["policy_grad_norm"] + numbers["value_grad_norm"], rel=1e-4)


def test_the_score_stands_at_eos_itself_or_at_the_last_word_of_what_was_cut_off(
    toy: Chain, tmp_path: Path, rollouts: list[Rollout]
):
    one_iteration(toy, tmp_path)
    for response, ended, rewards in zip(
        rollouts[0].responses, rollouts[0].ended_B.tolist(), rollouts[0].rewards_BT.tolist(), strict=True
    ):
        assert ended is (response[-1] == EOS)
        assert EOS not in response[:-1]
        # Before the first update KL is 0, so that the score is all there is.
        assert [place for place, reward in enumerate(rewards) if reward != 0] == [len(response) - 1]
        assert rewards[len(response) - 1] == pytest.approx(TABLE[response[-1]], abs=1e-5)
    assert {len(response) for response in rollouts[0].responses if response[-1] == EOS} >= {1, 2}
    assert 0 < sum(rollouts[0].ended_B) < 16


def test_a_pad_token_that_was_sampled_counts_as_a_word(toy: Chain, tmp_path: Path, rollouts: list[Rollout]):
    numbers = one_iteration(toy, tmp_path, max_new_tokens=3)
    rollout = rollouts[0]
    assert any(PAD in response[:-1] for response in rollout.responses)
    assert any(response[-1] == PAD for response in rollout.responses)
    assert rollout.mask_BT.sum(1).tolist() == [len(response) for response in rollout.responses]
    for row, expected in enumerate(plain_logprobs(toy, rollout)):
        assert rollout.logprobs_BT[row, : len(expected)].tolist() == pytest.approx(expected, abs=FLOAT32)
    assert rollout.scores_B.tolist() == pytest.approx([TABLE[response[-1]] for response in rollout.responses], abs=1e-5)
    assert numbers["length"] == sum(map(len, rollout.responses)) / 16


def test_entropy_is_a_mean_over_real_tokens_alone(toy: Chain, tmp_path: Path, rollouts: list[Rollout]):
    numbers = one_iteration(toy, tmp_path, minibatch_size=16, temperature=0.8)
    model, entropies = load_base(toy), []
    for prompt, response in zip(rollouts[0].prompts, rollouts[0].responses, strict=True):
        for t in range(len(response)):
            row = (next_words(model, prompt + response[:t]) / 0.8).log_softmax(-1)
            entropies.append(float(-(row.exp() * row).sum()))
    assert len({len(response) for response in rollouts[0].responses}) > 2
    assert numbers["entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=FLOAT32)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_what_models_say_of_an_episode_does_not_depend_on_its_neighbours(
    chains: Callable[[str], Chain], tmp_path: Path, rollouts: list[Rollout], adapter: str
):
    chain = chains(adapter)
    for tokens in (1, 150, 10**4):
        one_iteration(
            chain, tmp_path / str(tokens), doubled(chain.models()), PROMPTS, max_tokens_per_micro_batch=tokens
        )
    alone = rollouts[0]
    assert len({len(prompt) for prompt in alone.prompts}) > 2
    for together in rollouts[1:]:
        assert together.responses == alone.responses
        for name in ("logprobs_BT", "ref_logprobs_BT", "values_BT", "scores_B"):
            torch.testing.assert_close(getattr(together, name), getattr(alone, name), atol=1e-9, rtol=0, msg=name)


def test_dropout_is_off_in_rollout_and_update_whatever_the_models_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = make_tiny_model(tmp_path / "sft" / "model", "gpt2")
    settings = json.loads((made / "config.json").read_text()) | {
        "resid_pdrop": 0.5,
        "attn_pdrop": 0.5,
        "embd_pdrop": 0.5,
    }
    (made / "config.json").write_text(json.dumps(settings))
    config = ModelConfig(base="unused", adapter="none", device="cpu", precision="float32")
    chain = Chain(tmp_path / "sft", save_reward(tmp_path / "reward", made), config, load_tokenizer(made, config))
    models = chain.models()
    assert models.policy.model.config.resid_pdrop == models.value.model.config.resid_pdrop == 0.5
    plain, calls = torch.nn.functional.dropout, []

    def watched(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        calls.append(training and p > 0)
        return plain(input, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", watched)
    numbers = one_iteration(chain, tmp_path / "out", models, PROMPTS, inner_epochs=2, ptx_coef=1.0)
    assert calls, "this architecture shows nothing"
    assert not any(calls)
    # The second inner epoch uses other micro-batches than scoring, which rounds differently.
    assert numbers["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert numbers["kl"] == 0.0


@pytest.mark.parametrize("engine", ["native", "transformers"])
def test_generation_settings_saved_with_the_model_do_not_reach_the_rollout(
    tmp_path: Path, rollouts: list[Rollout], engine: str
):
    habits = {
        "do_sample": True, "temperature": 0.2, "top_k": 2, "top_p": 0.3, "min_p": 0.2, "repetition_penalty": 4.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [3], "bad_words_ids": [[6]], "min_new_tokens": 3, "max_new_tokens": 4,
        "eos_token_id": [EOS, 7], "pad_token_id": PAD,
    }  # fmt: skip
    for name in ("plain", "spoilt"):
        chain = toy_chain(tmp_path / name, TABLE)
        if name == "spoilt":
            (chain.sft / "model" / "generation_config.json").write_text(json.dumps(habits))
        old = "rollout" if engine == "native" else "recompute"
        one_iteration(chain, tmp_path / name / "out", engine=engine, old_logprobs=old, temperature=1.3)
    plain, spoilt = rollouts
    # But every end token that the model's settings name ends a response.
    assert any(7 in response[:-1] for response in plain.responses)
    assert spoilt.responses == [row[: row.index(7) + 1] if 7 in row else row for row in plain.responses]
    # Log-probabilities, recorded ones too, are those of the whole distribution at the temperature.
    for row, expected in enumerate(plain_logprobs(chain, spoilt, temperature=1.3)):
        assert spoilt.logprobs_BT[row, : len(expected)].tolist() == pytest.approx(expected, abs=FLOAT32)
