"""Identities of a PPO run that hold for any model: at the start, of the gradients, and of the four models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from modeling.batch import Batch
from modeling.checkpoint import newest
from modeling.generation import Generation
from modeling.tracking import read_metrics
from ppo.actor_critic import ActorCritic
from ppo.config import PPOConfig
from ppo.experience import Experience, Rollout, Rows
from ppo.trainer import PPOData, PPOTrainer
from tests.cuts import state
from tests.ppo.conftest import ALONE, CHUNKS, PROMPTS, Chain, as_ranked, load_base, scored, small

BOTH = pytest.mark.parametrize("adapter", ["lora", "none"])
FLOAT32 = 2e-5
"""Absolute error of log-probabilities and scores: some tens of roundings at 6e-8 in numbers of size 10."""


def one_rollout(
    chain: Chain, config: PPOConfig, out: Path, models: ActorCritic | None = None
) -> tuple[PPOTrainer, Experience]:
    """A trainer and the eight episodes of its first roll-out."""
    trainer = chain.trainer(out, config, models)
    return trainer, scored(trainer)


def everything(experience: Experience) -> list[Rows]:
    """The micro-batches of the whole roll-out."""
    return [rows for minibatch in experience.rollout.minibatches for rows in minibatch]


def gradients(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """The gradients by name, which are cleared."""
    found = {name: p.grad.detach().clone() for name, p in parameters.items() if p.grad is not None}
    for p in parameters.values():
        p.grad = None
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Each gradient agrees within `relative` times its largest number."""
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-4
    for name, gradient in expected.items():
        limit = 1e-6 + relative * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=limit, rtol=0, msg=name)


@BOTH
def test_before_the_first_update_kl_is_zero_and_each_model_is_the_saved_one(chains, adapter: str, tmp_path: Path):
    chain: Chain = chains(adapter)
    _, experience = one_rollout(chain, small(), tmp_path)
    rollout, scores = experience.rollout, experience.scores
    assert torch.equal(scores.logprobs_R, scores.ref_logprobs_R)
    ref_logprobs_BT, values_BT = rollout.padded(scores.ref_logprobs_R), rollout.padded(scores.values_R)
    scorer = AutoModelForSequenceClassification.from_pretrained(chain.reward / "model").eval()
    causal = AutoModelForCausalLM.from_pretrained(chain.sft / "model").eval()
    for row, (prompt, response) in enumerate(zip(rollout.prompt_ids, rollout.responses, strict=True)):
        ids, count, start = torch.tensor([prompt + response.ids]), len(response.ids), len(prompt)
        with torch.no_grad():
            values = scorer.score(scorer.model(ids).last_hidden_state)[0, :, 0] - 0.25
            ranked = torch.tensor([prompt + as_ranked(chain.tokenizer, response)])
            score = scorer.score(scorer.model(ranked).last_hidden_state)[0, -1, 0] - 0.25
            logprobs = causal(ids).logits[0].log_softmax(-1)
        # The score is read at the last token of the response's text; the value of a token at the token before it.
        assert scores.rewards_B[row].item() == pytest.approx(score.item(), abs=FLOAT32)
        torch.testing.assert_close(values_BT[row, :count], values[start - 1 : -1], atol=FLOAT32, rtol=0)
        expected = torch.stack([logprobs[start - 1 + t, token] for t, token in enumerate(response.ids)])
        torch.testing.assert_close(ref_logprobs_BT[row, :count], expected, atol=FLOAT32, rtol=0)
        assert not rollout.mask_BT[row, count:].any()
    for ours, theirs in zip(load_base(chain).state_dict().values(), causal.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("adapter", "precision"), [("lora", "float32"), ("lora", "bfloat16"), ("none", "bfloat16")])
def test_at_learning_rate_zero_the_ratio_is_exactly_one(chains, adapter: str, precision: str, tmp_path: Path):
    chain: Chain = chains(adapter)
    chain = replace(chain, config=replace(chain.config, precision=precision))
    models = chain.models()
    before = {name: p.detach().clone() for name, p in (models.policy_parameters | models.value_parameters).items()}
    chain.trainer(tmp_path, small(learning_rate=0.0, value_learning_rate=0.0, ptx_coef=1.0), models).train()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        assert (row["ratio_max"], row["clip_fraction"], row["kl"]) == (1.0, 0.0, 0.0)
        assert row["policy_grad_norm"] > 0
    assert all(torch.equal(p, before[name]) for name, p in (models.policy_parameters | models.value_parameters).items())


def test_recorded_logprobs_are_refused_where_decoding_rounds_differently_from_scoring(chains, tmp_path: Path):
    chain: Chain = chains("none")
    chain = replace(chain, config=replace(chain.config, precision="bfloat16"))
    with pytest.raises(ValueError, match=r"ppo\.old_logprobs=rollout needs float32.*set ppo\.old_logprobs=recompute"):
        chain.trainer(tmp_path, small(old_logprobs="rollout"))
    assert not list(tmp_path.iterdir())


