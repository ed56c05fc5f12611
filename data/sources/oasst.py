"""OpenAssistant Conversations: trees of messages by volunteers, with the replies to a message ranked by others. The
export has one tree a line with nested `prompt.replies`; in the Hub's data set the messages of a tree are consecutive
rows that name their `parent_id`.

Every turn of a prompter, with the conversation before it, is a prompt. It is a ranking if at least two of its replies
have a rank (from 0), and a demonstration by its best reply, or its only one. Deleted messages, messages that failed
review, and empty ones are left out with all replies below them. The tree is the user, since its messages share a start.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from data.messages import Message
from data.sources.convert import Answers, Convert, Fields, Role, Row, best, identifier, need, objects, ranked

SPEAKERS = {"prompter": "user", "assistant": "assistant"}
NEXT = {"prompter": "assistant", "assistant": "prompter"}
Replies = Callable[[Row], Sequence[Row]]


def _converter(part: Callable[[Answers], Fields | None]) -> Convert:
    """The converter of a tree's rows; `part` gives what a record adds to its prompt, or None to leave the turn out."""
    return lambda rows: [turn | more for turn, replies in _turns(rows) if (more := part(replies)) is not None]


def _turns(rows: Sequence[Row]) -> Iterator[tuple[Fields, Answers]]:
    """(the fields of a Prompt, the replies) of each of the prompter's turns; an only reply counts as ranked."""
    if "prompt" not in rows[0]:
        yield from _turns_of_tree(*_flat(rows))
        return
    for row in rows:
        yield from _turns_of_tree(identifier(row, "message_tree_id"), need(row, "prompt", dict, "a message"), _nested)


def _flat(rows: Sequence[Row]) -> tuple[str, Row, Replies]:
    """(the tree's id, its first message, message -> replies) of rows that name their parents."""
    tree_id = identifier(rows[0], "message_tree_id")
    children: dict[str, list[Row]] = defaultdict(list)
    roots = [row for row in rows if row.get("parent_id") is None]
    for row in rows:
        if row.get("parent_id") is not None:
            children[identifier(row, "parent_id")].append(row)
    if len(roots) != 1:
        rule = f"the rows of message tree {tree_id!r} must follow one another and hold one without 'parent_id'"
        raise ValueError(f"{rule}, found {len(roots)}")
    return tree_id, roots[0], lambda message: children.get(identifier(message, "message_id"), [])


def _nested(message: Row) -> Sequence[Row]:
    return [] if message.get("replies") is None else objects(message, "replies", "'replies' must be a list of messages")


def _turns_of_tree(tree_id: str, root: Row, replies_to: Replies) -> Iterator[tuple[Fields, Answers]]:
    """The prompter's turns, each before those below it. Not recursive, since a thread may be long."""
    pending: list[tuple[list[Message], Row, str]] = [([], root, "prompter")] if _usable(root) else []
    seen: set[str] = set()
    while pending:
        before, message, role = pending.pop()
        message_id = identifier(message, "message_id")
        if message_id in seen:
            raise ValueError(f"message {message_id!r} stands twice in tree {tree_id!r}")
        seen.add(message_id)
        if need(message, "role", str) != role:
            why = "as speakers alternate from the prompter on"
            raise ValueError(f"'role' must be {role!r} here, {why}, found {message['role']!r}")
        turns = [*before, Message(role=SPEAKERS[role], content=need(message, "text", str))]
        replies = [reply for reply in replies_to(message) if _usable(reply)]
        if role == "prompter":
            fields = {"prompt": turns, "prompt_id": message_id, "user_id": tree_id}
            answers = [(need(reply, "text", str), _rank(reply)) for reply in replies]
            yield fields, answers if len(answers) > 1 else [(text, 1) for text, _ in answers]
        pending += [(turns, reply, NEXT[role]) for reply in reversed(replies)]


def _usable(message: Row) -> bool:
    kept = not message.get("deleted") and message.get("review_result") is not False
    return kept and bool(need(message, "text", str).strip())


def _rank(reply: Row) -> int | None:
    if reply.get("rank") is None:
        return None
    rank = need(reply, "rank", int, "an integer from 0 up, or null")
    if rank < 0:
        raise ValueError(f"'rank' must be an integer from 0 up, or null, found {rank}")
    return rank + 1


CONVERT: dict[Role, Convert] = {
    "demonstrations": _converter(best), "prompts": _converter(lambda _: {}), "rankings": _converter(ranked),
}  # fmt: skip
