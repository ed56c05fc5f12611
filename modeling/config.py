"""The base model, what of it is trained, and where metrics are sent."""

import importlib.util
from dataclasses import dataclass, field
from typing import Literal

from data.numbers import PositiveFloat, PositiveInt, check_numbers

TIMEOUT_MINUTES = 120.0


@dataclass
class ProcessesConfig:
    """Settings for runs with several processes. A change here does not make any stage run again."""

    timeout_minutes: PositiveFloat = TIMEOUT_MINUTES
    """Minutes that a process waits for the others before the run fails. Ours: longer than the work that the first
    process does alone (curating data, ranking answers, judging, writing models). torch's defaults are 10 (NCCL) and 30
    (gloo)."""

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
    """Commit or tag of a Hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""
    chat_template: str | None = None
    """A Jinja file that renders conversations; null takes the tokenizer's own, or a plain one where it has none."""
    adapter: Literal["lora", "none"] = "lora"
    """`lora` trains adapters, and one base serves policy, reference, reward and value; `none` trains all weights of
    separate models. Ours."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Used with `adapter: lora`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of forward and backward; weights stay float32. `auto` is bfloat16 on a GPU that has it, else float32.
    Ours."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` uses a GPU where there is one. Ours."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        check_numbers(self, "model")


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
