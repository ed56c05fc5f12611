"""Where prompts, answers and plain text come from, and the rules they pass."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class DataConfig:
    """Prompts, demonstrations, rankings and plain text. Defaults are the paper's (section 3.2, appendix A) unless marked ours."""

    demonstrations: list[str] = field(default_factory=lambda: ["seed"])
    """JSONL files of prompts with a `completion`; `seed` is the set written for this project (data/seed)."""
    prompts: list[str] = field(default_factory=list)
    """JSONL files of further prompts, without answers."""
    rankings: list[str] = field(default_factory=list)
    """JSONL files of answers that somebody already ranked; they join the labeler's rankings in the reward stage."""
    pretraining: list[str] = field(default_factory=lambda: ["wikipedia"])
    """Plain text for the pretraining mix and for perplexity: `wikipedia` (the embedded articles), .txt or .md files, or JSONL with `text`."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a malformed row does: stops the run with file and line, or is skipped and counted."""
    max_prompts_per_user: int = 200
    """Prompts kept of one user. Section 3.2."""
    near_duplicate_fraction: float = 0.9
    """Two prompts are the same when their common prefix is this fraction of the longer one. Ours: section 3.2 gives no number."""
    max_prompt_tokens: int = 1000
    """Longer prompts, template included, are dropped and counted, in the policy's tokens. Appendix C."""
    max_answer_tokens: int = 1000
    """Longer demonstrations are dropped and counted, in the policy's tokens. Appendix C."""
    valid_fraction: float = 0.1
    """Share of users held out for choosing between checkpoints. Ours."""
    test_fraction: float = 0.1
    """Share of users held out for the report. Ours."""
    split_salt: str = ""
    """Another salt gives another split of the same users."""
    pretraining_tokens: int = 512
    """Tokens of one pretraining example. Ours; the paper's is the model's context, 2,048."""

    def validate(self) -> None:
        """Raises ValueError on contradictions."""
        if not self.demonstrations:
            raise ValueError("data.demonstrations is empty: the first stage has nothing to imitate")
        if not self.pretraining:
            raise ValueError("data.pretraining is empty: the report measures perplexity on plain text that is held out of it")
        if min(self.valid_fraction, self.test_fraction) <= 0 or self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"data.valid_fraction={self.valid_fraction} and data.test_fraction={self.test_fraction} must be above 0 and leave room for training"
            )
        if not 0 < self.near_duplicate_fraction <= 1:
            raise ValueError(f"data.near_duplicate_fraction={self.near_duplicate_fraction} must be above 0 and at most 1")
        for name in ("max_prompts_per_user", "max_prompt_tokens", "max_answer_tokens", "pretraining_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")
