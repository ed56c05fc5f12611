"""What the value model starts from: the reward model, of any size, or the SFT model; and that its optimizer trains it
alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, OPTConfig, OPTForCausalLM

from modeling.architecture import backbone_of
from modeling.batch import Batch
from modeling.checkpoint import newest
from modeling.tiny import CONTEXT_LENGTH, make_tiny_model
from modeling.tracking import read_metrics
from ppo import actor_critic
from ppo.actor_critic import ActorCritic
from tests.cuts import state
from tests.families import SIZES
from tests.ppo.conftest import PROMPTS, Chain, as_ranked, chain_of, save_reward, scored, small

CASES = [
    ("lora", "shared", "reward"),
    ("lora", "shared", "sft"),
    ("lora", "bigger", "reward"),
    ("lora", "foreign", "sft"),
    ("none", "shared", "reward"),
    ("none", "bigger", "reward"),
    ("none", "foreign", "sft"),
]
EVERY = pytest.mark.parametrize(("adapter", "reward", "value_init"), CASES)


@pytest.fixture(scope="module")
def chain_with(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path], chains: Callable[[str], Chain]
) -> Callable[..., Chain]:
    """`chain_with("lora", "bigger")`: a llama policy; the reward model shares its base, or is a bigger GPT-NeoX, or has
    another tokenizer too.
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


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_first_values_are_those_of_a_reward_model_of_another_size(
    chain_with: Callable[..., Chain], adapter: str, tmp_path: Path
):
    chain = chain_with(adapter, "bigger")
    experience = scored(chain.trainer(tmp_path, small()))
    rollout, scores = experience.rollout, experience.scores
    values_BT = rollout.padded(scores.values_R)
    model = AutoModelForSequenceClassification.from_pretrained(chain.reward / "model").eval()
    for row, (prompt, response) in enumerate(zip(rollout.prompt_ids, rollout.responses, strict=True)):
        with torch.no_grad():
            values, ranked = (
                model.score(model.gpt_neox(torch.tensor([prompt + answer])).last_hidden_state)[0, :, 0] - 0.5
                for answer in (response.ids, as_ranked(chain.tokenizer, response))
            )
        found = values_BT[row, : len(response.ids)]
        torch.testing.assert_close(found, values[len(prompt) - 1 : -1], atol=5e-5, rtol=0)
        assert scores.rewards_B[row].item() == pytest.approx(ranked[-1].item(), abs=5e-5)
    assert scores.values_R.std() > 0.1


@pytest.mark.parametrize(("adapter", "reward"), [case[:2] for case in CASES if case[2] == "sft"])
def test_first_values_are_zero_from_the_sft_model(
    chain_with: Callable[..., Chain], adapter: str, reward: str, tmp_path: Path
):
    chain = chain_with(adapter, reward)
    scores = scored(chain.trainer(tmp_path, small(), chain.models(value_init="sft"))).scores
    assert scores.values_R.abs().max() == 0.0
    assert scores.rewards_B.std() > 0.05


