"""Statistics of the curated data, as one JSON object: the contents of `facts.json`, from which the report and
the card are made.

A few-shot prompt of K pairs is one prompt that becomes K rows of a set. Sizes, lengths, languages and use cases count
rows; the prompts of a user are counted as prompts: one with several rankings counts once.
"""

from typing import Any

import numpy as np
import pandas as pd

from data.build import Built
from data.config import DataConfig
from data.ranking_facts import ranking_facts
from data.records import SPLITS, USE_CASES
from data.removed_examples import examples, finder, masked, meaning
from data.sets import SETS, SetName
from data.sources.reading import Source
from data.table import Table

Facts = dict[str, Any]
SETTINGS = (
    "group_by", "max_prompts_per_group", "near_duplicate_fraction", "languages", "personal_data", "max_prompt_tokens",
    "max_answer_tokens", "valid_fraction", "test_fraction", "split_salt", "bad_rows",
)  # fmt: skip


def facts_of(built: Built, config: DataConfig) -> Facts:
    """All statistics. Texts are shown shortened, and with personal data masked."""
    find = finder(config)
    pool, rankings = built.pool, built.rankings
    removed, left, identical = built.removed(), pool.left(), rankings.notes["identical"]
    return {
        "rows": built.sizes(),
        "read": {
            "prompts": pool.count,
            "rankings": rankings.count,
            "answers": int(rankings.notes["answers"].sum()),
            "documents": len(built.documents.notes),
        },
        "removed": removed,
        "rules": {rule: meaning(rule, config) for rules in removed.values() for rule in rules},
        "examples": examples(built, config, find),
        "skipped": built.bad.count,
        "skipped_rows": [masked(sentence, find) for sentence in built.bad.examples],
        "ignored_keys": dict(sorted(built.bad.ignored.items())),
        "sources": [source_facts(built, source) for source in built.sources],
        "sets": {name: set_facts(built, name, config) for name in SETS if built.members(name).any()},
        "without_demonstration": {"prompts": len(left), "lacking": int((~left["answered"]).sum())},
        "largest_group": int(left["group"].value_counts().max()),
        "lengths_by_use_case": {
            case: lengths(left[left["use_case"] == place], "prompt_tokens") for place, case in enumerate(USE_CASES)
        },
        "lengths_by_source": lengths_by_source(pool),
        "languages": {
            kind: counted(table.left(), "language")
            for kind, table in (("prompts", pool), ("rankings", rankings))
            if table.kept().any()
        },
        "rankings": ranking_facts(rankings.each(rankings.kept()))
        | {"identical": int(identical.sum()), "with_identical": int((identical > 0).sum())},
        "texts": {name: text_facts(built, name) for name in dict.fromkeys(built.documents.notes["dataset"])},
        "settings": {name: getattr(config, name) for name in SETTINGS},
    }


def source_facts(built: Built, source: Source) -> Facts:
    """What a source is, and how many of its records were read and kept."""
    if source.role == "pretraining":
        mine = built.documents.notes["dataset"] == source.name
        kept = {split: int(mine[rows].sum()) for split, rows in built.documents.splits.items()}
    else:
        table = built.rankings if source.role == "rankings" else built.pool
        mine = table.notes["dataset"] == table.sources.index(source.name)
        if source.role != "rankings":
            mine &= table.notes["answered"] == (source.role == "demonstrations")
        kept = {split: int((mine & table.kept(split)).sum()) for split in SPLITS}
    return {
        "name": source.name,
        "role": source.role,
        "format": source.format.name,
        "place": source.place,
        "about": source.about,
        "unread": source.unread({file for other in built.sources for file in other.files}),
        "read": int(mine.sum()) + built.bad.of_source[source.role, source.name],
        "kept": kept,
    }


