"""OpenAssistant trees: who answered what, which answer was best, and what is left out below a removed message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.sources.formats import FORMATS
from tests.data.sources.converting import assert_refused, convert, read_place, user

Node = dict[str, Any]


def message(name: str, *replies: Node, **more: Any) -> Node:
    """A message in the export's form; prompters are named q..., assistants a..."""
    role = "prompter" if name.startswith("q") else "assistant"
    ours = {"message_id": name, "text": f"text {name}", "role": role, "replies": [*replies]}
    return ours | {"deleted": False, "review_result": True} | more


def tree(root: Node) -> Node:
    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": root}


def flat(node: Node, parent: str | None = None) -> list[Node]:
    """The same tree as the Hub's rows."""
    row = {key: value for key, value in node.items() if key != "replies"}
    row |= {"parent_id": parent, "message_tree_id": "t"}
    return [row, *(below for reply in node["replies"] for below in flat(reply, node["message_id"]))]


BEST_LAST = message("q", message("a1", rank=1), message("a2", message("q2", message("a3", rank=None)), rank=0))


@pytest.fixture(params=["export", "hub"])
def rows(request: pytest.FixtureRequest) -> Callable[[Node], list[Node]]:
    """`rows(root)`: the tree in either published shape."""
    return flat if request.param == "hub" else lambda root: [tree(root)]


Rows = Callable[[Node], list[Node]]


def test_every_turn_of_a_prompter_is_a_prompt_with_the_conversation_before_it(rows: Rows) -> None:
    first, second = convert("oasst", "prompts", *rows(BEST_LAST))
    assert first.prompt == user("text q")
    assert second.prompt == user("text q", "text a2", "text q2")
    assert (first.prompt_id, second.prompt_id) == ("q", "q2")
    assert first.user_id == second.user_id == "t", "a split must not cut a tree"
    assert first.source == "api"


def test_ranked_replies_are_a_ranking_with_1_as_the_best(rows: Rows) -> None:
    (ranking,) = convert("oasst", "rankings", *rows(BEST_LAST))
    assert ranking.prompt == user("text q")
    assert ranking.completions == ["text a1", "text a2"]
    assert ranking.ranks == [2, 1]
    assert ranking.labeler == "human"


def test_the_best_reply_is_the_demonstration_and_a_lone_one_needs_no_rank(rows: Rows) -> None:
    first, second = convert("oasst", "demonstrations", *rows(BEST_LAST))
    assert first.completion == "text a2"
    assert second.completion == "text a3"


def test_replies_that_nobody_ranked_are_no_ranking_and_no_demonstration(rows: Rows) -> None:
    unranked = rows(message("q", message("a1"), message("a2")))
    assert convert("oasst", "rankings", *unranked) == []
    assert convert("oasst", "demonstrations", *unranked) == []
    assert len(convert("oasst", "prompts", *unranked)) == 1


def test_one_ranked_reply_among_unranked_ones_is_compared_with_nothing(rows: Rows) -> None:
    root = message("q", message("a1", rank=0), message("a2"))
    assert convert("oasst", "rankings", *rows(root)) == []
    assert convert("oasst", "demonstrations", *rows(root))[0].completion == "text a1"


def test_turns_come_in_the_published_order(rows: Rows) -> None:
    root = message("q", message("a1", message("q1", message("a2", message("q2")))), message("a3", message("q3")))
    assert [prompt.prompt_id for prompt in convert("oasst", "prompts", *rows(root))] == ["q", "q1", "q2", "q3"]


def test_a_reply_without_a_rank_stays_beside_ranked_ones(rows: Rows) -> None:
    (ranking,) = convert(
        "oasst", "rankings", *rows(message("q", message("a1", rank=0), message("a2"), message("a3", rank=1)))
    )
    assert ranking.ranks == [1, None, 2]


@pytest.mark.parametrize("removed", [{"deleted": True}, {"review_result": False}, {"text": " \n"}])
def test_a_removed_message_goes_with_all_that_hangs_below_it(rows: Rows, removed: dict[str, Any]) -> None:
    below = message("q2", message("a4"), message("a5", rank=0), message("a6", rank=1))
    root = message("q", message("a1", below, rank=0, **removed), message("a2", rank=1), message("a3", rank=2))
    assert [prompt.prompt_id for prompt in convert("oasst", "prompts", *rows(root))] == ["q"]
    (ranking,) = convert("oasst", "rankings", *rows(root))
    assert ranking.completions == ["text a2", "text a3"]
    assert convert("oasst", "prompts", *rows(message("q", message("a1"), **removed))) == []