def test_the_head_is_as_wide_as_what_the_model_puts_out(tmp_path: Path) -> None:
    """OPT-350m projects its hidden states to the width of its embeddings."""
    made = make_tiny_model(tmp_path / "made")
    tokenizer = AutoTokenizer.from_pretrained(made)
    sizes = SIZES["opt"] | {"vocab_size": len(tokenizer), "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    policy = tmp_path / "policy"
    OPTForCausalLM(OPTConfig(**sizes, **ends)).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    chain = chain_of(tmp_path, policy, save_reward(tmp_path / "reward", made), "lora")
    scores = scored(chain.trainer(tmp_path / "out", small(), chain.models(value_init="sft"))).scores
    assert scores.values_R.abs().max() == 0.0


@EVERY
def test_with_lora_only_adapters_and_head_are_trained(
    chain_with: Callable[..., Chain], adapter: str, reward: str, value_init: str
):
    models = chain_with(adapter, reward).models(value_init=value_init)
    models.value.encoder.activate()
    trained = {id(p) for p in models.value_parameters.values()}
    if adapter == "none":
        assert trained == {id(p) for p in models.value.parameters()}
        return
    assert all(".lora_" in name or name == "score.weight" for name in models.value_parameters)
    owner = models.rewards.scorers[0].model if (reward, value_init) == ("bigger", "reward") else models.policy
    assert models.value.encoder.model is owner.encoder.model
    policy = {id(p) for p in models.policy_parameters.values()}
    everything = [
        *models.policy.parameters(),
        *models.value.parameters(),
        *models.rewards.scorers[0].model.parameters(),
    ]
    assert {id(p) for p in everything if p.requires_grad} == trained | policy


def outputs(models: ActorCritic, batch: Batch) -> dict[str, Tensor]:
    """What each of the four models says of a batch; token ids are limited to those of the smallest vocabulary."""
    known = [[[min(token, 300) for token in ids] for ids in rows] for rows in (batch.prompts, batch.responses)]
    with torch.no_grad():
        return {
            "policy": models.policy(Batch(*known))[0],
            "reference": models.reference(Batch(*known))[0],
            "value": models.value(Batch(*known)),
            "reward": models.rewards.scorers[0].model(Batch(*known)),
        }


@EVERY
def test_each_optimizer_trains_its_own_model_alone(
    chain_with: Callable[..., Chain], adapter: str, reward: str, value_init: str, tmp_path: Path
):
    chain = chain_with(adapter, reward)
    models = chain.models(value_init=value_init)
    trainer = chain.trainer(tmp_path, small(), models)
    experience = scored(trainer)
    batch = Batch(experience.rollout.prompt_ids, experience.rollout.ids)
    for still, moving in ((trainer.optimizers.value, "policy"), (trainer.optimizers.policy, "value")):
        before = outputs(models, batch)
        trainer.optimizers.start_iteration(0)
        still.param_groups[0]["lr"] = 0.0
        trainer.train_minibatch(experience, experience.rollout.minibatches[0], first=True)
        after = outputs(models, batch)
        assert {name for name in before if not torch.equal(before[name], after[name])} == {moving}


@EVERY
def test_value_gradient_is_autograd_of_the_naive_loss_whichever_adapter_was_active(
    chain_with: Callable[..., Chain], adapter: str, reward: str, value_init: str, tmp_path: Path
):
    chain = chain_with(adapter, reward)
    models = chain.models(value_init=value_init)
    with torch.no_grad():
        for name, p in models.value_parameters.items():
            if "lora_B" in name or name == "score.weight":
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    trainer = chain.trainer(tmp_path, small(value_clip_range=1e9), models)
    experience = scored(trainer)
    rollout, tokens = experience.rollout, float(sum(experience.rollout.lengths))
    everything = [rows for minibatch in rollout.minibatches for rows in minibatch]
    trainer.value_gradient(experience, everything, tokens)
    trainer.policy_gradient(experience, everything, tokens)
    outputs(models, Batch(rollout.prompt_ids, rollout.ids))  # activates every adapter in turn
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in models.policy_parameters.values())
    ours = {name: p.grad.clone() for name, p in models.value_parameters.items() if p.grad is not None}
    for p in models.value_parameters.values():
        p.grad = None
    backbone, loss = backbone_of(models.value.encoder.activate()), torch.zeros(())
    returns_BT = rollout.padded(experience.returns_R)
    for row, (prompt, response) in enumerate(zip(rollout.prompt_ids, rollout.ids, strict=True)):
        hidden_SH = backbone(torch.tensor([prompt + response])).last_hidden_state[0]
        values_T = models.value.head(hidden_SH)[len(prompt) - 1 : -1, 0] - models.value.bias
        loss = loss + 0.5 * (values_T - returns_BT[row, : len(response)]).square().sum() / tokens
    loss.backward()
    naive = {name: p.grad for name, p in models.value_parameters.items() if p.grad is not None}
    assert ours.keys() == naive.keys()
    assert len(naive) > 5
    largest = max(float(gradient.abs().max()) for gradient in naive.values())
    for name, gradient in naive.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("adapter", "reward", "value_init"), [("lora", "bigger", "reward"), ("none", "foreign", "sft")]
)
def test_a_run_moves_all_of_the_value_model_and_resumes_to_the_same_bytes(
    chain_with: Callable[..., Chain], tmp_path: Path, adapter: str, reward: str, value_init: str
):
    """The start of the value model is made again on resuming, by each way of making it; test_identities.py has the
    shared base.
    """
    chain = chain_with(adapter, reward)

    def run(out: Path, iterations: int) -> ActorCritic:
        models = chain.models(value_init=value_init)
        chain.trainer(out, small(total_episodes=8 * iterations, value_init=value_init), models).train()
        return models

    trained = run(tmp_path / "whole", 2).value_parameters
    run(tmp_path / "parts", 1)
    torch.manual_seed(12345)
    run(tmp_path / "parts", 2)
    start = chain.models(value_init=value_init).value_parameters
    assert [name for name, p in trained.items() if torch.equal(p, start[name])] == []
    whole, parts = (newest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    assert state(whole / "state") == state(parts / "state")
    assert all(row["value_grad_norm"] > 0 for row in read_metrics(tmp_path / "whole" / "metrics.jsonl"))


@pytest.mark.parametrize(("top_layers", "adapted"), [(1, {"2"}), (None, {"0", "1", "2"})])
def test_the_value_model_adapts_value_top_layers(
    chain_with: Callable[..., Chain], top_layers: int | None, adapted: set[str]
):
    names = chain_with("lora", "bigger").models(value_top_layers=top_layers).value_parameters
    assert {name.split(".layers.")[1].split(".")[0] for name in names if ".lora_" in name} == adapted


@pytest.mark.parametrize(
    ("adapter", "reward", "ppo", "sentence"),
    [
        ("lora", "foreign", {}, r"another tokenizer: set ppo\.value_init=sft"),
        ("none", "foreign", {}, r"another tokenizer: set ppo\.value_init=sft"),
        ("lora", "bigger", {"value_top_layers": 4}, r"ppo\.value_top_layers=4, but .* has 3 layers"),
        ("lora", "shared", {"value_top_layers": 1}, r"ppo\.value_top_layers applies only to .* LoRA adapter"),
        ("none", "bigger", {"value_top_layers": 1}, r"ppo\.value_top_layers applies only to .* LoRA adapter"),
    ],
)
def test_an_impossible_start_is_refused_before_weights_are_loaded(
    chain_with: Callable[..., Chain],
    monkeypatch: pytest.MonkeyPatch,
    adapter: str,
    reward: str,
    ppo: dict[str, Any],
    sentence: str,
):
    chain = chain_with(adapter, reward)
    monkeypatch.setattr(actor_critic, "load_causal", lambda *given: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=sentence):
        chain.models(**ppo)


def test_prompts_must_fit_a_value_model_of_shorter_context_with_their_answers(chain_with: Callable[..., Chain]):
    chain = chain_with("lora", "short")
    longest = max(
        len(chain.tokenizer.apply_chat_template(p.messages, add_generation_prompt=True, return_dict=False))
        for p in PROMPTS
    )
    models = chain.models()
    models.check_prompts(PROMPTS, chain.tokenizer, 64 - longest)
    with pytest.raises(ValueError, match=r"do not fit the value model's context of 64: .* or set ppo\.value_init=sft"):
        models.check_prompts(PROMPTS, chain.tokenizer, 65 - longest)
    models = chain.models(value_init="sft")
    models.check_prompts(PROMPTS, chain.tokenizer, CONTEXT_LENGTH - longest)
    with pytest.raises(ValueError, match=f"do not fit the policy's context of {CONTEXT_LENGTH}: lower"):
        models.check_prompts(PROMPTS, chain.tokenizer, CONTEXT_LENGTH + 1 - longest)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"value_top_layers": 0}, "at least 1"),
        ({"value_top_layers": 1, "value_init": "sft"}, "with ppo.value_init=sft it does not"),
    ],
)
def test_contradictions_about_the_value_model_are_refused(changes: dict[str, Any], sentence: str):
    small(value_top_layers=1).validate()
    with pytest.raises(ValueError, match=sentence):
        small(**changes).validate()
