"""Planned memory compared with real models, with the profiler's measurements on a CPU, and with published figures."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile
from transformers import AutoConfig

from data.config import DataConfig
from modeling.adapters import add_lora
from modeling.batch import Batch
from modeling.config import LoraSettings
from modeling.dry_run import Element, cache_bytes_per_token, count, counts, skeleton
from modeling.generation import Generation
from modeling.kv_cache import KVCache
from modeling.load import load_causal, load_scalar
from modeling.logprobs import LOGITS_PER_CHUNK
from modeling.memory_plan import (
    Activations,
    Counts,
    Item,
    Strategy,
    held,
    largest,
    peak,
    phases,
    step,
    strategies,
    update,
)
from modeling.models import policy_model, reward_model
from ppo.experience import Rollout
from ppo.trainer import PPOTrainer
from reward.config import RewardConfig
from stages.config import RunConfig
from stages.plan import Planner, StagePlan
from tests.ppo.conftest import ALONE, Chain, build_chain, chain_of, load_base, save_reward, scored, small

ONE = strategies(1)[0]
LLAMA_7B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "intermediate_size": 11008, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip


def planned(chain: Chain, reward_base: str | None = None, prompt: int = 16, **ppo: Any) -> StagePlan:
    model = replace(chain.config, base=str(chain.sft / "model"), precision="float32")
    config = RunConfig(model=model, ppo=small(**ppo), data=DataConfig(max_prompt_tokens=prompt))
    config.reward = RewardConfig(base=reward_base)
    planner = Planner(config, gpus=1, gpu_memory=80)
    planner.chunk = LOGITS_PER_CHUNK
    return planner.ppo()


def test_the_echoed_prompt_counts_as_an_answer(chains: Callable[[str], Chain]) -> None:
    chain = chains("lora")
    config = RunConfig(
        model=replace(chain.config, base=str(chain.sft / "model")), data=DataConfig(max_prompt_tokens=16)
    )
    config.data.max_answer_tokens, config.samples.answers_per_prompt = 10, 4
    least = []
    for config.samples.echo in (False, True):
        least.append(Planner(config, gpus=1, gpu_memory=80).reward().least)
    assert least == [16 + 4 * 10, 16 + 5 * 10]


def nbytes(tensors: Iterable[Tensor | None]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def adam_bytes(optimizer: torch.optim.Optimizer) -> int:
    return nbytes(tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step")


@pytest.mark.parametrize(
    ("layout", "value_init"), [("none", "reward"), ("lora", "reward"), ("lora", "sft"), ("separate", "reward")]
)
def test_ppo_holds_the_planned_weights_gradients_and_moments(
    chains: Callable[[str], Chain], tiny: Callable[[str], Path], tmp_path: Path, layout: str, value_init: Any
) -> None:
    chain, base = chains("lora" if layout == "separate" else layout), None
    if layout == "separate":
        reward = save_reward(tmp_path / "reward", tiny("qwen2"))
        chain, base = chain_of(tmp_path, chain.sft / "model", reward, "lora"), str(reward / "model")
    plan = planned(chain, base, value_init=value_init)
    items = {(item.phase, item.name): item.bytes(ONE) for item in plan.build(plan.configured)}
    trainer = chain.trainer(tmp_path / "out", small(value_init=value_init), chain.models(value_init=value_init))
    models, experience = trainer.models, scored(trainer)
    found = [*models.policy.parameters(), *models.reference.parameters(), *models.value.parameters()]
    weights = nbytes([*found, *models.rewards.scorers[0].model.parameters()])
    assert weights == items["always", "parameters"] + items["always", "adapters and heads"]
    trainer.value_gradient(experience, trainer_rows(trainer, experience.rollout), 10.0)
    trainer.policy_gradient(experience, trainer_rows(trainer, experience.rollout), 10.0)
    for name in ("policy", "value"):
        parameters = getattr(models, f"{name}_parameters").values()
        assert nbytes(weight.grad for weight in parameters) == items[f"{name} update", "gradients"]
        trainer.optimizers.step(name)  # type: ignore[arg-type]
    assert adam_bytes(trainer.optimizers.policy) + adam_bytes(trainer.optimizers.value) == items["always", "Adam"]
    assert nbytes(trainer.average.average.values()) == items["always", "EMA"]


def trainer_rows(trainer: PPOTrainer, rollout: Rollout) -> Any:
    return next(trainer.minibatches(rollout, 0))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("policy", None), ("policy", torch.bfloat16), ("lora", None), ("lora", torch.bfloat16), ("checkpointing", None)],
)
def test_a_training_pass_keeps_the_planned_activations(
    chains: Callable[[str], Chain], kind: str, dtype: torch.dtype | None
) -> None:
    """On batches of ragged answers to shared prompts; the planned ones are all of the same length."""
    chain, scalar = chains("none"), kind == "checkpointing"
    model = (load_scalar if scalar else load_causal)(chain.sft / "model", chain.config, chain.tokenizer)
    lora = chain.config.lora if kind == "lora" else None
    blank = skeleton(model.config, scalar, lora)
    expected = counts(blank, Element(40, 20, 4), dtype, checkpointing=scalar).activations
    model = model if lora is None else add_lora(model, lora)
    encoder = (reward_model if scalar else policy_model)(model, dtype).encoder
    if scalar:
        encoder.enable_checkpointing()
    prompts, lengths = [[5] * 40] * 4 + [[6] * 31] * 4, [20, 20, 20, 20, 17, 11, 20, 9]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        encoder(Batch(prompts, [[7] * length for length in lengths]), "state")
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    measured = nbytes(tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in own)
    tokens = 40 + 31 + sum(lengths)
    assert measured == pytest.approx(expected.fixed + tokens * expected.per_token, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_adapters_on_the_top_layer_the_other_keeps_nothing(
    chains: Callable[[str], Chain], checkpointing: bool
) -> None:
    config = load_base(chains("none")).config
    models = (skeleton(config, False, LoraSettings(rank=4, top_layers=number)) for number in (1, 2))
    top, both = (counts(model, Element(40, 20), None, checkpointing).activations for model in models)
    if checkpointing:  # a layer keeps its input
        assert both.per_token - top.per_token == pytest.approx(4 * config.hidden_size, rel=0.1)
    else:
        assert top.per_token == pytest.approx(both.per_token / 2, rel=0.1)
    assert top.layer == pytest.approx(both.layer, rel=0.1)


def test_activation_checkpointing_lowers_the_planned_activations_of_policy_and_value_model(
    chains: Callable[[str], Chain],
) -> None:
    chain = chains("lora")
    plain, checkpointed = (
        {(item.phase, item.name): item.each for item in planned(chain, activation_checkpointing=on).build(100)}
        for on in (False, True)
    )
    changed = {key for key in plain if plain[key] != checkpointed[key]}
    assert changed == {("policy update", "activations"), ("value update", "activations")}
    assert all(checkpointed[key] < plain[key] for key in changed)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_profiler_measures_the_planned_peak_of_an_update(tmp_path: Path, adapter: str) -> None:
    """Twelve million weights; two micro-batches of full length, so that gradients exist beside activations."""
    chain = build_chain(tmp_path, adapter, hidden_size=256, layers=12)
    trainer = chain.trainer(tmp_path / "out", small(max_tokens_per_micro_batch=256, max_new_tokens=56))
    rollout = trainer.generate(0)
    responses = [Generation([7 + row] * 56, None, False) for row in range(8)]
    rollout = Rollout(rollout.prompts, [[9 + row] * 72 for row in range(8)], responses, ALONE.device)
    rollout.make_micro_batches(trainer.own_rows(), 256)
    experience = trainer.advantages(trainer.score(rollout), rollout)
    rows = trainer_rows(trainer, rollout)
    assert [len(micro) for micro in rows] == [2, 2]
    trainer.train_minibatch(experience, rows, first=False)  # allocates Adam's moments
    with profile(profile_memory=True) as profiler:
        trainer.train_minibatch(experience, rows, first=False)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = [
        event
        for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        if event["name"] == "[memory]"
    ]
    held_bytes = highest = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held_bytes += event["args"]["Bytes"]
        highest = max(highest, held_bytes)
    plan = planned(chain, prompt=72, max_new_tokens=56)
    items = plan.build(256)
    assert highest == pytest.approx(peak(items, ONE) - phases(items, ONE)["always"], rel=0.15)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_cache_holds_the_planned_bytes(chains: Callable[[str], Chain], dtype: torch.dtype | None) -> None:
    chain = chains("none")
    model = load_base(chain)
    cache = KVCache(model, slots=3, columns=10)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        cache.add([(5, 6, 7), (8, 9), (5,)])
    measured = nbytes(states for layer in cache.states for states in layer)
    assert measured == 3 * 10 * cache_bytes_per_token(skeleton(model.config, False), dtype)


def test_model_states_are_those_of_the_zero_paper() -> None:
    """Rajbhandari et al. 2020 (arXiv 1910.02054), figure 1: 7.5 billion weights with mixed-precision Adam take 120 GB,
    and 1.9 GB on each of 64 GPUs with all states sharded.

    They hold 2 + 2 + 12 bytes a weight (float16 weights and gradients; float32 weights and Adam's moments), we
    4 + 4 + 8. We also hold gathered weights and whole gradients within a phase, 60 GB that are not in that figure.
    """
    model = Counts(7_500_000_000, 7_500_000_000, 0, False, Activations(0, 0, 0))
    items = [*held(model.base, 0, [model]), step("step", model)[0]]
    assert peak(items, ONE) / 1e9 == pytest.approx(120, abs=0.5)
    assert peak(items, Strategy("", "", 64, sharded=True)) / 1e9 == pytest.approx(1.9, abs=0.05)
    within = peak(update("update", model, 0), Strategy("", "", 64, sharded=True))
    assert within / 1e9 == pytest.approx(60)


def test_a_7b_model_with_lora_has_its_published_number_of_weights() -> None:
    """peft prints "trainable params: 4194304 || all params: 6742609920" for Llama 2 7B with rank 8 on queries and
    values; our adapters are on all seven linear layers.
    """
    config = AutoConfig.for_model("llama", **LLAMA_7B)
    assert count(skeleton(config, scalar=False)) == 6_742_609_920 - 4_194_304
    per_layer = 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert count(skeleton(config, False, LoraSettings(rank=8))) == 6_742_609_920 - 4_194_304 + 32 * per_layer


def test_activations_are_those_of_korthikanti() -> None:
    """Korthikanti et al. 2022 (arXiv 2205.05198), equation 6 without parallelism: 34 bytes per token, layer and unit of
    width in 16 bits, if attention scores are not kept. Of these we lack dropout masks, which are 2, and add the output
    of the attention before it is unpadded, also 2.
    """
    sizes = {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 512, "vocab_size": 600}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = AutoConfig.for_model("gpt2", **sizes, **ids, activation_function="gelu_pytorch_tanh")
    found = counts(skeleton(config, scalar=False).to(torch.bfloat16), Element(256, 256), None)
    assert found.activations.per_token / 256 / 4 == pytest.approx(34, rel=0.05)


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    def items(tokens: int) -> list[Item]:
        return [Item("always", "", 100, 1), Item("a", "", tokens, 3), Item("b", "", 500, 1, "sharded")]

    brute = max(tokens for tokens in range(1000) if 100 + max(3 * tokens, 500) <= 1234)
    assert largest(items, ONE, 1234) == brute
    assert largest(items, ONE, 599) == 0
    assert largest(items, Strategy("", "", 2, sharded=True), 599) == 166
