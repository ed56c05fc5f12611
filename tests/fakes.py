"""A stand-in for accelerate's Accelerator."""

from dataclasses import dataclass
from typing import Any

import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FakeAccelerator:
    """A single process that may claim to be one of several; there is no process group."""

    process_index: int = 0
    num_processes: int = 1
    device: torch.device = CPU

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def print(self, *values: Any, **options: Any) -> None:
        if self.is_main_process:
            print(*values, **options)

    def wait_for_everyone(self) -> None:
        pass
