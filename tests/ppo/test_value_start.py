"""The value model starts from a reward model of another size, or from the SFT model; whichever, it alone is trained by
its optimizer.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from modeling.checkpoint import newest
from modeling.generation import Generation
from modeling.logprobs import response_logprobs
from modeling.tiny import CONTEXT_LENGTH, make_tiny_model
from ppo import models as loading
from ppo.config import PPOConfig
from ppo.models import PPOModels
from ppo.rollout import Rollout, roll_out, score
from ppo.train import train
from ppo.update import Optimizers, policy_gradient, step, value_gradient
from tests.ppo.conftest import (
    CHUNKS,
    PROMPTS,
    TEAM,
    Chain,
    all_rows,
    as_ranked,
    chain_of,
    groups_of,
    save_reward,
    small,
)

Start = tuple[Chain, dict[str, Any]]
CASES = [
    ("lora", "shared", "sft"),
    ("lora", "bigger", "reward"),
    ("lora", "bigger", "sft"),
    ("lora", "foreign", "sft"),
    ("none", "bigger", "reward"),
    ("none", "bigger", "sft"),
    ("none", "foreign", "sft"),
]
EVERY = pytest.mark.parametrize(("adapter", "reward", "value_init"), CASES)


@pytest.fixture(scope="module")
def chain_with(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path], chains: Callable[[str], Chain]
) -> Callable[..., Chain]:
    """`chain_with("lora", "bigger")`: a llama policy; the reward model shares its base, or is a bigger GPT-NeoX, or has
    other tokens too.
    """
    folder = tmp_path_factory.mktemp("rewards")
    bigger = make_tiny_model(folder / "made", "gpt_neox", hidden_size=48, layers=3, seed=4)
    other = make_tiny_model(folder / "made-foreign", "gpt2", vocab_size=330, hidden_size=48, layers=3, seed=4)
    rewards = {
        "bigger": save_reward(folder / "bigger", bigger),
        "short": save_reward(folder / "short", bigger, context=64),
        "foreign": save_reward(folder / "foreign", other, eos="</s>"),
    }

    def get(adapter: str, reward: str) -> Chain:
        if reward == "shared":
            return chains(adapter)
        return chain_of(Path(tmp_path_factory.mktemp("chain")), tiny("llama"), rewards[reward], adapter)

    return get


def one_rollout(chain: Chain, models: PPOModels, config: PPOConfig) -> tuple[Rollout, list[list[int]]]:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(8)]
    ids, responses = roll_out(models, prompts, config, chain.tokenizer, seed=0, iteration=0, numbers=range(8))
    groups = groups_of(8, 3)
    return score(
        models, ids, responses, groups, config, chain.config, chain.tokenizer.pad_token_id, TEAM.device, prompts
    ), groups


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_first_values_are_the_readings_of_a_reward_model_of_another_size(
    chain_with: Callable[..., Chain], adapter: str
):
    chain = chain_with(adapter, "bigger")
    models = chain.models()
    rollout, _ = one_rollout(chain, models, small())
    model = AutoModelForSequenceClassification.from_pretrained(chain.reward / "model").eval()
    for row in range(8):
        prompt, response = rollout.prompts[row], rollout.responses[row]
        with torch.no_grad():
            readings = model.score(model.gpt_neox(torch.tensor([prompt + response])).last_hidden_state)[0, :, 0] - 0.5
            ranked = as_ranked(chain.tokenizer, Generation(response, None, bool(rollout.ended_B[row])))
            scored = model.score(model.gpt_neox(torch.tensor([prompt + ranked])).last_hidden_state)[0, -1, 0] - 0.5
        assert torch.allclose(
            rollout.values_BT[row, : len(response)], readings[len(prompt) - 1 : -1], atol=5e-5, rtol=0
        )
        assert rollout.scores_B[row].item() == pytest.approx(scored.item(), abs=5e-5)
    assert rollout.values_BT[rollout.mask_BT].std() > 0.1


@pytest.mark.parametrize(("adapter", "reward"), [case[:2] for case in CASES if case[2] == "sft"])
def test_first_values_are_zero_from_the_sft_model(chain_with: Callable[..., Chain], adapter: str, reward: str):
    chain = chain_with(adapter, reward)
    rollout, _ = one_rollout(chain, chain.models(value_init="sft"), small())
    assert rollout.values_BT.abs().max() == 0.0
    assert rollout.scores_B.std() > 0.05


@EVERY
def test_with_lora_adapters_and_head_are_all_that_is_trained(
    chain_with: Callable[..., Chain], adapter: str, reward: str, value_init: str
):
    models = chain_with(adapter, reward).models(value_init=value_init)
    with models.as_value():
        trained = {id(p) for p in models.value_parameters.values()}
    if adapter == "none":
        assert len(trained) == len(list(models.value.model.parameters()))
        return
    assert all(".lora_" in name or name == "score.weight" for name in models.value_parameters)
    owner = models.reward if (reward, value_init) == ("bigger", "reward") else models.policy
    assert models.value.model is owner.model
    assert models.value.scalar is not None
    assert any(module is models.value.scalar.backbone for module in models.value.model.modules())
    policy = {id(p) for p in models.policy_parameters.values()}
    everything = [
        *models.policy.model.parameters(),
        *models.value.model.parameters(),
        *models.value.scalar.head.parameters(),
    ]
    assert {id(p) for p in everything if p.requires_grad} == trained | policy


@EVERY
def test_each_optimizer_trains_its_own_model_alone(
    chain_with: Callable[..., Chain], adapter: str, reward: str, value_init: str
):
    chain = chain_with(adapter, reward)
    models, config = chain.models(value_init=value_init), small()
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
            with models.as_reward() as scorer:
                ids = batch.padded.ids_BS.clamp(max=300)
                found["reward"] = scorer.backbone(ids).last_hidden_state, scorer.head.weight.clone()
        found["reward"] = torch.cat([part.flatten() for part in found["reward"]])
        return found

    before = outputs()
    for optimizer_name, trained in (("value_learning_rate", "policy"), ("learning_rate", "value")):
        optimizers = Optimizers.make(models, config)
        setattr(frozen := small(), optimizer_name, 0.0)
        optimizers.set_learning_rates(frozen, 0)
        step(models, optimizers, rollout, groups, [], config, chain.config, pad, TEAM)
        after = outputs()
        assert {name for name in before if not torch.equal(before[name], after[name])} == {trained}
        before = after


@EVERY
def test_gradients_survive_the_switching_and_equal_autograd_of_the_naive_loss(
    chain_with: Callable[..., Chain], adapter: str, reward: str, value_init: str
):
    chain = chain_with(adapter, reward)
    models, config = chain.models(value_init=value_init), small(value_clip_range=1e9)
    with torch.no_grad():
        for name, p in models.value_parameters.items():
            if "lora_B" in name or name == "score.weight":
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    rollout, groups = one_rollout(chain, models, config)
    tokens = float(rollout.mask_BT.sum())
    policy_gradient(models, rollout, groups, config, chain.config, tokens, TEAM)
    value_gradient(models, rollout, groups, config, chain.config, tokens, TEAM)
    with models.as_reward(), models.as_reference():
        pass
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in models.policy_parameters.values())
    ours = {name: p.grad.clone() for name, p in models.value_parameters.items() if p.grad is not None}
    for p in models.value_parameters.values():
        p.grad = None
    with models.as_value() as value:
        loss = torch.zeros(())
        for row in range(8):
            prompt, response = rollout.prompts[row], rollout.responses[row]
            hidden = value.backbone(torch.tensor([prompt + response])).last_hidden_state[0]
            for t in range(len(response)):
                error = value.head(hidden[len(prompt) - 1 + t])[0] - value.bias - rollout.returns_BT[row, t]
                loss = loss + 0.5 * error**2 / tokens
        loss.backward()
    naive = {name: p.grad for name, p in models.value_parameters.items() if p.grad is not None}
    assert ours.keys() == naive.keys()
    assert len(naive) > 5
    largest = max(float(gradient.abs().max()) for gradient in naive.values())
    for name, gradient in naive.items():
        assert torch.allclose(ours[name], gradient, atol=1e-5 * largest, rtol=1e-3), name


@EVERY
def test_a_run_moves_the_value_model_and_ends_in_the_same_bytes_if_it_was_cut_off(
    chain_with: Callable[..., Chain], tmp_path: Path, adapter: str, reward: str, value_init: str
):
    chain = chain_with(adapter, reward)

    def run(out: Path, iterations: int) -> PPOModels:
        models = chain.models(value_init=value_init)
        config = small(total_episodes=8 * iterations, ptx_coef=1.0, value_init=value_init)
        train(config, chain.config, models, chain.tokenizer, PROMPTS, CHUNKS, 0, TEAM, out)
        return models

    whole_run = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    torch.manual_seed(12345)
    run(tmp_path / "parts", 3)
    start = chain.models(value_init=value_init).value_parameters
    still = [name for name, p in whole_run.value_parameters.items() if torch.equal(p, start[name])]
    assert still == []
    whole, parts = (newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    for file in whole.iterdir():
        if file.name != "random.safetensors":
            assert file.read_bytes() == (parts / file.name).read_bytes(), file.name
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["value_grad_norm"] > 0 for row in rows)


def test_a_value_model_adapts_as_many_layers_as_it_is_told(chain_with: Callable[..., Chain]):
    models = chain_with("lora", "bigger").models(value_top_layers=1)
    assert {name.split(".layers.")[1].split(".")[0] for name in models.value_parameters if ".lora_" in name} == {"2"}
    everywhere = chain_with("lora", "bigger").models()
    assert {name.split(".layers.")[1].split(".")[0] for name in everywhere.value_parameters if ".lora_" in name} == {
        "0",
        "1",
        "2",
    }


@pytest.mark.parametrize(
    ("adapter", "reward", "ppo", "sentence"),
    [
        ("lora", "foreign", {}, r"another tokenizer: set ppo\.value_init=sft"),
        ("none", "foreign", {}, r"another tokenizer: set ppo\.value_init=sft"),
        ("lora", "bigger", {"value_top_layers": 4}, r"ppo\.value_top_layers=4, but .* has 3 layers"),
        ("lora", "shared", {"value_top_layers": 1}, r"ppo\.value_top_layers is of a LoRA adapter"),
        ("none", "bigger", {"value_top_layers": 1}, r"ppo\.value_top_layers is of a LoRA adapter"),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_weights_are_loaded(
    chain_with: Callable[..., Chain],
    monkeypatch: pytest.MonkeyPatch,
    adapter: str,
    reward: str,
    ppo: dict[str, Any],
    sentence: str,
):
    monkeypatch.setattr(loading, "load_causal", lambda *given: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=sentence):
        chain_with(adapter, reward).models(**ppo)


def test_prompts_must_fit_a_value_model_of_shorter_context_with_their_answers(chain_with: Callable[..., Chain]):
    chain = chain_with("lora", "short")
    counts = [
        len(chain.tokenizer.apply_chat_template(p.messages, add_generation_prompt=True, return_dict=False))
        for p in PROMPTS
    ]
    models = chain.models()
    models.check_prompts(PROMPTS, chain.tokenizer, 64 - max(counts))
    with pytest.raises(ValueError, match=r"do not fit the value model's context of 64: .* or set ppo\.value_init=sft"):
        models.check_prompts(PROMPTS, chain.tokenizer, 65 - max(counts))
    models = chain.models(value_init="sft")
    models.check_prompts(PROMPTS, chain.tokenizer, CONTEXT_LENGTH - max(counts))
    with pytest.raises(ValueError, match=f"do not fit the policy's context of {CONTEXT_LENGTH}: lower"):
        models.check_prompts(PROMPTS, chain.tokenizer, CONTEXT_LENGTH + 1 - max(counts))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"value_top_layers": 0}, "at least 1"),
        ({"value_top_layers": 1, "value_init": "sft"}, "ppo.value_init=sft does not"),
    ],
)
def test_contradictions_about_the_value_model_are_refused(changes: dict[str, Any], sentence: str):
    small(value_top_layers=1).validate()
    with pytest.raises(ValueError, match=sentence):
        small(**changes).validate()
