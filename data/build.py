"""InstructGPT's three data sets, from one pool of prompts (Ouyang et al. 2022, section 3.2 and table 6).

SFT: prompts with a demonstration. RM: prompts to sample answers for and rank. RL: api prompts only. Users are split before anything else is
built from them, and near-duplicates leave before the split.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.config import DataConfig
from data.curate import cap_per_user, drop_long, drop_near_duplicates
from data.jsonl import write_records, write_rows
from data.records import SPLITS, Demonstration, Prompt, Ranking, as_prompt
from data.sources import read_source, read_texts
from data.split import split_by_user


@dataclass
class BuiltData:
    """The three sets by split, the rankings that came ready made, plain text, and what each rule removed."""

    sft: dict[str, list[Demonstration]]
    rm: dict[str, list[Prompt]]
    rl: dict[str, list[Prompt]]
    rankings: dict[str, list[Ranking]]
    texts: dict[str, list[str]]
    removed: dict[str, int] = field(default_factory=dict)
    skipped_rows: list[str] = field(default_factory=list)

    def sizes(self) -> dict[str, int]:
        """Rows by set and split."""
        sets = {"sft": self.sft, "rm": self.rm, "rl": self.rl, "rankings": self.rankings, "texts": self.texts}
        return {f"{name}_{split}": len(rows) for name, splits in sets.items() for split, rows in splits.items()}  # type: ignore[attr-defined]


def build(config: DataConfig, count_prompt_tokens: Callable[[Prompt], int], count_answer_tokens: Callable[[str], int]) -> BuiltData:
    """Reads the sources and applies the rules in order: cap, near-duplicates, length, split.

    Raises ValueError on a malformed row (unless `bad_rows: skip`), and when a split that a later stage needs has no rows.
    """
    skipped: list[str] | None = [] if config.bad_rows == "skip" else None
    demonstrations = read_source(config.demonstrations, Demonstration, skipped)
    pool: list[Prompt] = [*demonstrations, *read_source(config.prompts, Prompt, skipped)]
    rankings = read_source(config.rankings, Ranking, skipped)
    refuse_repeated_ids(pool)

    removed: dict[str, int] = {}

    def step(name: str, kept: list[Prompt]) -> list[Prompt]:
        removed[name] = len(pool) - len(kept)
        return kept

    pool = step("over_cap_per_user", cap_per_user(pool, config.max_prompts_per_user))
    pool = step("near_duplicate", drop_near_duplicates(pool, config.near_duplicate_fraction))
    pool = step("prompt_too_long", drop_long(pool, count_prompt_tokens, config.max_prompt_tokens))
    short = [p for p in pool if not isinstance(p, Demonstration) or count_answer_tokens(p.completion) <= config.max_answer_tokens]
    pool = step("answer_too_long", short)

    splits = split_by_user(pool, config.valid_fraction, config.test_fraction, config.split_salt)
    built = BuiltData(
        sft={split: [p for p in rows if isinstance(p, Demonstration)] for split, rows in splits.items()},
        rm=splits,
        rl={split: [as_prompt(p) for p in rows if p.source == "api"] for split, rows in splits.items()},
        rankings=split_by_user(rankings, config.valid_fraction, config.test_fraction, config.split_salt),
        texts=split_texts(read_texts(config.pretraining), config.split_salt),
        removed=removed,
        skipped_rows=skipped or [],
    )
    needed = [(name, split, rows[split]) for name, rows in (("sft", built.sft), ("rm", built.rm)) for split in SPLITS]
    for name, split, kept in [*needed, ("rl", "train", built.rl["train"])]:
        if not kept:
            lacking = {"sft": "prompt with a demonstration", "rm": "prompt", "rl": "api prompt"}[name]
            why = ", ".join(f"{count} {rule}" for rule, count in removed.items() if count) or "none"
            raise ValueError(
                f"the {name} {split} split is empty after curation: no {lacking} is left among the {split} users; "
                f"try another data.split_salt or other fractions, or look at what was removed ({why})"
            )
    return built


def refuse_repeated_ids(prompts: Sequence[Prompt]) -> None:
    """Raises ValueError when two different prompts have the same prompt_id; the same prompt twice is left to the near-duplicate rule."""
    texts: dict[str, str] = {}
    for prompt in prompts:
        if texts.setdefault(prompt.prompt_id, prompt.text) != prompt.text:
            raise ValueError(f"prompt_id {prompt.prompt_id!r} stands on two different prompts")


def split_texts(texts: Sequence[str], salt: str) -> dict[str, list[str]]:
    """Whole documents to `train` or, one in ten by hash, to `heldout`; with a single document its last tenth is held out."""
    if len(texts) == 1:
        cut = len(texts[0]) * 9 // 10
        return {"train": [texts[0][:cut]], "heldout": [texts[0][cut:]]}
    splits: dict[str, list[str]] = {"train": [], "heldout": []}
    ordered = sorted(texts, key=lambda text: hashlib.sha256(f"{salt}:{text}".encode()).digest())
    count = max(1, len(ordered) // 10)
    splits["heldout"], splits["train"] = ordered[:count], ordered[count:]
    return splits


def write(built: BuiltData, folder: Path) -> None:
    """Writes every set as `<set>_<split>.jsonl`."""
    for name, splits in (("sft", built.sft), ("rm", built.rm), ("rl", built.rl), ("rankings", built.rankings)):
        for split, rows in splits.items():
            if rows:
                write_records(folder / f"{name}_{split}.jsonl", rows)
    for split, texts in built.texts.items():
        write_rows(folder / f"texts_{split}.jsonl", ({"text": text} for text in texts))
