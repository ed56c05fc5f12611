"""The base model, what of it is trained, how answers are generated, and where metrics are sent."""

import importlib.util
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from data.numbers import FractionAboveZero, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_numbers

TIMEOUT_MINUTES = 120.0


@dataclass
class ProcessesConfig:
    """Settings for runs with several processes. A change here does not make any stage run again."""

    timeout_minutes: PositiveFloat = TIMEOUT_MINUTES
    """Minutes that a process waits for the others before the run fails, except in the stages that use the first
    process alone (data, labels, report), which have no limit. Ours: longer than what the first process does alone in
    the others (judging, writing models). torch's defaults are 10 (NCCL) and 30 (gloo)."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "processes")


@dataclass
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021). Ours: the paper fine-tunes all weights."""

    rank: PositiveInt = 16
    """Rank of the update. Ours."""
    alpha: PositiveInt = 32
    """The update is scaled by alpha / rank. Ours."""
    top_layers: PositiveInt | None = None
    """Adapt only this many layers nearest the output; null adapts all. The layers below then need no backward pass.
    Ours."""


@dataclass
class ModelConfig:
    """The base model of the policy, from which SFT starts."""

    base: str = "embedded"
    """`embedded` (SmolLM2-135M-Instruct, fetched once), `tiny` (random weights, for smoke runs), a folder, or a model
    on the Hub.
    """
    revision: str | None = None
    """Commit or tag of a Hub model; null pins the commit that is current when the run starts."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""
    chat_template: str | None = None
    """A Jinja file that renders conversations; null takes the tokenizer's own, or a plain one where it has none. SFT
    saves it with its model, and later stages use that copy."""
    adapter: Literal["lora", "none"] = "lora"
    """`lora` trains adapters, and one base serves policy, reference, reward and value; `none` trains all weights of
    separate models. Ours."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Used with `adapter: lora`."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of forward and backward passes; weights stay float32. `auto`: bfloat16 on a GPU that has it, else float32.
    `float16` is for GPUs without bfloat16: losses are scaled, and steps whose gradients overflow are skipped. Ours."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Implementation of attention. `auto` and `sdpa` use torch's, and encode a prompt once for all its responses;
    `auto` falls back for models without sdpa. The others encode it for each response. `flash_attention_2` needs a GPU,
    mixed precision and the package flash-attn. Ours."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Bits of the frozen base's linear layers (bitsandbytes); needs a GPU, the extra `bnb` and `adapter: lora`. Results
    are exported in float32. Ours."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` uses a GPU where there is one. Ours."""

    def of_export(self) -> "ModelConfig":
        """The settings for a model that a stage has saved, which has its own chat template."""
        return replace(self, revision=None, chat_template=None)

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "model")
        if self.attention == "flash_attention_2" and self.precision == "float32":
            raise ValueError("model.attention=flash_attention_2 does not support float32: set model.precision=auto")
        if self.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            raise ValueError("model.attention=flash_attention_2 needs a GPU and flash-attn: pip install flash-attn")
        if self.quantization != "none" and self.adapter != "lora":
            raise ValueError(
                f"model.quantization={self.quantization} freezes the base, so only adapters can be trained: set "
                "model.adapter=lora"
            )
        if self.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                f"model.quantization={self.quantization} needs a GPU and bitsandbytes: pip install -e '.[bnb]'"
            )


@dataclass
class GenerationSettings:
    """How answers are generated: the same settings for samples, evaluation and PPO's roll-outs."""

    max_new_tokens: PositiveInt = 512
    """Maximum length of an answer in tokens. Ours; appendix C allows 1,000."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 0 is greedy. Ours."""
    top_k: NonNegativeInt = 0
    """Sample from the k most likely tokens; 0 samples from all, and 1 is greedy. Ours."""
    top_p: FractionAboveZero = 1.0
    """Sample from the smallest set of most likely tokens with at least this total probability; 1 samples from all.
    Ours.
    """
    batch_size: PositiveInt = 64
    """Answers decoded together in one process; affects only speed and memory, apart from rounding. Ours."""

    @property
    def greedy(self) -> bool:
        """Whether answers are the likeliest ones, not samples."""
        return self.temperature == 0 or self.top_k == 1

    def recorded(self, seed: int) -> dict[str, Any]:
        """The settings and the seed, which are stored with every result."""
        return {item.name: getattr(self, item.name) for item in fields(GenerationSettings)} | {"seed": seed}


@dataclass
class TrackingConfig:
    """Where metrics are sent, besides metrics.jsonl. A change here does not make any stage run again."""

    to: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=lambda: ["tensorboard"])
    """`tensorboard` writes into the stage's folder; `wandb` sends to Weights & Biases and `trackio` keeps a local
    database, each needs its extra.
    """
    project: str = "rlhf-ptx"
    """The project there, of which each stage of each run is a run."""

    def validate(self) -> None:
        """Raises ValueError on contradictions, and when a tracker's package is missing."""
        if len(set(self.to)) < len(self.to):
            raise ValueError(f"tracking.to={self.to} names a tracker twice")
        if not self.project.strip():
            raise ValueError("tracking.project must not be empty")
        for name in self.to:
            if importlib.util.find_spec(name) is None:
                raise ValueError(
                    f"tracking.to names {name}, which is not installed: pip install -e '.[{name}]', or leave it out"
                )