@BOTH
def test_recorded_logprobs_are_those_that_the_update_computes(chains, adapter: str, tmp_path: Path):
    chain: Chain = chains(adapter)

    _, computed = one_rollout(chain, small(temperature=0.7), tmp_path / "computed")
    trainer, recorded = one_rollout(chain, small(temperature=0.7, old_logprobs="rollout"), tmp_path / "recorded")
    assert recorded.rollout.ids == computed.rollout.ids
    recorded_R = recorded.scores.logprobs_R
    torch.testing.assert_close(recorded_R, computed.scores.logprobs_R, atol=FLOAT32, rtol=0)
    with torch.no_grad():
        plain_R = recorded.rollout.each_token(lambda batch: trainer.models.policy(batch)[0], recorded_R.dtype)
    assert not torch.allclose(recorded_R, plain_R, atol=1e-2), "the temperature has no effect"


@BOTH
def test_micro_batching_changes_nothing(chains, adapter: str, tmp_path: Path):
    chain: Chain = chains(adapter)
    found, counts = [], []
    for size in (1, 45, 10**4):
        trainer, experience = one_rollout(chain, small(max_tokens_per_micro_batch=size), tmp_path / str(size))
        tokens, models = float(sum(experience.rollout.lengths)), trainer.models
        trainer.policy_gradient(experience, everything(experience), tokens)
        trainer.value_gradient(experience, everything(experience), tokens)
        values = {f"value {name}": weight for name, weight in models.value_parameters.items()}
        found.append(gradients(models.policy_parameters | values))
        counts.append(len(everything(experience)))
    assert counts[0] > counts[1] > counts[2] == 2
    assert counts[0] == 8
    for other in found[1:]:
        assert_same(other, found[0], relative=1e-5)


