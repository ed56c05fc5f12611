"""The policy on held-out prompts while it is trained."""

from dataclasses import dataclass


@dataclass
class HeldOutSettings:
    """All ours."""

    every: int = 0
    """Iterations between evaluations; 0 makes none."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