def test_below_a_message_that_the_flat_rows_lack_nothing_is_read() -> None:
    rows = [row for row in flat(BEST_LAST) if row["message_id"] != "a2"]
    assert [prompt.prompt_id for prompt in convert("oasst", "prompts", *rows)] == ["q"]


def test_flat_rows_need_not_come_in_the_order_of_the_conversation() -> None:
    assert convert("oasst", "rankings", *reversed(flat(BEST_LAST)))[0].ranks == [1, 2]


def test_a_thread_longer_than_the_interpreter_recurses_is_read() -> None:
    root = {"message_id": "q0", "parent_id": None, "text": "x", "role": "prompter", "message_tree_id": "t"}
    rows = [root]
    for number in range(1, 3001):
        role = ("prompter", "assistant")[number % 2]
        rows.append(root | {"message_id": f"q{number}", "parent_id": f"q{number - 1}", "role": role})
    assert len(list(FORMATS["oasst"].convert["demonstrations"](rows))) == 1500


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([7], "expected a JSON object, found int"),
        ([{"prompt": {}}], "missing key 'message_tree_id'"),
        ([{"message_tree_id": "t", "prompt": "Why?"}], "'prompt' must be a message"),
        ([tree(message("q") | {"text": 3})], "'text' must be str"),
        ([tree(message("q", message("q2")))], "'role' must be 'assistant' here"),
        ([tree(message("a"))], "'role' must be 'prompter' here"),
        ([tree(message("q") | {"replies": "none"})], "'replies' must be list"),
        ([tree(message("q") | {"replies": ["none"]})], "'replies' must be a list of messages"),
        ([tree(message("q", message("a", rank="best")))], "'rank' must be an integer from 0 up, or null"),
        ([tree(message("q", message("a", rank=-1)))], "'rank' must be an integer from 0 up, or null, found -1"),
        (flat(BEST_LAST)[1:], "must follow one another and hold one without 'parent_id', found 0"),
        ([*flat(BEST_LAST), *flat(BEST_LAST)], "must follow one another and hold one without 'parent_id', found 2"),
    ],
)
def test_a_malformed_tree_is_refused_in_one_sentence(rows: list[Any], sentence: str) -> None:
    assert_refused(sentence, "oasst", "rankings", *rows)


def test_the_published_trees_give_what_counting_their_ranks_gives(shared_data: Callable[[str], Path]) -> None:
    file = shared_data("oasst/en_100_tree.jsonl")
    prompters: list[Node] = []

    def collect(node: Node) -> None:
        prompters.extend([node] if node["role"] == "prompter" else [])
        for reply in node["replies"]:
            collect(reply)

    for line in file.read_text(encoding="utf-8").splitlines():
        collect(json.loads(line)["prompt"])
    by_id = {node["message_id"]: node for node in prompters}
    ranked = {name: node for name, node in by_id.items() if sum("rank" in reply for reply in node["replies"]) >= 2}

    rankings = read_place("oasst", "rankings", file)
    assert {ranking.prompt_id for ranking in rankings} == set(ranked)
    assert sum(len(ranking.completions) >= 3 for ranking in rankings) == 155
    for ranking in rankings:
        replies = ranked[ranking.prompt_id]["replies"]
        assert ranking.prompt[-1]["content"] == ranked[ranking.prompt_id]["text"]
        assert dict(zip(ranking.completions, ranking.ranks, strict=True)) == {
            r["text"]: r["rank"] + 1 if "rank" in r else None for r in replies
        }
    assert len({ranking.user_id for ranking in rankings}) == 100

    assert len(read_place("oasst", "prompts", file)) == len(prompters) == 480
    demonstrations = read_place("oasst", "demonstrations", file)
    assert len(demonstrations) == len(ranked) + sum(len(node["replies"]) == 1 for node in prompters) == 252
    assert all(
        d.completion in [r["text"] for r in by_id[d.prompt_id]["replies"] if r.get("rank", 0) == 0]
        for d in demonstrations
    )


def test_the_published_trees_are_the_same_as_flat_rows(shared_data: Callable[[str], Path]) -> None:
    for line in shared_data("oasst/en_100_tree.jsonl").read_text(encoding="utf-8").splitlines():
        nested = json.loads(line)
        rows = [row | {"message_tree_id": nested["message_tree_id"]} for row in flat(nested["prompt"])]
        assert convert("oasst", "rankings", *rows) == convert("oasst", "rankings", nested)
        assert convert("oasst", "demonstrations", *rows) == convert("oasst", "demonstrations", nested)
