"""What holds for every adapter: whatever a row is, it becomes records or one sentence, never a crash."""

import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config import ROLES
from data.sources.adapter import Adapter, Role
from data.sources.registry import ADAPTERS, MODULES
from tests.data.sources.converting import convert

PUBLISHED = {name: adapter for name, adapter in ADAPTERS.items() if name != "rows"}
KEYS = {
    "oasst": [
        "message_tree_id",
        "message_id",
        "parent_id",
        "text",
        "role",
        "rank",
        "deleted",
        "review_result",
        "prompt",
        "replies",
    ],
    "qa_feedback": [
        "question",
        "passages",
        "gold",
        "answer",
        "preference",
        *(f"prediction {number}" for number in range(1, 5)),
    ],
    "truthfulqa": ["prompt", "completion", "Question", "Best Answer"],
    "hh_rlhf": ["chosen", "rejected"],
    "ultrafeedback": [
        "instruction",
        "completions",
        "response",
        "annotations",
        "instruction_following",
        "truthfulness",
        "Rating",
    ],
    "ultrafeedback_binarized": ["chosen", "rejected", "prompt_id", "score_chosen", "score_rejected", "role", "content"],
    "nectar": ["prompt", "answers", "answer", "rank"],
    "shp": ["post_id", "history", "human_ref_A", "human_ref_B", "labels"],
    "summarize_feedback": [
        "info",
        "summaries",
        "choice",
        "worker",
        "post",
        "title",
        "subreddit",
        "article",
        "id",
        "text",
    ],
    "dolly": ["instruction", "context", "response", "category"],
    "alpaca": ["instruction", "input", "output"],
    "no_robots": ["messages", "prompt_id", "category", "role", "content"],
    "sharegpt": [
        "conversations",
        "from",
        "value",
        "system",
        "chosen",
        "rejected",
        "role",
        "content",
        "human",
        "gpt",
        "tools",
    ],
    "self_instruct": ["id", "instruction", "instances", "input", "output", "motivation_app", "is_classification"],
}
WORDS = [
    "",
    " ",
    "a",
    "prompter",
    "assistant",
    "user",
    "\n\nHuman: a\n\nAssistant: b",
    "Human: a\n\nAssistant: ",
    "Q: a\nA: b\nTrue:",
    " yes",
    "5",
    "N/A",
]
SCALARS = st.none() | st.booleans() | st.integers(-2, 4) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=4)


def values(keys: list[str]) -> st.SearchStrategy[Any]:
    """JSON values whose objects have the format's own keys, which is where a converter looks."""
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(keys), inner, max_size=len(keys)),
        max_leaves=12,
    )


def rows_of(keys: list[str]) -> st.SearchStrategy[list[Any]]:
    """One to three rows: objects with some of the keys or all of them, or no objects at all."""
    value = values(keys)
    some, full = (
        st.fixed_dictionaries({}, optional=dict.fromkeys(keys, value)),
        st.fixed_dictionaries(dict.fromkeys(keys, value)),
    )
    return st.lists(some | full | SCALARS, min_size=1, max_size=3)


ROWS = {name: rows_of(keys) for name, keys in KEYS.items()}


def test_the_generator_knows_every_adapter() -> None:
    assert set(KEYS) == set(PUBLISHED)


def test_names_are_unique_and_our_own_records_come_first() -> None:
    assert len(ADAPTERS) == len(MODULES)
    assert next(iter(ADAPTERS)) == "rows"


@pytest.mark.parametrize("adapter", PUBLISHED.values(), ids=PUBLISHED)
def test_an_adapter_names_a_place_or_its_files_and_only_roles_that_there_are(adapter: Adapter) -> None:
    assert set(adapter.convert) <= set(ROLES)
    assert set(adapter.files) <= set(adapter.convert)
    assert "(" in adapter.about, "the licence, in brackets"


@pytest.mark.parametrize(
    ("name", "role"), [(name, role) for name, adapter in PUBLISHED.items() for role in adapter.convert]
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_json_becomes_records_or_one_sentence(name: str, role: Role, data: st.DataObject) -> None:
    adapter = PUBLISHED[name]
    rows = data.draw(ROWS[name])
    for member in rows:
        if adapter.group is not None and isinstance(member, dict):
            hash(adapter.group(member))
    # Any other exception fails the test; `convert` parses what comes back.
    with contextlib.suppress(ValueError):
        convert(adapter, role, *rows)
