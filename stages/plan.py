"""Prints the GPU memory that each stage needs and the largest micro-batches that fit. Loads no weights.

python -m stages.plan --config configs/hh_rlhf.yaml --gpus 8 --gpu_memory 80
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling.memory_plan import (
    ALWAYS,
    DRAW_BYTES,
    FLOAT,
    GIB,
    USABLE,
    Counts,
    Item,
    Strategy,
    held,
    largest,
    logits,
    peak,
    phases,
    step,
    strategies,
    update,
)
from stages.cautions import refuse_uneven_batches
from stages.config import STAGES, RunConfig
from stages.runner import main

if TYPE_CHECKING:
    from modeling.dry_run import Element

OPTIONS = {
    "gpus": {"type": int, "default": 8, "help": "Number of GPUs, one process each."},
    "gpu_memory": {"type": float, "default": 80.0, "help": "Memory of a GPU in GiB."},
}
TRL_CHUNK = 4096 * 32768
"""Logits of a tile in trl's projection."""


@dataclass(frozen=True)
class StagePlan:
    """A stage's memory items as a function of its micro-batch."""

    name: str
    micro_batch: str
    """The name of the setting."""
    configured: int
    build: Callable[[int], list[Item]]
    least: int = 1
    """The smallest micro-batch: the longest example, which is never split."""
    shards: bool = False
    """Whether the stage supports sharded models."""
    divides: int = 0
    """The number that the micro-batch must divide; 0 if there is none."""
    savings: Mapping[str, str] = field(default_factory=dict)
    """Advice to reduce the memory of a phase, or of all (ALWAYS)."""


