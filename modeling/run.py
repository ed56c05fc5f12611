"""The context of a run that every trainer needs."""

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from modeling.config import TrackingConfig
from modeling.sharding import Sharding


@dataclass(frozen=True)
class Run:
    """A run of one stage."""

    accelerator: Accelerator
    seed: int
    out: Path | None = None
    """The folder for metrics and checkpoints; None writes nothing."""
    tracking: TrackingConfig | None = None
    sharding: Sharding = field(default_factory=Sharding)
    """How the models of this run are distributed over the processes."""
