"""What stops a run that has gone wrong, or warns."""

from dataclasses import dataclass


@dataclass
class GuardSettings:
    """All ours."""

    max_kl: float | None = None
    """Nats an episode beyond which training stops; null sets no limit."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
