"""Stops a stage at the first metric or weight that is NaN or infinite, before anything is exported."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

OVERFLOW = "weights or activations of the model overflow: set model.precision=float32, or choose another model"


def require_finite(numbers: Mapping[str, float], where: str, advice: str) -> None:
    """Raises ValueError for the first number that is NaN or infinite: "<where>: <name> is nan: <advice>"."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{where}: {name} is {value}: {advice}")


def require_finite_weights(weights: Iterable[tuple[str, Tensor]], where: str, advice: str) -> None:
    """Raises ValueError for the first weight that has a NaN or infinite element."""
    for name, weight in weights:
        if not is_finite(weight):
            raise ValueError(f"{where}: the weight {name} has NaN or infinite values: {advice}")


def require_finite_files(folder: Path) -> None:
    """Raises ValueError when a safetensors file of the folder has a NaN or infinite element.

    Reads one tensor at a time.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            weights = ((name, tensors.get_tensor(name)) for name in names)
            require_finite_weights(weights, str(folder), "training diverged: lower the learning rate")


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite. A finite sum proves it without a mask as large as the tensor."""
    if not tensor.is_floating_point():
        return True
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
