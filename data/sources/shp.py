"""Stanford Human Preferences (Ethayarajh et al. 2022): Reddit comments on a post, one preferred where it came later and
still scored higher.

A row compares two comments. The rows of a post are consecutive and become one ranking with these comparisons as raw
preferences; pairs in which the higher score belongs to the earlier comment are not compared. The post is the prompt
and the user.

Prompts and rankings: its authors made the labels for reward models, and a preferred comment is not a reference answer.
A post has up to 50 comments; those over `data.max_answer_tokens` leave their ranking.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from data.sources.adapter import Adapter, Row, identifier, need, together


def _record(row: Row) -> dict[str, Any]:
    post = identifier(row, "post_id")
    return {"prompt": need(row, "history", str), "prompt_id": post, "user_id": post}


def _prompts(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    yield _record(rows[0])


def _rankings(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    record = _record(rows[0])
    completions: list[str] = []
    preferences = []
    for row in rows:
        if _record(row) != record:
            raise ValueError(f"post {record['user_id']!r} has rows with different 'history'")
        texts = [need(row, key, str).strip() for key in ("human_ref_A", "human_ref_B")]
        label = need(row, "labels", int)
        if label not in (0, 1):
            raise ValueError(f"'labels' must be 1 (A is preferred) or 0 (B is), found {label}")
        completions += [text for text in dict.fromkeys(texts) if text not in completions]
        first, second = map(completions.index, texts)
        if first == second:
            # Comments with identical text stay a pair, which the rule for identical answers counts.
            second = len(completions)
            completions.append(texts[1])
        preferences.append([first, second] if label == 1 else [second, first])
    yield record | {"completions": completions, "preferences": preferences}


ADAPTER = Adapter(
    name="shp",
    keys=(("history", "human_ref_A", "human_ref_B"),),
    about="Stanford Human Preferences, Reddit comments compared by votes (Reddit's terms, no licence of its own)",
    convert={"prompts": together(_prompts), "rankings": together(_rankings)},
    hub="stanfordnlp/SHP",
    group=lambda row: str(row.get("post_id")),
)
