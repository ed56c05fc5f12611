"""GPU memory of a stage as a list of items: bytes = count x bytes each x copies on one GPU.

The peak is what is always held plus the largest phase. Counts come from modeling/dry_run.py; docs/distributed.md says
what is exact and what is an estimate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
USABLE = 0.9
"""Usable share of a GPU's memory; the rest is for the CUDA context, NCCL and fragmentation. An estimate."""
FLOAT, ADAM = 4, 8
"""Bytes of a float32 number, and of Adam's two moments of a weight."""
LOGIT_BYTES = 16
"""Bytes per logit of a chunk in modeling/logprobs.py: logits, log-softmax, probabilities, clamped log-softmax."""
DRAW_BYTES = 30
"""Bytes per logit in `modeling.generation.draw`: five float32 tensors, float64 sums, comparisons."""
SQUARE_BYTES = 8
"""Bytes per number in `modeling.sharding.gradient_norm`, which copies one gradient at a time to float64."""
ALWAYS = "always"
"""Name of the phase for memory that is held throughout."""

Share = Literal["whole", "sharded", "gathered", "replicas"]
"""`whole`: on every GPU; `sharded`: divided by FSDP2; `gathered`: only under FSDP2, whole as in `step` mode (an upper
bound for `layer` mode); `replicas`: only with several GPUs without FSDP2."""


@dataclass(frozen=True)
class Strategy:
    """How a stage is distributed; `config` is a file in configs/accelerate/."""

    name: str
    config: str
    gpus: int = 1
    sharded: bool = False
    offload: bool = False

    def copies(self, share: Share) -> float:
        """How many copies of an item one GPU holds."""
        if share == "sharded" and self.sharded:
            return 0.0 if self.offload else 1 / self.gpus
        only_if = {"gathered": self.sharded, "replicas": self.gpus > 1 and not self.sharded}
        return float(only_if.get(share, True))


def strategies(gpus: int) -> list[Strategy]:
    """The strategies for this number of GPUs, the fastest first."""
    if gpus == 1:
        return [Strategy("1 GPU", "single_gpu.yaml")]
    return [
        Strategy(f"DDP x {gpus}", "ddp.yaml", gpus),
        Strategy(f"FSDP2 x {gpus}", "fsdp2.yaml", gpus, sharded=True),
        Strategy("with offload", "fsdp2_offload.yaml", gpus, sharded=True, offload=True),
    ]


@dataclass(frozen=True)
class Item:
    """Memory of one kind in one phase of a stage."""

    phase: str
    name: str
    count: int
    each: int
    """Bytes."""
    share: Share = "whole"

    def bytes(self, strategy: Strategy) -> float:
        """Bytes on one GPU."""
        return self.count * self.each * strategy.copies(self.share)


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass keeps for the backward pass, as a linear function of the number of tokens."""

    fixed: int
    """For any number of tokens: bfloat16 copies of weights, with mixed precision."""
    per_token: int
    layer: int
    """Per token of one layer; all of it exists while the layer is computed, even without a backward pass."""


@dataclass(frozen=True)
class Counts:
    """Numbers of weights of a model in training, and its activations."""

    base: int
    """Weights that FSDP2 shards: all but the trained ones with LoRA."""
    trained: int
    largest: int
    """Weights of the largest trained tensor."""
    lora: bool
    activations: Activations
    adapted: int = 0
    """Weights under adapters, of which decoding in float32 makes a copy (`modeling.adapters.merged_weights`)."""

    @property
    def share(self) -> Share:
        """How gradients, Adam's moments and the EMA are distributed: adapters and heads are never sharded."""
        return "whole" if self.lora else "sharded"


def held(base: int, adapters: int, trained: Sequence[Counts], average: int = 0) -> list[Item]:
    """What a training stage always holds: `base` are the weights of all its models except adapters and heads, `average`
    those of the EMA.
    """
    share = trained[0].share
    return [
        Item(ALWAYS, "parameters", base, FLOAT, "sharded"),
        Item(ALWAYS, "adapters and heads", adapters, FLOAT),
        Item(ALWAYS, "Adam", sum(model.trained for model in trained), ADAM, share),
        Item(ALWAYS, "EMA", average, FLOAT, share),
    ]


def update(phase: str, model: Counts, tokens: int) -> list[Item]:
    """A forward and backward pass. FSDP2 sums gradients after the last micro-batch and keeps them whole until then."""
    return [
        Item(phase, "gathered weights", model.base, FLOAT, "gathered"),
        Item(phase, "gradients", model.trained, FLOAT),
        Item(phase, "bfloat16 weights", model.activations.fixed, 1),
        Item(phase, "activations", tokens, model.activations.per_token),
        Item(phase, "one layer's workspace", tokens, model.activations.layer),
        Item(phase, "one weight's new gradient", model.largest, FLOAT),
    ]


def step(phase: str, model: Counts, gradients: int = 1) -> list[Item]:
    """Summing over processes, clipping and the optimizer.

    Args:
        gradients: how many exist at once.
    """
    return [
        Item(phase, "gradients", gradients * model.trained, FLOAT, model.share),
        Item(phase, "all-reduce buffer", model.trained, FLOAT, "whole" if model.lora else "replicas"),
        Item(phase, "one gradient in float64", model.largest, SQUARE_BYTES, model.share),
    ]


def logits(phase: str, tokens: int, vocabulary: int, chunk: int) -> Item:
    """A chunk of at most `chunk` logits."""
    return Item(phase, "logits of a chunk", min(tokens, max(1, chunk // vocabulary)) * vocabulary, LOGIT_BYTES)


def phases(items: Sequence[Item], strategy: Strategy) -> dict[str, float]:
    """Bytes of each phase on one GPU, in order."""
    found: dict[str, float] = {}
    for item in items:
        found[item.phase] = found.get(item.phase, 0.0) + item.bytes(strategy)
    return found


def peak(items: Sequence[Item], strategy: Strategy) -> float:
    """Peak bytes on one GPU."""
    found = phases(items, strategy)
    return found.pop(ALWAYS, 0.0) + max(found.values(), default=0.0)


def largest(build: Callable[[int], Sequence[Item]], strategy: Strategy, budget: float) -> int:
    """The largest micro-batch whose peak is at most `budget` bytes, below 2^31; 0 if there is none. `build` returns the
    items for a micro-batch.
    """
    fits, too_large = 0, 2**31
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if peak(build(middle), strategy) <= budget:
            fits = middle
        else:
            too_large = middle
    return fits
