"""Shards weights, gradients and optimizer states over the processes (FSDP2, torch's `fully_shard`).

Losses are sums divided by global counts, so gradients are summed over the processes, not averaged: one process, several
replicas and several shards compute the same numbers. There are two modes, with bit-identical results:

- `step`: weights are gathered once per phase (a roll-out, a scoring pass, the micro-batches of one optimizer step) and
  freed after it, so processes may have different numbers of passes. Within a phase a process holds one whole model.
- `layer`: in scoring and training, each layer is gathered in each forward and backward pass and freed after it. All
  processes must make the same number of passes (`Sharding.even`). A roll-out gathers the weights once, as in `step`.

In both, gradients are summed over the processes once per optimizer step; until then each process holds whole gradients
of the model in training. Between phases it holds only shards.

accelerate's launcher and settings (`ACCELERATE_USE_FSDP`) are used, but not its `prepare`, which takes one model per
call, averages gradients, and on CPUs silently replaces FSDP by DDP, so it could not be tested.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from modeling.accelerator import launched_for, sum_gradients
from modeling.architecture import backbone_of, layers_of

T = TypeVar("T")


@dataclass(frozen=True)
class Sharding:
    """How models are distributed over the processes."""

    active: bool = False
    """If false, every process holds whole models."""
    offload: bool = False
    """Keep shards in CPU memory."""
    layerwise: bool = False
    """`layer` mode: gather the weights of one layer at a time in scoring and training."""

    @staticmethod
    def from_environment() -> "Sharding":
        """The settings of `accelerate launch` with an FSDP config, see configs/accelerate/fsdp2.yaml.

        Raises ValueError for FSDP1.
        """
        if not launched_for("FSDP"):
            return Sharding()
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise ValueError("the accelerate config uses FSDP1: set fsdp_version: 2 in its fsdp_config")
        if dist.is_initialized() and dist.get_world_size() > 1:
            return Sharding(
                active=True,
                offload=switched_on("FSDP_OFFLOAD_PARAMS"),
                layerwise=switched_on("FSDP_RESHARD_AFTER_FORWARD", "true"),  # accelerate's default
            )
        return Sharding()

    @staticmethod
    def of(model: Any) -> "Sharding":
        """How a Hugging Face model was sharded."""
        return getattr(model, "sharding", Sharding())

    def description(self, model: Any, processes: int) -> str:
        """A log message: number of processes, distribution and dtype of the weights.

        Some launch commands silently start another configuration, so this inspects the model itself.
        """
        weights = list(model.parameters())
        sharded = any(isinstance(weight, DTensor) for weight in weights)
        assert sharded == self.active, "the models are not distributed as configured"
        mode = f"FSDP2, gathered per {'layer' if self.layerwise else 'step'}{', offloaded' if self.offload else ''}"
        kind = f"sharded ({mode})" if sharded else "replicated" if processes > 1 else "whole"
        return f"{processes} process{'es' if processes > 1 else ''}, models {kind}, weights in {weights[0].dtype}"

    def shard(self, model: Any, replicated: Iterable[nn.Parameter] = ()) -> None:
        """Shards a Hugging Face model in place: each layer is a group, and the rest is one.

        Args:
            replicated: parameters that every process holds whole, such as LoRA adapters and heads.
        """
        if not self.active:
            return
        ignored = set(replicated)
        policy: OffloadPolicy = (
            CPUOffloadPolicy(pin_memory=own_device().type == "cuda") if self.offload else OffloadPolicy()
        )
        layers = layers_of(backbone_of(model))
        if not layers:
            raise ValueError(f"{type(backbone_of(model)).__name__} cannot be sharded: its layers are not known")
        for layer in layers:
            fully_shard(layer, ignored_params=ignored, offload_policy=policy)
        fully_shard(model, ignored_params=ignored, offload_policy=policy)
        for unit in units(model):
            unit.set_gradient_divide_factor(1.0)  # a sum; not recursive
            unit.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
        with torch.no_grad():
            empty_pass(model)  # the first module that runs becomes FSDP2's root, whose weights stay gathered
        for unit in units(model):
            unit.reshard()
        model.sharding = self

    def gathered(self, model: Any) -> AbstractContextManager[None]:
        """Context manager for generation: the model's weights are gathered, and passes do not communicate."""
        return held(model, units(model)) if isinstance(model, FSDPModule) else nullcontext()

    def computing(self, model: Any) -> AbstractContextManager[None]:
        """Context manager for scoring and training. In `layer` mode all processes must make equally many passes, and
        only embeddings, final norm and head are gathered, which are used outside of the model's own forward.
        """
        return held(model, [model]) if self.layerwise and isinstance(model, FSDPModule) else self.gathered(model)

    def even(self, work: list[T], idle: T) -> list[T]:
        """In `layer` mode, the work padded with `idle`, a pass of weight zero, to the largest number of passes of any
        process, since processes with fewer passes would not take part in gathering weights.
        """
        if not self.layerwise:
            return work
        longest = torch.tensor(len(work), device=own_device())
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        return [*work, *[idle] * (int(longest) - len(work))]

    def reduce_gradients(self, model: Any, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients over the processes; call it within `computing`."""
        trained = list(parameters)
        if isinstance(model, FSDPModule) and any(isinstance(weight, DTensor) for weight in trained):
            # Gradients of earlier passes are reduced with those of this one, which are zero.
            model.set_requires_gradient_sync(True)
            (empty_pass(model) * 0.0).backward()
            model.set_requires_gradient_sync(False)
        sum_gradients([weight for weight in trained if not isinstance(weight, DTensor)])


@contextmanager
def held(root: Any, kept: Iterable[FSDPModule]) -> Iterator[None]:
    """Context manager: the weights of these groups of a sharded model are gathered; gradients accumulate without
    communication.
    """
    for unit in kept:
        unit.reshard()  # a pass outside of it leaves the root's weights gathered, and they may be stale
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
        unit.set_reshard_after_backward(False, recurse=False)
    root.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        root.set_requires_gradient_sync(True)
        for unit in kept:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.set_reshard_after_backward(True, recurse=False)
            unit.reshard()


def units(model: Any) -> list[FSDPModule]:
    """The groups of a sharded model."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def empty_pass(model: Any) -> Tensor:
    """The sum of the outputs for two tokens: a pass of the whole model."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=own_device())
    found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found.clamp(-1, 1).sum()


def own_device() -> torch.device:
    """The device on which this process computes; offloaded weights are on another one."""
    device: torch.device = PartialState().device
    return device


def switched_on(name: str, otherwise: str = "false") -> bool:
    """A boolean of accelerate's launcher in the environment."""
    return os.environ.get(name, otherwise).lower() in ("1", "true", "yes")


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Clips the gradient norm to `max_norm` (None: no clipping); returns the norm before."""
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    norm = gradient_norm(gradients)
    factor = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))  # as torch's clip_grad_norm_
    if factor < 1.0:
        for gradient in gradients:
            local(gradient).mul_(factor)
    return norm


@torch.no_grad()
def gradient_norm(gradients: Iterable[Tensor]) -> float:
    """The 2-norm over all tensors, which are replicated or sharded.

    Squares are summed in float64, so that shards and whole tensors give the same norm to the last bit of float32.
    """
    found = list(gradients)
    shards = [gradient for gradient in found if isinstance(gradient, DTensor)]
    square = sum_of_squares([gradient for gradient in found if not isinstance(gradient, DTensor)])
    if shards:
        total = torch.tensor(sum_of_squares(shards), dtype=torch.float64, device=shards[0].device)
        dist.all_reduce(total)
        square += float(total)
    dtype = found[0].dtype if found else torch.float32
    return float(torch.tensor(square, dtype=torch.float64).sqrt().to(dtype))


def sum_of_squares(tensors: Iterable[Tensor]) -> float:
    """Sum of squares of this process's tensors or shards, in float64."""
    norms = [torch.linalg.vector_norm(local(tensor), dtype=torch.float64) for tensor in tensors]
    return float(torch.stack(norms).square().sum()) if norms else 0.0


def local(tensor: Tensor) -> Tensor:
    """This process's shard, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole tensor of a shard, on every process; all of them must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights on the CPU; shards are gathered one at a time. All processes must call this together."""
    return {name: full(weight.detach()).cpu() for name, weight in weights.items()}


def gathered_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a sharded model, whole and on the CPU. All processes must call this; the first one gets it, the
    others an empty dict.
    """
    found = {}
    for name, weight in model.state_dict().items():
        gathered = full(weight)
        if dist.get_rank() == 0:
            found[name] = gathered.cpu()
    return found
