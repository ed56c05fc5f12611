"""What must hold of a PPO run whatever the model: identities at the start, of the gradients, and of the four roles."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from modeling.batch import Batch
from modeling.checkpoint import newest
from modeling.generation import Generation
from modeling.logprobs import response_logprobs
from ppo.config import PPOConfig
from ppo.ema import MovingAverage
from ppo.models import PPOModels
from ppo.rollout import Rollout, roll_out, score
from ppo.train import train
from ppo.update import Optimizers, add_ptx_gradient, policy_gradient, step, value_gradient
from tests.ppo.conftest import CHUNKS, PROMPTS, TEAM, Chain, all_rows, as_ranked, groups_of, load_base, small

BOTH = pytest.mark.parametrize("adapter", ["lora", "none"])


def one_rollout(chain: Chain, models: PPOModels, config: PPOConfig, size: int = 3) -> tuple[Rollout, list[list[int]]]:
    """Eight episodes, scored in the micro-batches that come back."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(8)]
    ids, responses = roll_out(models, prompts, config, chain.tokenizer, seed=0, iteration=0, numbers=range(8))
    groups = groups_of(8, size)
    return score(
        models, ids, responses, groups, config, chain.config, chain.tokenizer.pad_token_id, TEAM.device
    ), groups


def in_precision(chain: Chain, precision: str) -> Chain:
    """The same models with `model.precision` set."""
    return replace(chain, config=replace(chain.config, precision=precision))


