"""What every trainer needs to know of the run that it belongs to."""

from dataclasses import dataclass
from pathlib import Path

from modeling.config import TrackingConfig
from modeling.processes import Processes


@dataclass(frozen=True)
class Run:
    """A run of one stage."""

    team: Processes
    seed: int
    out: Path | None = None
    """The folder for metrics and checkpoints; None writes nothing."""
    tracking: TrackingConfig | None = None