@BOTH
def test_policy_gradient_is_autograd_of_the_naive_loss(chains, adapter: str, tmp_path: Path):
    chain: Chain = chains(adapter)
    models = chain.models()
    with torch.no_grad():
        for name, p in models.policy_parameters.items():
            if "lora_B" in name:
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    trainer, experience = one_rollout(chain, small(), tmp_path, models)
    rollout, tokens = experience.rollout, float(sum(experience.rollout.lengths))
    trainer.policy_gradient(experience, everything(experience), tokens)
    ours = gradients(models.policy_parameters)
    old_BT, advantages_BT = rollout.padded(experience.scores.logprobs_R), rollout.padded(experience.advantages_R)
    loss, policy = torch.zeros(()), models.policy.causal
    for row, (prompt, response) in enumerate(zip(rollout.prompt_ids, rollout.ids, strict=True)):
        logprobs = policy(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        for t, token in enumerate(response):
            ratio = (logprobs[len(prompt) - 1 + t, token] - old_BT[row, t]).exp()
            loss = loss - ratio * advantages_BT[row, t] / tokens
    loss.backward()
    assert_same(ours, gradients(models.policy_parameters), relative=1e-4)


@BOTH
def test_a_step_with_ptx_takes_the_ppo_gradient_plus_gamma_times_the_pretraining_gradient(
    chains, adapter: str, tmp_path: Path
):
    chain: Chain = chains(adapter)
    models, texts = chain.models(), CHUNKS[:8]
    config = small(ptx_coef=3.0, max_tokens_per_micro_batch=40, minibatch_size=8, max_grad_norm=None)
    trainer = chain.trainer(tmp_path, config, models, PPOData(PROMPTS, texts))
    experience = scored(trainer)
    trainer.policy_gradient(experience, everything(experience), float(sum(experience.rollout.lengths)))
    ppo = gradients(models.policy_parameters)
    loss, policy = torch.zeros(()), models.policy.causal
    for text in texts:
        logprobs = policy(torch.tensor([text])).logits[0].log_softmax(-1)
        loss = loss - sum(logprobs[t, text[t + 1]] for t in range(len(text) - 1)) / sum(len(c) - 1 for c in texts)
    loss.backward()
    ptx = gradients(models.policy_parameters)

    stepped: list[dict[str, Tensor]] = []
    trainer.optimizers.policy.register_step_pre_hook(lambda *given: stepped.append(gradients(models.policy_parameters)))
    numbers = trainer.train_minibatch(experience, everything(experience), first=True)
    (total,) = stepped
    expected = {name: ppo.get(name, torch.zeros_like(gradient)) + 3.0 * gradient for name, gradient in ptx.items()}
    assert_same(total, expected, relative=1e-4)

    def norm(of: dict[str, Tensor]) -> float:
        return float(sum(g.double().square().sum() for g in of.values())) ** 0.5

    assert numbers["ptx_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert numbers["ppo_grad_norm"] == pytest.approx(norm(ppo), rel=1e-4)
    assert numbers["ptx_grad_norm"] == pytest.approx(3.0 * norm(ptx), rel=1e-4)
    assert numbers["ptx_to_ppo_grad_ratio"] == pytest.approx(3.0 * norm(ptx) / norm(ppo), rel=1e-4)
    assert numbers["policy_grad_norm"] == pytest.approx(norm(expected), rel=1e-4)


@BOTH
def test_gamma_zero_is_plain_ppo_bit_for_bit(chains, adapter: str, tmp_path: Path):
    chain: Chain = chains(adapter)
    weights = []
    for name, texts in (("without", []), ("with", CHUNKS)):
        models = chain.models()
        chain.trainer(tmp_path / name, small(total_episodes=8), models, PPOData(PROMPTS, texts)).train()
        weights.append(models.policy_parameters)
    start = chain.models().policy_parameters
    assert any(not torch.equal(p, weights[0][name]) for name, p in start.items()), "training moved nothing"
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in start)


def test_temperature_of_the_update_is_that_of_the_rollout(chains):
    policy = chains("lora").models().policy
    with torch.no_grad():
        logits = policy.causal(torch.tensor([[5, 6, 7, 8, 9]])).logits[0]
        expected = [(logits[2 + t] / 0.5).log_softmax(-1)[token].item() for t, token in enumerate((8, 9))]
        logprobs_R, _ = policy(Batch([[5, 6, 7]], [[8, 9]]), 0.5)
    assert logprobs_R.tolist() == pytest.approx(expected, abs=1e-5)


def test_missing_eos_penalty_applies_only_to_truncated_responses(chains, tmp_path: Path):
    chain: Chain = chains("lora")
    eos = chain.tokenizer.eos_token_id
    responses = [Generation([9, 10, eos], [-1.0] * 3, ended=True), Generation([9, 10, 11], [-1.0] * 3, ended=False)]
    found = []
    for penalty in (0.0, 2.0):
        trainer = chain.trainer(tmp_path / str(penalty), small(missing_eos_penalty=penalty, kl_coef=0.0))
        rollout = Rollout(PROMPTS[:2], [[5, 6], [5, 6]], responses, ALONE.device)
        rollout.make_micro_batches([[0, 1]], 100)
        found.append(trainer.advantages(trainer.score(rollout), rollout))
    difference_R = found[0].rewards_R - found[1].rewards_R
    torch.testing.assert_close(difference_R, torch.tensor([0.0, 0, 0, 0, 0, 2.0]), atol=1e-6, rtol=0)
    assert torch.equal(found[0].scores.rewards_B, found[1].scores.rewards_B)


@BOTH
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(chains, adapter: str, tmp_path: Path):
    chain: Chain = chains(adapter)

    def run(out: Path, iterations: int) -> None:
        config = small(total_episodes=8 * iterations, ptx_coef=1.0, checkpoint_every=1, keep_checkpoints=2)
        chain.trainer(out, config).train()

    run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    # Rows that were logged after the checkpoint from which the run resumes are made again, not kept twice.
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "score": 123.0}\n{"step": 3, "sco')
    (tmp_path / "parts" / "checkpoints" / ".checkpoint-00000002.partial").mkdir()
    torch.manual_seed(12345)
    run(tmp_path / "parts", 2)
    run(tmp_path / "parts", 3)
    whole, parts = (newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    assert (whole / "progress.json").read_bytes() == (parts / "progress.json").read_bytes()
    assert state(whole / "state") == state(parts / "state")
    assert len(list((tmp_path / "parts" / "checkpoints").glob("checkpoint-*"))) == 2

    def rows(name: str) -> list[dict[str, float]]:
        found = read_metrics(tmp_path / name / "metrics.jsonl")
        return [{key: value for key, value in row.items() if "second" not in key} for row in found]

    assert rows("whole") == rows("parts")
    assert len(rows("whole")) == 3
    assert (tmp_path / "whole" / "samples.jsonl").read_bytes() == (tmp_path / "parts" / "samples.jsonl").read_bytes()
    saved = {name: value for file in (whole / "state").iterdir() for name, value in load_file(file).items()}
    assert {name.split("/")[0] for name in saved} >= {"policy", "value", "average", "policy_optimizer"}
    assert any(float(value.abs().max()) > 0 for name, value in saved.items() if name.endswith("exp_avg"))


def test_a_value_that_is_not_a_number_stops_the_run_with_its_name(chains, tmp_path: Path):
    chain: Chain = chains("lora")
    models = chain.models()
    with torch.no_grad():
        next(iter(models.value_parameters.values())).fill_(float("nan"))
    with pytest.raises(ValueError, match="value_mean is nan"):
        chain.trainer(tmp_path, small(), models).train()