def gradients(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    found = {name: p.grad.detach().clone() for name, p in parameters.items() if p.grad is not None}
    for p in parameters.values():
        p.grad = None
    return found


@BOTH
def test_before_the_first_update_kl_is_zero_and_roles_are_who_they_say(chains, adapter: str):
    chain = chains(adapter)
    models, config = chain.models(), small()
    rollout, _ = one_rollout(chain, models, config)
    assert torch.equal(rollout.logprobs_BT, rollout.ref_logprobs_BT)
    scorer = AutoModelForSequenceClassification.from_pretrained(chain.reward / "model").eval()
    causal = AutoModelForCausalLM.from_pretrained(chain.sft / "model").eval()
    for row in range(8):
        prompt, response = rollout.prompts[row], rollout.responses[row]
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            hidden = scorer.model(ids).last_hidden_state
            values = scorer.score(hidden)[0, :, 0] - 0.25
            logprobs = causal(ids).logits[0].log_softmax(-1)
        count, start = len(response), len(prompt)
        # The score is read at the last token of the response's text; the value of a state at the token before the one
        # it is about to choose.
        ranked = as_ranked(chain.tokenizer, Generation(response, None, bool(rollout.ended_B[row])))
        with torch.no_grad():
            score = scorer.score(scorer.model(torch.tensor([prompt + ranked])).last_hidden_state)[0, -1, 0] - 0.25
        assert rollout.scores_B[row].item() == pytest.approx(score.item(), abs=2e-5)
        assert torch.allclose(rollout.values_BT[row, :count], values[start - 1 : -1], atol=2e-5, rtol=0)
        expected = torch.stack([logprobs[start - 1 + t, token] for t, token in enumerate(response)])
        assert torch.allclose(rollout.ref_logprobs_BT[row, :count], expected, atol=2e-5, rtol=0)
        assert not rollout.mask_BT[row, count:].any()
    reloaded = load_base(chain)
    assert all(
        torch.equal(a, b) for a, b in zip(reloaded.state_dict().values(), causal.state_dict().values(), strict=True)
    )


@BOTH
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_at_learning_rate_zero_the_ratio_is_exactly_one(chains, adapter: str, precision: str, tmp_path: Path):
    chain = in_precision(chains(adapter), precision)
    models = chain.models()
    before = {name: p.detach().clone() for name, p in (models.policy_parameters | models.value_parameters).items()}
    config = small(learning_rate=0.0, value_learning_rate=0.0, ptx_coef=1.0)
    train(config, chain.config, models, chain.tokenizer, PROMPTS, CHUNKS, 0, TEAM, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert [row["ratio_max"] for row in rows] == [1.0, 1.0]
    assert [row["clip_fraction"] for row in rows] == [0.0, 0.0]
    assert [row["kl"] for row in rows] == [0.0, 0.0]
    assert all(row["policy_grad_norm"] > 0 for row in rows)
    assert all(torch.equal(p, before[name]) for name, p in (models.policy_parameters | models.value_parameters).items())


def test_recorded_logprobs_are_refused_where_decoding_rounds_differently_from_scoring(chains, tmp_path: Path):
    chain = in_precision(chains("none"), "bfloat16")
    config = small(old_logprobs="rollout")
    with pytest.raises(ValueError, match=r"ppo\.old_logprobs=rollout needs float32.*set ppo\.old_logprobs=recompute"):
        train(config, chain.config, chain.models(), chain.tokenizer, PROMPTS, CHUNKS, 0, TEAM, tmp_path)
    assert not list(tmp_path.iterdir())


@BOTH
def test_recorded_logprobs_are_those_that_the_update_computes(chains, adapter: str):
    chain = chains(adapter)
    models = chain.models()
    recorded, _ = one_rollout(chain, models, small(old_logprobs="rollout", temperature=0.7))
    computed, _ = one_rollout(chain, models, small(old_logprobs="recompute", temperature=0.7))
    assert recorded.responses == computed.responses
    assert torch.allclose(recorded.logprobs_BT, computed.logprobs_BT, atol=2e-5, rtol=0)
    assert not torch.allclose(recorded.logprobs_BT, one_rollout(chain, models, small())[0].logprobs_BT, atol=1e-2)


@BOTH
def test_micro_batching_changes_nothing(chains, adapter: str):
    chain = chains(adapter)
    config = small()
    found = []
    for size in (1, 3, 8):
        models = chain.models()
        rollout, groups = one_rollout(chain, models, config, size)
        tokens = float(rollout.mask_BT.sum())
        policy_gradient(models, rollout, groups, config, chain.config, tokens, TEAM)
        value_gradient(models, rollout, groups, config, chain.config, tokens, TEAM)
        found.append((gradients(models.policy_parameters), gradients(models.value_parameters)))
    for policy, value in found[1:]:
        for name, gradient in (found[0][0] | found[0][1]).items():
            other = (policy | value)[name]
            assert torch.allclose(gradient, other, atol=1e-5 * float(gradient.abs().max()) + 1e-8, rtol=0), name


@BOTH
@pytest.mark.parametrize("clip", [0.2, None])
def test_the_value_gradient_that_scoring_leaves_is_the_one_that_the_update_computes(
    chains, adapter: str, clip: float | None
):
    chain, config = chains(adapter), small(value_clip_range=clip)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(8)]
    found = []
    for at_once in (False, True):
        models = chain.models()
        ids, responses = roll_out(models, prompts, config, chain.tokenizer, seed=0, iteration=0, numbers=range(8))
        groups = groups_of(8, 3)
        first = groups[:2] if at_once else ()
        rollout = score(
            models, ids, responses, groups, config, chain.config, chain.tokenizer.pad_token_id, TEAM.device, first=first
        )
        tokens = float(sum(len(responses[row].ids) for rows in groups[:2] for row in rows))
        passes = []
        handle = models.value.scalar.backbone.register_forward_hook(lambda *given, passes=passes: passes.append(1))
        numbers = value_gradient(models, rollout, groups[:2], config, chain.config, tokens, TEAM)
        assert len(passes) == (0 if at_once else 2)
        found.append((numbers["value_loss"], gradients(models.value_parameters)))
        # Once stepped, the same minibatch is another one.
        value_gradient(models, rollout, groups[:2], config, chain.config, tokens, TEAM)
        assert len(passes) == (2 if at_once else 4)
        handle.remove()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert found[0][0] > 1e-3
    for name, gradient in found[0][1].items():
        assert torch.allclose(found[1][1][name], gradient, atol=1e-6 * float(gradient.abs().max()), rtol=0), name


@BOTH
def test_policy_gradient_is_autograd_of_the_naive_loss(chains, adapter: str):
    chain = chains(adapter)
    models, config = chain.models(), small()
    with torch.no_grad():
        for name, p in models.policy_parameters.items():
            if "lora_B" in name:
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    rollout, groups = one_rollout(chain, models, config)
    tokens = float(rollout.mask_BT.sum())
    policy_gradient(models, rollout, groups, config, chain.config, tokens, TEAM)
    ours = gradients(models.policy_parameters)
    with models.as_policy() as policy:
        loss = torch.zeros(())
        for row in range(8):
            prompt, response = rollout.prompts[row], rollout.responses[row]
            logprobs = policy(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            for t, token in enumerate(response):
                ratio = (logprobs[len(prompt) - 1 + t, token] - rollout.logprobs_BT[row, t]).exp()
                loss = loss - ratio * rollout.advantages_BT[row, t] / tokens
        loss.backward()
    naive = gradients(models.policy_parameters)
    assert ours.keys() == naive.keys()
    assert max(float(g.abs().max()) for g in ours.values()) > 1e-4
    for name, gradient in naive.items():
        assert torch.allclose(ours[name], gradient, atol=1e-6 + 1e-4 * float(gradient.abs().max()), rtol=0), name


@BOTH
def test_gradient_with_ptx_is_the_ppo_gradient_plus_gamma_times_the_pretraining_gradient(chains, adapter: str):
    chain = chains(adapter)
    models, config = chain.models(), small(ptx_coef=3.0, max_tokens_per_micro_batch=40)
    rollout, groups = one_rollout(chain, models, config)
    pad, tokens = chain.tokenizer.pad_token_id, float(rollout.mask_BT.sum())
    policy_gradient(models, rollout, groups, config, chain.config, tokens, TEAM)
    ppo = gradients(models.policy_parameters)
    with models.as_policy() as policy:
        loss = torch.zeros(())
        for chunk in CHUNKS:
            logprobs = policy(torch.tensor([chunk])).logits[0].log_softmax(-1)
            loss = loss - sum(logprobs[t, chunk[t + 1]] for t in range(len(chunk) - 1)) / sum(
                len(c) - 1 for c in CHUNKS
            )
        loss.backward()
    ptx = gradients(models.policy_parameters)

    policy_gradient(models, rollout, groups, config, chain.config, tokens, TEAM)
    numbers = add_ptx_gradient(models, CHUNKS, config, chain.config, pad, TEAM)
    total = gradients(models.policy_parameters)
    for name in total:
        expected = ppo.get(name, torch.zeros_like(total[name])) + 3.0 * ptx[name]
        assert torch.allclose(total[name], expected, atol=1e-6 + 1e-4 * float(expected.abs().max()), rtol=0), name

    def norm(of: dict[str, torch.Tensor]) -> float:
        return float(sum(g.double().square().sum() for g in of.values())) ** 0.5

    assert numbers["ptx_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert numbers["ppo_grad_norm"] == pytest.approx(norm(ppo), rel=1e-4)
    assert numbers["ptx_grad_norm"] == pytest.approx(3.0 * norm(ptx), rel=1e-4)
    assert numbers["ptx_to_ppo_grad_ratio"] == pytest.approx(3.0 * norm(ptx) / norm(ppo), rel=1e-4)


@BOTH
def test_ppo_and_ptx_gradients_are_clipped_together_and_stepped_once(
    chains, adapter: str, monkeypatch: pytest.MonkeyPatch
):
    chain = chains(adapter)
    models, config = chain.models(), small(ptx_coef=3.0, max_grad_norm=0.01)
    optimizers = Optimizers.make(models, config)
    rollout, groups = one_rollout(chain, models, config)
    norms: list[float] = []

    def watch(optimizer: torch.optim.Optimizer) -> None:
        plain = optimizer.step

        def counted(*args: object, **rest: object) -> object:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))
            return plain(*args, **rest)

        monkeypatch.setattr(optimizer, "step", counted)

    watch(optimizers.policy)
    numbers = step(
        models, optimizers, rollout, groups, CHUNKS, config, chain.config, chain.tokenizer.pad_token_id, TEAM
    )
    assert numbers["policy_grad_norm"] > 0.01
    assert norms == pytest.approx([0.01], rel=1e-3)


@BOTH
def test_gamma_zero_is_plain_ppo_bit_for_bit(chains, adapter: str, tmp_path: Path):
    chain = chains(adapter)
    weights = []
    for name, chunks in (("without", [[1, 2, 3]]), ("with", CHUNKS)):
        models = chain.models()
        train(small(), chain.config, models, chain.tokenizer, PROMPTS, chunks, 0, TEAM, tmp_path / name)
        weights.append({key: p.detach().clone() for key, p in models.policy_parameters.items()})
    moved = chain.models().policy_parameters
    assert any(not torch.equal(p, weights[0][key]) for key, p in moved.items()), "training moved nothing"
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@BOTH
def test_each_optimizer_trains_its_own_model_alone(chains, adapter: str):
    chain = chains(adapter)
    models, config = chain.models(), small()
    rollout, groups = one_rollout(chain, models, config)
    pad = chain.tokenizer.pad_token_id

    def outputs() -> dict[str, torch.Tensor]:
        batch = all_rows(rollout, pad)
        with torch.no_grad():
            found = {}
            with models.as_policy() as policy:
                found["policy"] = response_logprobs(policy, batch)
            with models.as_reference() as reference:
                found["reference"] = response_logprobs(reference, batch)
            with models.as_value() as value:
                found["value"] = value.values(batch)
            with models.as_reward() as reward:
                found["reward"] = reward.scores(batch)
        return found

    before = outputs()
    for optimizer_name, trained in (("value_learning_rate", "policy"), ("learning_rate", "value")):
        optimizers = Optimizers.make(models, config)
        setattr(frozen := small(), optimizer_name, 0.0)
        optimizers.set_learning_rates(frozen, 0)
        step(models, optimizers, rollout, groups, [], config, chain.config, pad, TEAM)
        after = outputs()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {trained}
        before = after


def test_temperature_of_the_update_is_that_of_the_rollout(chains):
    chain = chains("lora")
    models = chain.models()
    batch = Batch([[5, 6, 7]], [[8, 9]], chain.tokenizer.pad_token_id, TEAM.device)
    with models.as_policy() as policy, torch.no_grad():
        logits = policy(torch.tensor([[5, 6, 7, 8, 9]])).logits[0]
        expected = [(logits[2 + t] / 0.5).log_softmax(-1)[token].item() for t, token in enumerate((8, 9))]
        assert response_logprobs(policy, batch, 0.5).tolist() == pytest.approx(expected, abs=1e-5)


def test_missing_eos_penalty_is_taken_from_cut_off_responses_alone(chains):
    chain = chains("lora")
    models, eos = chain.models(), chain.tokenizer.eos_token_id
    responses = [Generation([9, 10, eos], [-1.0] * 3, ended=True), Generation([9, 10, 11], [-1.0] * 3, ended=False)]
    found = [
        score(
            models,
            [[5, 6], [5, 6]],
            responses,
            [[0, 1]],
            small(missing_eos_penalty=p, kl_coef=0.0),
            chain.config,
            0,
            TEAM.device,
        )
        for p in (0.0, 2.0)
    ]
    difference = found[0].rewards_BT - found[1].rewards_BT
    assert torch.allclose(difference, torch.tensor([[0.0, 0, 0], [0, 0, 2.0]]), atol=1e-6)
    assert torch.equal(found[0].scores_B, found[1].scores_B)


@BOTH
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(chains, adapter: str, tmp_path: Path):
    chain = chains(adapter)
    config = small(total_episodes=4 * 8, ptx_coef=1.0, checkpoint_every=1, keep_checkpoints=2)

    def run(out: Path, iterations: int) -> MovingAverage:
        part = small(**{**vars(config), "total_episodes": 8 * iterations})
        return train(part, chain.config, chain.models(), chain.tokenizer, PROMPTS, CHUNKS, 0, TEAM, out)

    run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 1)
    # Rows that were logged after the checkpoint from which the run goes on are made again, not kept twice.
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "score": 123.0}\n{"step": 3, "sco')
    (tmp_path / "parts" / "checkpoints" / ".checkpoint-00000002.partial").mkdir()
    torch.manual_seed(12345)
    run(tmp_path / "parts", 3)
    run(tmp_path / "parts", 4)
    whole, parts = (newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    files = sorted(path.name for path in whole.iterdir())
    assert files == sorted(path.name for path in parts.iterdir())
    assert {"policy.safetensors", "value.safetensors", "average.safetensors", "policy_optimizer.safetensors"} <= set(
        files
    )
    for name in files:
        if name != "random.safetensors":
            assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    assert len(list((tmp_path / "parts" / "checkpoints").glob("checkpoint-*"))) == 2

    def rows(name: str) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in found]

    assert rows("whole") == rows("parts")
    assert (tmp_path / "whole" / "samples.jsonl").read_bytes() == (tmp_path / "parts" / "samples.jsonl").read_bytes()
    state = load_file(whole / "policy_optimizer.safetensors")
    assert any(float(value.abs().max()) > 0 for key, value in state.items() if key.endswith("exp_avg"))


def test_a_loss_that_is_no_number_stops_the_run_with_a_sentence(chains, tmp_path: Path):
    chain = chains("lora")
    models = chain.models()
    with torch.no_grad():
        next(iter(models.value_parameters.values())).fill_(float("nan"))
    with pytest.raises(ValueError, match="value_mean is nan"):
        train(small(), chain.config, models, chain.tokenizer, PROMPTS, CHUNKS, 0, TEAM, tmp_path)
