"""The exponential moving average of the policy's trained weights (Ouyang et al. 2022, appendix C.4: 0.992)."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """average <- decay * average + (1 - decay) * weight, initialized with the weights."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.average: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in self.parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Updates the average after an optimizer step."""
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach(), 1 - self.decay)

    @contextlib.contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Context manager: the model has the averaged weights."""
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
