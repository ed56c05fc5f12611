"""The labelers, tasks and labels of the web app in one SQLite file.

A label is durable when `save` returns. Labels are never overwritten: a correction is a new revision, and the last one
counts. Only `claim` gives out tasks, in a transaction that holds the write lock, so that two labelers never get the
same slot of a task.
"""

import hashlib
import json
import random
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.records import Samples, parse, to_row

SCHEMA = """
CREATE TABLE IF NOT EXISTS people (name TEXT PRIMARY KEY, token TEXT UNIQUE NOT NULL, admin INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
  token TEXT PRIMARY KEY, name TEXT NOT NULL REFERENCES people, csrf TEXT NOT NULL, ends REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
  id INTEGER PRIMARY KEY, digest TEXT UNIQUE NOT NULL, record TEXT NOT NULL, slots INTEGER NOT NULL, gold TEXT);
CREATE TABLE IF NOT EXISTS claims (
  task INTEGER NOT NULL REFERENCES tasks, name TEXT NOT NULL REFERENCES people, shown TEXT NOT NULL,
  since REAL NOT NULL, PRIMARY KEY (task, name));
CREATE TABLE IF NOT EXISTS labels (
  task INTEGER NOT NULL REFERENCES tasks, name TEXT NOT NULL REFERENCES people, revision INTEGER NOT NULL,
  label TEXT NOT NULL, saved REAL NOT NULL, PRIMARY KEY (task, name, revision));
CREATE VIEW IF NOT EXISTS last_labels AS SELECT * FROM labels l WHERE revision = (
  SELECT max(revision) FROM labels o WHERE o.task = l.task AND o.name = l.name);
CREATE VIEW IF NOT EXISTS open_claims AS SELECT * FROM claims c WHERE NOT EXISTS (
  SELECT 1 FROM labels l WHERE l.task = c.task AND l.name = c.name);
CREATE VIEW IF NOT EXISTS own_tasks AS SELECT c.task, c.name, c.shown, c.since, t.record FROM claims c
  JOIN tasks t ON t.id = c.task;
"""
CLAIM_SECONDS = 2 * 3600
"""A task that was claimed and not labelled for so long is given to others, too; who claimed it can still save."""
SESSION_SECONDS = 12 * 3600


class StoreError(ValueError):
    """The file cannot be read or written."""


@dataclass(frozen=True)
class Label:
    """A labeler's judgment of one task; ranks and ratings are in the order of the task's answers."""

    ranks: list[int | None] = field(default_factory=list)
    """1 is best, equal ranks are ties, None is not ranked."""
    ratings: list[dict[str, Any]] = field(default_factory=list)
    """Quality and flags of each answer (table 3)."""
    skipped: str = ""
    """The reason, if the task was skipped."""
    demonstration: str = ""
    """An answer that the labeler wrote."""
    seconds: float = 0.0
    """From the first view of the task until it was saved."""


@dataclass(frozen=True)
class Task:
    """A prompt with its answers, as one labeler sees it."""

    id: int
    samples: Samples
    shown: list[int]
    """The places of the answers in the order in which this labeler sees them."""
    since: float
    label: Label | None = None
    """What this labeler has saved."""
    revision: int = 0
    draft: Label | None = None
    """What is in a form that could not be saved."""


@dataclass(frozen=True)
class Session:
    """A person who has signed in."""

    name: str
    csrf: str
    admin: bool


