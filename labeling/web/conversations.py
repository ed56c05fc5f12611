"""The playground's prompts, answers and judgments, in the web app's SQLite file.

A prompt is on the disk when `ask` returns, before a model answers it. A deleted conversation is overwritten with zeros.
"""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from data.messages import Message
from data.records import Prompt, Ranking, to_row
from labeling.web.people import hashed
from labeling.web.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS consents (name TEXT PRIMARY KEY REFERENCES people, accepted REAL NOT NULL);
CREATE TABLE IF NOT EXISTS turns (
  id INTEGER PRIMARY KEY AUTOINCREMENT, conversation INTEGER NOT NULL, name TEXT NOT NULL REFERENCES people,
  form TEXT UNIQUE NOT NULL, record TEXT NOT NULL);
"""


class AbsentError(ValueError):
    """The person does not have this conversation, or has deleted it."""


@dataclass
class Answer:
    """An answer of a model."""

    model: str
    generation: dict[str, Any]
    """Settings and seed."""
    state: str = "waiting"
    """`waiting` for the model; then `complete`, `cut off` at the maximum length, or `stopped` by the person,
    who may have left the page or lost the connection."""
    text: str = ""
    digest: str = ""
    """Digest of the stage's result that holds the model, as in the manifests of later stages."""
    thumb: str = ""
    """`up`, `down`, or empty."""


@dataclass
class Turn:
    """A prompt and its answers, which are shown side by side."""

    user_id: str
    messages: list[Message]
    """The conversation up to and including the prompt, as the models get it."""
    answers: list[Answer]
    asked: float = field(default_factory=time.time)
    ranks: list[int] = field(default_factory=list)
    """Ranks of the answers, 1 is best; empty until the person has judged."""
    id: int = 0
    conversation: int = 0

    @property
    def waiting(self) -> bool:
        """Whether an answer is missing."""
        return any(answer.state == "waiting" for answer in self.answers)

    @property
    def reply(self) -> str:
        """The answer that continues the conversation: the best that is not empty, the first of several."""
        ranked = zip(self.ranks or [1] * len(self.answers), range(len(self.answers)), strict=True)
        return next((self.answers[place].text for _, place in sorted(ranked) if self.answers[place].text), "")

    @property
    def prompt(self) -> Prompt:
        """The record of the prompt."""
        return Prompt(prompt=self.messages, user_id=self.user_id)

    @property
    def ranking(self) -> Ranking | None:
        """The record of the judgment; None without one, or if the answers are equal."""
        texts = [answer.text for answer in self.answers]
        if not self.ranks or len(set(texts)) < len(texts):
            return None
        ended, who = [answer.state == "complete" for answer in self.answers], self.user_id
        return Ranking(
            **vars(self.prompt), completions=texts, complete=ended, ranks=[*self.ranks], labeler="human", labeler_id=who
        )


class Conversations:
    """The conversations in a store. Raises AbsentError for those of other people, whether they exist or not."""

    def __init__(self, store: Store) -> None:
        self.store = store
        with store.connected() as db:
            db.executescript(SCHEMA)

    def accept(self, name: str) -> None:
        """Stores that a person has accepted the notice, and when."""
        with self.store.connected(write=True) as db:
            db.execute("INSERT OR IGNORE INTO consents VALUES (?, ?)", (name, time.time()))

    def accepted(self, name: str) -> bool:
        """Whether a person has accepted the notice."""
        with self.store.connected() as db:
            return db.execute("SELECT 1 FROM consents WHERE name = ?", (name,)).fetchone() is not None

    def ask(self, name: str, prompt: str, answers: Sequence[Answer], form: str, conversation: int | None) -> Turn:
        """Stores a prompt with the answers that are to be generated.

        Args:
            form: a random text of the form, so that a form that is sent twice is stored once.
            conversation: the conversation that the prompt continues; None begins one.
        """
        form = hashed(json.dumps([name, form, prompt]))
        with self.store.connected(write=True) as db:
            if sent := self._turns(db, "form = ?", form):
                return sent[0]
            messages = list[Message]()
            earlier = [] if conversation is None else self._own(db, name, conversation)
            if answered := [turn for turn in earlier if turn.reply]:
                messages = [*answered[-1].messages, {"role": "assistant", "content": answered[-1].reply}]
            turn = Turn(name, [*messages, {"role": "user", "content": prompt}], list(answers))
            values = (conversation or secrets.randbits(50), name, form, json.dumps(asdict(turn), ensure_ascii=False))
            made = db.execute("INSERT INTO turns (conversation, name, form, record) VALUES (?, ?, ?, ?)", values)
            return self._turns(db, "id = ?", made.lastrowid)[0]

    def turns(self, name: str, conversation: int | None = None, number: int | None = None) -> list[Turn]:
        """All turns of a person in the order of asking, or those of one conversation, or one turn."""
        with self.store.connected() as db:
            return self._own(db, name, conversation, number)

    @contextmanager
    def changed(self, name: str, number: int) -> Iterator[Turn]:
        """A person's turn; changes to it are stored at the end of the block."""
        with self.store.connected(write=True) as db:
            (turn,) = self._own(db, name, None, number)
            yield turn
            record = json.dumps(asdict(turn), ensure_ascii=False)
            db.execute("UPDATE turns SET record = ? WHERE id = ?", (record, number))

    def delete(self, name: str, conversation: int) -> None:
        """Deletes a person's conversation; its text is no longer in the file when this returns."""
        self.turns(name, conversation)
        with self.store.connected(write=True) as db:
            db.execute("DELETE FROM turns WHERE conversation = ? AND name = ?", (conversation, name))
        with self.store.connected() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the write-ahead log has the text, too

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of the export: `prompts` and `rankings` for training, and everything in `conversations`."""
        with self.store.connected() as db:
            turns = self._turns(db, "true")
        return {
            "prompts": [to_row(turn.prompt) for turn in turns],
            "rankings": [to_row(ranking) for turn in turns if (ranking := turn.ranking) is not None],
            "conversations": [asdict(turn) for turn in turns],
        }

    def _own(self, db: Any, name: str, conversation: int | None, number: int | None = None) -> list[Turn]:
        wanted = "name = ? AND conversation = coalesce(?, conversation) AND id = coalesce(?, id)"
        found = self._turns(db, wanted, name, conversation, number)
        if not found and (conversation, number) != (None, None):
            raise AbsentError("there is no such conversation")
        return found

    def _turns(self, db: Any, condition: str, *values: Any) -> list[Turn]:
        rows = db.execute(f"SELECT id, conversation, record FROM turns WHERE {condition} ORDER BY id", values)
        found = [{**json.loads(row["record"]), "id": row["id"], "conversation": row["conversation"]} for row in rows]
        return [Turn(**turn | {"answers": [Answer(**answer) for answer in turn["answers"]]}) for turn in found]
