"""Stanford Human Preferences (Ethayarajh et al. 2022): Reddit comments on a post, one preferred where it came later and still scored higher.

A row compares two comments. The rows of a post follow one another and become one ranking with those comparisons as raw preferences: pairs that
nobody could compare, because the higher score was also the earlier comment, stay uncompared. The post is the prompt and the user.

Prompts and rankings: its authors made the labels for reward models, and a preferred comment is not a reference answer. A post has up to 50
comments; `data.max_answer_tokens` drops rankings with a long one.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from data.sources.adapter import Adapter, Row, need, together


def _record(row: Row) -> dict[str, Any]:
    post = need(row, "post_id", str)
    return {"prompt": need(row, "history", str), "prompt_id": post, "user_id": post}


def _prompts(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    yield _record(rows[0])


def _rankings(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    record = _record(rows[0])
    places: dict[str, int] = {}
    preferences = []
    for row in rows:
        if _record(row) != record:
            raise ValueError(f"post {record['user_id']!r} has rows with different 'history'")
        first, second = (places.setdefault(need(row, key, str).strip(), len(places)) for key in ("human_ref_A", "human_ref_B"))
        label = need(row, "labels", int)
        if label not in (0, 1):
            raise ValueError(f"'labels' must be 1 (A is preferred) or 0 (B is), found {label}")
        if first != second:
            preferences.append([first, second] if label == 1 else [second, first])
    if preferences:
        yield record | {"completions": list(places), "preferences": preferences}


ADAPTER = Adapter(
    name="shp",
    about="Stanford Human Preferences, Reddit comments compared by votes (Reddit's terms, no licence of its own)",
    convert={"prompts": together(_prompts), "rankings": together(_rankings)},
    hub="stanfordnlp/SHP",
    group=lambda row: str(row.get("post_id")),
)