class Planner:
    """Plans the stages of a run on `gpus` GPUs."""

    def __init__(self, config: RunConfig, gpus: int, gpu_memory: float) -> None:
        import torch

        from modeling import dry_run
        from modeling.load import base_model_place, read_settings
        from modeling.logprobs import logits_within
        from reward.start import Start

        place = base_model_place(config.model)
        self.config, self.gpus, self.dry_run = config, gpus, dry_run
        self.settings = read_settings(place, config.model)
        self.start = Start.of(config.reward, config.model, Path(place))
        self.reward_settings = read_settings(self.start.place, self.start.model_config)
        self.lora = config.model.lora if config.model.adapter == "lora" else None
        self.dtype = None if config.model.precision == "float32" else torch.bfloat16
        self.chunk, self.vocabulary = logits_within(int(gpu_memory * GIB)), self.settings.get_text_config().vocab_size
        self.rollout = dry_run.Element(config.data.max_prompt_tokens, config.ppo.max_new_tokens)

    def stages(self) -> list[StagePlan]:
        """The stages that use a GPU, in order."""
        samples = [self.answers("samples")] if self.config.labels.labeler != "none" else []
        sft = [self.sft()] if self.config.sft.epochs > 0 else []
        reward = [self.reward()] if self.config.reward.epochs > 0 else []
        return [*sft, *samples, *reward, self.ppo(), self.answers("evaluate")]

    @cached_property
    def base(self) -> Any:
        """The language model without adapters."""
        return self.dry_run.skeleton(self.settings, False, None, self.config.model.trust_remote_code)

    @cached_property
    def policy(self) -> Counts:
        """PPO's policy."""
        return self.causal(self.rollout, self.config.ppo.activation_checkpointing)

    def causal(self, element: "Element", checkpointing: bool) -> Counts:
        """The language model in training."""
        trust = self.config.model.trust_remote_code
        model = self.dry_run.skeleton(self.settings, False, self.lora, trust)
        return self.dry_run.counts(model, element, self.dtype, checkpointing)

    def scalar(self, settings: Any, top_layers: int | None, element: "Element", checkpointing: bool) -> Counts:
        """A reward or value model in training. `top_layers` are those with adapters."""
        lora = None if self.lora is None else replace(self.lora, top_layers=top_layers)
        model = self.dry_run.skeleton(settings, True, lora, self.start.model_config.trust_remote_code)
        return self.dry_run.counts(model, element, self.dtype, checkpointing)

    def value(self, settings: Any, top_layers: int | None = None) -> Counts:
        """PPO's value model, unless it is an adapter on the policy's base."""
        return self.scalar(settings, top_layers, self.rollout, self.config.ppo.activation_checkpointing)

    def sft(self) -> StagePlan:
        """Stage 1, trained by trl."""
        data, config = self.config.data, self.config.sft
        length = max(data.max_prompt_tokens + data.max_answer_tokens, data.pretraining_tokens)
        model = self.causal(self.dry_run.Element(length - 1, 1), config.activation_checkpointing)
        always = held(model.base, model.trained * model.lora, [model])
        always.append(Item(ALWAYS, "DDP's gradient buckets", model.trained, FLOAT, "replicas"))
        micro = min(config.micro_batch_size, config.batch_size // self.gpus)

        def build(examples: int) -> list[Item]:
            tokens = examples * length
            return [*always, *update("update", model, tokens), logits("update", tokens, self.vocabulary, TRL_CHUNK)]

        divides = config.batch_size // self.gpus
        longest = "data.pretraining_tokens" if length == data.pretraining_tokens else "data.max_prompt_tokens"
        savings = self.savings("sft", longest)
        return StagePlan("sft", "sft.micro_batch_size", micro, build, divides=divides, savings=savings)

    def savings(self, stage: str, length: str = "data.max_prompt_tokens") -> dict[str, str]:
        """How to reduce the memory of a training stage. `length` is the setting for the length of its examples."""
        advice = f"lower {length}"
        if not getattr(self.config, stage).activation_checkpointing:
            advice = f"set {stage}.activation_checkpointing to true"
        found = dict.fromkeys(("update", "value update", "policy update"), advice)
        found["roll-out"] = "lower ppo.rollout_batch_size"
        return found if self.lora is not None else found | {ALWAYS: "set model.adapter to lora"}

    def answers(self, name: str) -> StagePlan:
        """Samples or evaluation, which decode with one whole language model at a time."""
        config, tokens = getattr(self.config, name), 0
        if name == "evaluate":
            longest = self.rollout.prompt + config.answers_per_prompt * config.max_new_tokens
            tokens = max(self.config.reward.max_tokens_per_micro_batch, longest)
        always = [
            Item(ALWAYS, "parameters", self.dry_run.count(self.base), FLOAT),
            Item("decoding", "bfloat16 weights", self.cast, 2),
            Item("log-probabilities", "one layer's workspace", tokens, self.policy.activations.layer),
            logits("log-probabilities", tokens, self.vocabulary, self.chunk),
        ]

        def build(batch: int) -> list[Item]:
            return [*always, *self.decoding("decoding", batch, config.max_new_tokens)]

        return StagePlan(name, f"{name}.batch_size", config.batch_size, build)

    @cached_property
    def cast(self) -> int:
        """Weights of the language model that decoding casts to bfloat16 (`modeling.adapters.merged_weights`)."""
        return 0 if self.dtype is None else self.dry_run.linear_weights(self.base)

    def decoding(self, phase: str, batch: int, new: int) -> list[Item]:
        """Decoding a batch with the language model, without its weights."""
        return [
            Item(phase, "KV cache", batch * (self.rollout.prompt + new - 1), self.cache),
            Item(phase, "one layer of the prefill", batch * self.rollout.prompt, self.policy.activations.layer),
            Item(phase, "logits", batch * self.vocabulary, DRAW_BYTES),
        ]

    @cached_property
    def cache(self) -> int:
        """Bytes of keys and values per token."""
        return self.dry_run.cache_bytes_per_token(self.base, self.dtype)

    def reward(self) -> StagePlan:
        """Stage 2."""
        config, data = self.config.reward, self.config.data
        samples = self.config.samples
        answers = config.max_answers_per_prompt or samples.answers_per_prompt + samples.echo
        element = self.dry_run.Element(data.max_prompt_tokens, data.max_answer_tokens, answers)
        top_layers = self.start.model_config.lora.top_layers
        model = self.scalar(self.reward_settings, top_layers, element, config.activation_checkpointing)
        always = held(model.base, model.trained * model.lora, [model])
        return StagePlan(
            "reward", "reward.max_tokens_per_micro_batch", config.max_tokens_per_micro_batch,
            lambda tokens: [*always, *update("update", model, tokens), *step("step", model)],
            element.tokens, shards=True, savings=self.savings("reward"),
        )  # fmt: skip

    def ppo(self) -> StagePlan:
        """Stage 3."""
        config, policy, (value, base, adapters) = self.config.ppo, self.policy, self.actor_critic()
        episodes, ptx = config.batch_size // self.gpus, config.ptx_coef > 0
        reused = self.lora is not None and self.lora.top_layers is not None
        stored = episodes * self.rollout.tokens * self.settings.get_text_config().hidden_size if reused else 0
        swapped = policy.trained if config.held_out.every else 0
        fixed = [
            *held(base, adapters, [policy, value], average=policy.trained),
            Item(ALWAYS, "outputs of frozen layers", stored, FLOAT),
            Item("roll-out", "gathered weights", policy.base, FLOAT, "gathered"),
            Item("roll-out", "weights with adapters", 0 if self.cast else policy.adapted, FLOAT),
            Item("roll-out", "bfloat16 weights", self.cast, 2),
            *self.decoding("roll-out", min(config.rollout_batch_size, episodes), config.max_new_tokens),
            Item("roll-out", "policy weights during EMA eval", swapped, FLOAT, policy.share),
        ]

        def build(tokens: int) -> list[Item]:
            return [
                *fixed,
                *update("value update", value, tokens),
                *step("value step", value),
                *update("policy update", policy, tokens),
                logits("policy update", tokens, self.vocabulary, self.chunk),
                Item("policy update", "PPO gradient kept for its norm", policy.trained * ptx, FLOAT, policy.share),
                *step("policy step", policy, gradients=2 if ptx else 1),
            ]

        micro, setting = config.max_tokens_per_micro_batch, "ppo.max_tokens_per_micro_batch"
        least, savings = self.rollout.tokens, self.savings("ppo")
        return StagePlan("ppo", setting, micro, build, least, shards=True, savings=savings)

    def actor_critic(self) -> tuple[Counts, int, int]:
        """(value model; weights of all four models without adapters and heads; weights of adapters and heads), with the
        layouts of ppo/actor_critic.py.
        """
        policy, of_reward = self.policy, self.config.ppo.value_init == "reward"
        reward = self.dry_run.count(self.dry_run.skeleton(self.reward_settings, True))
        if self.lora is None:
            value = self.value(self.reward_settings if of_reward else self.settings)
            return value, 2 * policy.base + value.base + reward, 0
        if self.start.own_base and of_reward:
            value = self.value(self.reward_settings, self.config.ppo.value_top_layers)
            return value, policy.base + reward, policy.trained + value.trained
        # The value model is an adapter on the policy's base and a head; so is the reward model if it is not separate.
        value = replace(policy, trained=policy.trained + self.settings.get_text_config().hidden_size)
        if self.start.own_base:
            return value, policy.base + reward, policy.trained + value.trained
        return value, policy.base, policy.trained + 2 * value.trained


def table(plan: StagePlan, columns: Sequence[Strategy], budget: float) -> str:
    """The items at the configured micro-batch, and the largest micro-batch of each strategy."""

    def row(name: str, cells: Sequence[str]) -> str:
        return f"{name:<68}" + "".join(f"{cell:>14}" for cell in cells)

    def gib(sizes: Sequence[float]) -> list[str]:
        return [f"{size / GIB:,.2f}" for size in sizes]

    items = plan.build(plan.configured)
    totals = [phases(items, one) for one in columns]
    lines = ["", row(f"{plan.name}, {plan.micro_batch}={plan.configured:,}", [one.name for one in columns])]
    for phase in totals[0]:
        lines.append(row(f"  {phase}", gib([total[phase] for total in totals])))
        for item in (item for item in items if item.phase == phase):
            if any(sizes := [item.bytes(one) for one in columns]):
                lines.append(row(f"    {item.name:<34}{item.count:>16,} x {item.each:,} B", gib(sizes)))
    found = [largest(plan.build, one, budget) for one in columns]
    lines.append(row("  peak", gib([peak(items, one) for one in columns])))
    lines.append(row(f"  largest {plan.micro_batch}", [f"{one:,}" for one in found]))
    return "\n".join(lines)


def command(plan: StagePlan, columns: Sequence[Strategy], budget: float) -> str:
    """The recommended command: the fastest strategy with the configured micro-batch, else with a smaller one.

    Raises ValueError if even the smallest micro-batch fits with no strategy.
    """
    found = {one: largest(plan.build, one, budget) for one in columns}
    for least in (max(plan.configured, plan.least), plan.least):
        for one in columns:
            if found[one] >= least:
                size = min(found[one], plan.configured)
                size = next(part for part in range(size, 0, -1) if plan.divides % part == 0)
                change = f' ARGS="--{plan.micro_batch} {size}"' if size < plan.configured else ""
                return f"make {plan.name} CONFIG=... GPUS={one.gpus} ACCELERATE=configs/accelerate/{one.config}{change}"
    items = plan.build(plan.least)
    best = min(columns, key=lambda one: peak(items, one))
    needs = phases(items, best)
    needs.pop(ALWAYS, None)
    phase = max(needs, key=needs.__getitem__)
    savings = [plan.savings[name] for name in (phase, ALWAYS) if name in plan.savings]
    advice = ", or ".join([*savings, "use larger GPUs or a smaller model"])
    raise ValueError(
        f"{plan.name}: with {plan.micro_batch}={plan.least} its {phase} needs {peak(items, best) / GIB:.3g} GiB per "
        f"GPU ({best.name}), and {budget / GIB:.3g} are usable: {advice}"
    )


def work(config: RunConfig, gpus: int, gpu_memory: float) -> None:
    """Prints a table per stage and the recommended commands."""
    if gpus < 1:
        raise ValueError(f"--gpus={gpus} must be at least 1")
    if gpu_memory <= 0:
        raise ValueError(f"--gpu_memory={gpu_memory:g} must be above 0")
    refuse_uneven_batches(config, gpus)
    budget, commands, failures = gpu_memory * GIB * USABLE, {}, []
    print(f"GiB per GPU; {budget / GIB:.1f} of {gpu_memory:g} are usable", flush=True)
    quantized = config.model.quantization != "none"
    if quantized:
        print("quantized weights are counted as float32", flush=True)
    if any(term.path for term in config.ppo.rewards):
        print("reward models with a path in ppo.rewards are not counted", flush=True)
    whole = quantized or config.model.attention == "flash_attention_2"  # neither can be sharded
    for plan in Planner(config, gpus, gpu_memory).stages():
        columns = [one for one in strategies(gpus) if not one.sharded or (plan.shards and not whole)]
        print(table(plan, columns, budget), flush=True)
        try:
            commands[plan.name] = command(plan, columns, budget)
        except ValueError as error:
            commands[plan.name] = f"# {plan.name}: does not fit"
            failures.append(str(error))
    print()
    for name in STAGES:
        if name == "labels" and config.labels.labeler == "human":
            print("make label RUN=...  # people rank the answers", flush=True)
        print(commands.get(name, f"make {name} CONFIG=..."), flush=True)
    if failures:
        raise ValueError("; ".join(failures))


if __name__ == "__main__":
    main(work, "python -m stages.plan", "Plans the GPU memory of each stage.", options=OPTIONS)
