"""Summarize from feedback (Stiennon et al. 2020): two summaries of a Reddit post or a news article, compared by a
labeler.

A row is one labeler's comparison and stays one: merged over a post they would lose `labeler_id`, by which labelers can
be told apart. The post is the user, so its comparisons share a split. The prompt follows the paper's query: subreddit,
title and text, ending in "TL;DR:".
"""

from collections.abc import Iterable
from typing import Any

from data.sources.adapter import Adapter, Row, identifier, need, single

PARTS = {"subreddit": "SUBREDDIT: r/{}", "title": "TITLE: {}", "post": "POST: {}", "article": "ARTICLE: {}"}


def _record(row: Row) -> dict[str, Any]:
    info = {key: value for key, value in need(row, "info", dict, "an object").items() if value is not None}
    texts = {key: need(info, key, str).strip() for key in (*PARTS, "id") if key in info}
    if not texts.get("post") and not texts.get("article"):
        raise ValueError("'info' must hold the text to summarize as 'post' or 'article'")
    lines = [form.format(texts[key]) for key, form in PARTS.items() if texts.get(key)]
    record = {"prompt": "\n\n".join([*lines, "TL;DR:"]), "use_case": "summarization"}
    return record | ({"user_id": texts["id"]} if texts.get("id") else {})


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    yield _record(row)


def _rankings(row: Row) -> Iterable[dict[str, Any]]:
    summaries, choice = need(row, "summaries", list), need(row, "choice", int)
    if len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
        raise ValueError("'summaries' must be a list of two objects with 'text'")
    if choice not in (0, 1):
        raise ValueError(f"'choice' must be 0 (the first summary is better) or 1 (the second is), found {choice}")
    # Published as they were decoded after "TL;DR:", with a space in front.
    completions = [need(summary, "text", str).strip() for summary in summaries]
    ranks = [1, 2] if choice == 0 else [2, 1]
    worker = {"labeler_id": identifier(row, "worker")} if row.get("worker") is not None else {}
    yield _record(row) | {"completions": completions, "ranks": ranks} | worker


ADAPTER = Adapter(
    name="summarize_feedback",
    keys=(("info", "summaries", "choice"),),
    about="Summarize from feedback, two summaries compared by humans (no licence stated; the posts are CC BY 4.0)",
    convert={"prompts": single(_prompts), "rankings": single(_rankings)},
    hub="openai/summarize_from_feedback",
    subset="comparisons",
)