class Store:
    """The SQLite file. Each call opens its own connection, so that threads and processes can share a store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with self._connected() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(SCHEMA)

    @contextmanager
    def _connected(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction; `write` takes the write lock at its start."""
        try:
            db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from None
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA synchronous=FULL")  # saved means on the disk, also after a power failure
            db.execute("PRAGMA foreign_keys=ON")
            if write:
                db.execute("BEGIN IMMEDIATE")
            yield db
            if write:
                db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{self.path}: {error}") from None
            raise
        finally:
            db.close()

    # People.

    def invite(self, name: str, admin: bool = False) -> str:
        """A new invitation token for a person, in place of an older one; only its hash is stored.

        Raises ValueError for a name that could not be shown.
        """
        if not name.strip() or len(name) > 100 or not name.isprintable():
            raise ValueError("the name of a person has 1 to 100 printable characters")
        token = secrets.token_urlsafe(24)
        with self._connected(write=True) as db:
            db.execute(
                "INSERT INTO people VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET token=excluded.token, "
                "admin=excluded.admin",
                (name, hashed(token), int(admin)),
            )
            db.execute("DELETE FROM sessions WHERE name = ?", (name,))
        return token

    def sign_in(self, token: str) -> str | None:
        """A new session's secret for the owner of an invitation token; None for an unknown one."""
        secret = secrets.token_urlsafe(24)
        with self._connected(write=True) as db:
            row = db.execute("SELECT name FROM people WHERE token = ?", (hashed(token),)).fetchone()
            if row is None:
                return None
            db.execute("DELETE FROM sessions WHERE ends < ?", (time.time(),))
            values = (hashed(secret), row["name"], secrets.token_urlsafe(24), time.time() + SESSION_SECONDS)
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", values)
        return secret

    def session(self, secret: str) -> Session | None:
        """The session of a secret; None if there is none or it has ended."""
        with self._connected() as db:
            row = db.execute(
                "SELECT s.name, csrf, admin FROM sessions s JOIN people p USING (name) WHERE s.token = ? AND ends > ?",
                (hashed(secret), time.time()),
            ).fetchone()
        return None if row is None else Session(row["name"], row["csrf"], bool(row["admin"]))

    def sign_out(self, secret: str) -> None:
        """Ends a session."""
        with self._connected(write=True) as db:
            db.execute("DELETE FROM sessions WHERE token = ?", (hashed(secret),))

    # Tasks.

    def add(self, samples: Sequence[Samples], slots: Sequence[int], gold: Sequence[Sequence[int | None] | None]) -> int:
        """Makes these the tasks to be labelled, and returns the number of new ones. All others keep their labels, but
        are not given out any more.

        Args:
            slots: how many labelers each task is for.
            gold: the right ranks of tasks that screen labelers, None for others.
        """
        rows = []
        for record, count, right in zip(samples, slots, gold, strict=True):
            text = json.dumps(to_row(record), ensure_ascii=False, sort_keys=True)
            rows.append((hashed(text), text, count, None if right is None else json.dumps(right)))
        with self._connected(write=True) as db:
            before = db.execute("SELECT count(*) FROM tasks").fetchone()[0]
            db.execute("UPDATE tasks SET slots = 0")
            db.executemany(
                "INSERT INTO tasks (digest, record, slots, gold) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (digest) DO UPDATE SET slots = excluded.slots, gold = excluded.gold",
                rows,
            )
            return int(db.execute("SELECT count(*) FROM tasks").fetchone()[0]) - before

    def claim(self, name: str) -> Task | None:
        """The task that a labeler has open, or else the next one with a free slot; None if nothing is left.

        Tasks that others have begun or labelled come first, so that overlap is reached early.
        """
        now = time.time()
        with self._connected(write=True) as db:
            fresh = now - CLAIM_SECONDS
            row = db.execute(
                "SELECT task FROM open_claims JOIN tasks ON id = task WHERE name = ? AND since > ? AND slots > 0",
                (name, fresh),
            ).fetchone()
            if row is None:
                row = db.execute(
                    "SELECT id AS task, record FROM tasks LEFT JOIN claims c ON task = id AND (since > ? OR "
                    "EXISTS (SELECT 1 FROM labels l WHERE l.task = c.task AND l.name = c.name)) "
                    "WHERE id NOT IN (SELECT task FROM labels WHERE name = ?) "
                    "GROUP BY id HAVING count(name) < slots ORDER BY gold IS NULL, count(name) DESC, id",
                    (fresh, name),
                ).fetchone()
                if row is None:
                    return None
                shown = list(range(len(json.loads(row["record"])["completions"])))
                random.Random(f"{name} {row['task']}").shuffle(shown)
                db.execute(
                    "INSERT INTO claims VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (task, name) DO UPDATE SET since = excluded.since",
                    (row["task"], name, json.dumps(shown), now),
                )
            return self._task(db, row["task"], name)

    def task(self, number: int, name: str) -> Task | None:
        """A task that a labeler has claimed; None for others."""
        with self._connected() as db:
            return self._task(db, number, name)

    def last(self, name: str) -> Task | None:
        """The task that a labeler labelled last."""
        with self._connected() as db:
            row = db.execute("SELECT task FROM labels WHERE name = ? ORDER BY rowid DESC", (name,)).fetchone()
            return None if row is None else self._task(db, row["task"], name)

    def _task(self, db: sqlite3.Connection, number: int, name: str) -> Task | None:
        row = db.execute("SELECT * FROM own_tasks WHERE task = ? AND name = ?", (number, name)).fetchone()
        if row is None:
            return None
        last = db.execute("SELECT * FROM last_labels WHERE task = ? AND name = ?", (number, name)).fetchone()
        return Task(
            number,
            parse(json.loads(row["record"]), Samples),
            json.loads(row["shown"]),
            row["since"],
            None if last is None else Label(**json.loads(last["label"])),
            0 if last is None else last["revision"],
        )

    # Labels.

    def save(self, number: int, name: str, label: Label, revision: int) -> bool:
        """Saves a label of a task that the labeler has claimed; True once it is on the disk.

        Args:
            revision: of the label that the page showed, 0 for none. False if another one was saved since; the same
                label again is no conflict, so that a form can be sent twice.
        """
        with self._connected(write=True) as db:
            task = self._task(db, number, name)
            if task is None:
                raise ValueError(f"the task {number} is not one that {name} has opened")
            assert len(label.ranks) in (0, len(task.shown)), "label_of"
            assert len(label.ratings) in (0, len(task.shown)), "label_of"
            if task.label is not None and same(task.label, label):
                return True
            if task.revision != revision:
                return False
            values = (number, name, revision + 1, json.dumps(asdict(label), ensure_ascii=False), time.time())
            db.execute("INSERT INTO labels VALUES (?, ?, ?, ?, ?)", values)
        return True

    def labels(self) -> Iterator[tuple[str, Samples, Label, float]]:
        """(labeler, task, label, time of saving) of the last revision of each label, in the order of saving; without
        gold tasks.
        """
        with self._connected() as db:
            rows = db.execute(
                "SELECT name, record, label, saved FROM last_labels l JOIN tasks t ON t.id = l.task "
                "WHERE gold IS NULL ORDER BY l.saved, task"
            ).fetchall()
        for name, record, label, saved in rows:
            yield name, parse(json.loads(record), Samples), Label(**json.loads(label)), saved

    def golds(self) -> dict[str, list[tuple[list[int | None], Label]]]:
        """Labeler -> (right ranks, label) of the gold tasks that she labelled."""
        with self._connected() as db:
            rows = db.execute(
                "SELECT name, gold, label FROM last_labels l JOIN tasks t ON t.id = l.task WHERE gold IS NOT NULL"
            ).fetchall()
        found: dict[str, list[tuple[list[int | None], Label]]] = {}
        for name, gold, label in rows:
            found.setdefault(name, []).append((json.loads(gold), Label(**json.loads(label))))
        return found

    def progress(self, name: str | None = None) -> dict[str, int]:
        """Numbers of slots, of labelled ones (both without gold tasks), of all tasks, and of a labeler's own labels."""
        with self._connected() as db:
            slots = db.execute("SELECT coalesce(sum(slots), 0) FROM tasks WHERE gold IS NULL").fetchone()[0]
            tasks = db.execute("SELECT count(*) FROM tasks WHERE slots > 0").fetchone()[0]
            done = db.execute(
                "SELECT count(*) FROM last_labels l JOIN tasks t ON t.id = l.task WHERE gold IS NULL AND slots > 0"
            ).fetchone()[0]
            own = db.execute("SELECT count(*) FROM last_labels WHERE name = ?", (name,)).fetchone()[0]
        return {"slots": slots, "done": done, "own": own, "tasks": tasks}

    def people(self) -> list[tuple[str, bool]]:
        """(name, is an admin) of everybody who was invited."""
        with self._connected() as db:
            rows = db.execute("SELECT name, admin FROM people ORDER BY name").fetchall()
        return [(name, bool(admin)) for name, admin in rows]


def hashed(text: str) -> str:
    """SHA-256. Tokens are random, so that no slow hash is needed."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def same(one: Label, other: Label) -> bool:
    """Whether two labels say the same, however long they took."""
    return {**asdict(one), "seconds": 0.0} == {**asdict(other), "seconds": 0.0}
