"""OpenAssistant Conversations: trees of messages by volunteers, the replies to a message ranked by others.

Two published shapes, told apart row by row: the export file, one tree a line with nested `prompt.replies` (human `rank`
from 0), and the flat rows of the Hub's data set, where the messages of a tree follow one another and name their
`parent_id`.

Every turn of a prompter, with all that was said before it, is a prompt. It is a ranking where at least two of its
replies have a rank, and a demonstration by its best reply, or its only one. Deleted messages, messages that failed
review, and empty ones are left out with all that hangs below them. Messages of a tree share its beginning, so the tree
is the user: a split never cuts one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.messages import Message
from data.sources.adapter import Adapter, Row, identifier, need, together

SPEAKERS = {"prompter": "user", "assistant": "assistant"}
NEXT = {"prompter": "assistant", "assistant": "prompter"}
Replies = Callable[[Row], Sequence[Row]]


@dataclass(frozen=True)
class Turn:
    """What a prompter said, after what, and what was answered."""

    record: dict[str, Any]
    """The fields of a Prompt."""
    replies: list[tuple[str, int | None]]
    """(text, rank from 1) of each answer."""


def _turns(rows: Sequence[Row]) -> Iterator[Turn]:
    if "prompt" not in rows[0]:
        yield from _turns_of_tree(*_flat(rows))
        return
    for row in rows:
        yield from _turns_of_tree(identifier(row, "message_tree_id"), need(row, "prompt", dict, "a message"), _nested)


def _flat(rows: Sequence[Row]) -> tuple[str, Row, Replies]:
    """(tree's id, its first message, message -> replies) from rows that name their parents.

    A message whose parent is missing cannot be reached from the first one, and so is left out, as below a deleted
    message.
    """
    tree_id = identifier(rows[0], "message_tree_id")
    children: dict[str, list[Row]] = defaultdict(list)
    roots = []
    for row in rows:
        if row.get("parent_id") is None:
            roots.append(row)
        else:
            children[identifier(row, "parent_id")].append(row)
    if len(roots) != 1:
        raise ValueError(
            f"the rows of message tree {tree_id!r} must follow one another and hold one without 'parent_id', found "
            f"{len(roots)}"
        )
    return tree_id, roots[0], lambda message: children.get(identifier(message, "message_id"), [])


def _nested(message: Row) -> Sequence[Row]:
    replies = [] if message.get("replies") is None else need(message, "replies", list)
    if not all(isinstance(reply, dict) for reply in replies):
        raise ValueError("'replies' must be a list of messages")
    return replies


def _turns_of_tree(tree_id: str, root: Row, replies_to: Replies) -> Iterator[Turn]:
    """The prompter's turns, each before what follows it. A loop rather than a recursion: a thread may be long."""
    pending: list[tuple[list[Message], Row, str]] = [([], root, "prompter")] if _usable(root) else []
    seen: set[str] = set()
    while pending:
        before, message, role = pending.pop()
        identity = identifier(message, "message_id")
        if identity in seen:
            raise ValueError(f"message {identity!r} stands twice in tree {tree_id!r}")
        seen.add(identity)
        if need(message, "role", str) != role:
            raise ValueError(
                f"'role' must be {role!r} here, as speakers alternate from the prompter on, found {message['role']!r}"
            )
        said = [*before, Message(role=SPEAKERS[role], content=need(message, "text", str))]
        replies = [reply for reply in replies_to(message) if _usable(reply)]
        if role == "prompter":
            record = {"prompt": said, "prompt_id": identifier(message, "message_id"), "user_id": tree_id}
            yield Turn(record, [(need(reply, "text", str), _rank(reply)) for reply in replies])
        pending += [(said, reply, NEXT[role]) for reply in reversed(replies)]


def _usable(message: Row) -> bool:
    return (
        not message.get("deleted")
        and message.get("review_result") is not False
        and bool(need(message, "text", str).strip())
    )


def _rank(reply: Row) -> int | None:
    if reply.get("rank") is None:
        return None
    rank = need(reply, "rank", int, "an integer from 0 up, or null")
    if rank < 0:
        raise ValueError(f"'rank' must be an integer from 0 up, or null, found {rank}")
    return rank + 1


def _prompts(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    return (turn.record for turn in _turns(rows))


def _demonstrations(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    for turn in _turns(rows):
        ranked = [(rank, text) for text, rank in turn.replies if rank is not None]
        if ranked:
            yield turn.record | {"completion": min(ranked, key=lambda reply: reply[0])[1]}
        elif len(turn.replies) == 1:
            yield turn.record | {"completion": turn.replies[0][0]}


def _rankings(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    for turn in _turns(rows):
        if sum(rank is not None for _, rank in turn.replies) > 1:
            texts, ranks = zip(*turn.replies, strict=True)
            yield turn.record | {"completions": list(texts), "ranks": list(ranks)}


ADAPTER = Adapter(
    name="oasst",
    keys=(("message_tree_id",),),
    about="OpenAssistant Conversations, human replies ranked by humans (Apache-2.0)",
    convert={
        "demonstrations": together(_demonstrations),
        "prompts": together(_prompts),
        "rankings": together(_rankings),
    },
    hub="OpenAssistant/oasst1",
    group=lambda row: str(row.get("message_tree_id")),
)