def set_facts(built: Built, name: SetName, config: DataConfig) -> Facts:
    """Sizes, users, use cases and lengths of a set."""
    table = built.table(name)
    everyone = table.notes[built.members(name)]
    cases = counted(everyone, "use_case")
    return {
        "splits": {split: split_facts(table.notes[built.members(name, split)]) for split in SPLITS},
        "prompts_per_user": histogram(prompts_by_group(everyone).value_counts()),
        "use_cases": {"none" if place < 0 else USE_CASES[place]: rows for place, rows in cases.items()},
        "prompt_tokens": histogram(everyone.groupby("prompt_tokens")["copies"].sum()),
        "largest_user": largest_user(table, table.notes[built.members(name, "train")], config),
    }


def split_facts(rows: pd.DataFrame) -> Facts:
    """A split of a set: rows and users by who wrote the prompts, and lengths."""
    writers = {"labeler": rows[~rows["api"]], "api": rows[rows["api"]]}
    return {
        "rows": {writer: int(found["copies"].sum()) for writer, found in writers.items()},
        "users": {writer: users(prompts_by_group(found)) for writer, found in writers.items() if len(found)},
        "groups": int(rows["group"].nunique()),
        "prompt_tokens": lengths(rows, "prompt_tokens"),
    }


def prompts_by_group(rows: pd.DataFrame) -> pd.Series:
    """The number of prompts of each user or organisation, the most first."""
    return rows.drop_duplicates(["group", "item"])["group"].value_counts()


def users(prompts: pd.Series) -> Facts:
    """Statistics of the prompts per user."""
    return {
        "count": len(prompts),
        "mean": float(prompts.mean()),
        "median": float(prompts.median()),
        "max": int(prompts.max()),
        "largest_share": float(prompts.max() / prompts.sum()),
    }


def largest_user(table: Table, train: pd.DataFrame, config: DataConfig) -> Facts | None:
    """The user or organisation with the most training prompts, with personal data in the id masked; None if there are
    not two.
    """
    prompts = prompts_by_group(train)
    if len(prompts) < 2:
        return None
    (record,) = table.read([int((train["group"] == prompts.index[0]).idxmax())])
    name = masked(getattr(record, f"{config.group_by}_id"), finder(config))
    return {"name": name, "share": float(prompts.iloc[0] / prompts.sum())}


def lengths(rows: pd.DataFrame, column: str) -> dict[str, float] | None:
    """Count, mean, standard deviation and quartiles, as in table 8; None if there are no rows."""
    values = np.repeat(rows[column].to_numpy(), rows["copies"])
    if not len(values):
        return None
    quartiles = zip(
        ("min", "25%", "50%", "75%", "max"), np.percentile(values, [0, 25, 50, 75, 100]).tolist(), strict=True
    )
    return {"count": len(values), "mean": float(values.mean()), "std": float(values.std()), **dict(quartiles)}


def lengths_by_source(pool: Table) -> dict[str, dict[str, float] | None]:
    """Lengths of prompts and demonstrations by who wrote the prompt, and by source if there are several."""
    left = pool.left()
    groups = {"labeler prompts": left[~left["api"]], "API prompts": left[left["api"]]}
    if len(pool.sources) > 1:
        groups |= {name: left[left["dataset"] == place] for place, name in enumerate(pool.sources)}
    found = {}
    for name, rows in groups.items():
        found[f"{name}: prompts"] = lengths(rows, "prompt_tokens")
        found[f"{name}: demonstrations"] = lengths(rows[rows["answered"]], "answer_tokens")
    return found


def counted(rows: pd.DataFrame, column: str) -> dict[Any, int]:
    """Rows by the value of a column, the most common first, ties by value."""
    counts = rows.groupby(column)["copies"].sum().sort_index().sort_values(ascending=False, kind="stable")
    return {value: int(count) for value, count in counts.items()}


def histogram(counts: pd.Series) -> dict[str, int]:
    """A histogram with a bar for each value."""
    return {str(value): int(count) for value, count in counts.sort_index().items()}


def text_facts(built: Built, source: str) -> dict[str, dict[str, int]]:
    """Documents and characters of a source's pretraining text, by split."""
    found = {}
    for split, rows in built.documents.splits.items():
        chosen = built.documents.notes.loc[rows]
        sizes = chosen.loc[chosen["dataset"] == source, "characters"]
        found[split] = {"documents": len(sizes), "characters": int(sizes.sum())}
    return found
