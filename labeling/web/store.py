"""The tasks of the web app, and what people said about them, in its SQLite file.

A label is durable when `save` returns. Labels are never overwritten: a correction is a new revision, and the last one
counts. Only `claim` gives out tasks, in a transaction that holds the write lock, so that two labelers never get the
same slot of a task.
"""

import json
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.records import Samples, parse, to_row
from labeling.web.people import People, hashed

SCHEMA = """
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
MOMENT = 1e-6
"""Seconds that two times of saving differ by at least; labels of the same time are ordered by their text."""


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
class Saved:
    """A stored label, with its labeler, its task and the time of saving."""

    name: str
    samples: Samples
    label: Label
    saved: float
    gold: list[int | None] | None = None
    """The right ranks, if the task screens labelers."""


class Store(People):
    """The people with their tasks and labels."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self.connected() as db:
            db.executescript(SCHEMA)

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
            text = text_of(record)
            rows.append((hashed(text), text, count, None if right is None else json.dumps(right)))
        with self.connected(write=True) as db:
            before = db.execute("SELECT count(*) FROM tasks").fetchone()[0]
            db.execute("UPDATE tasks SET slots = 0")
            db.executemany(
                "INSERT INTO tasks (digest, record, slots, gold) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (digest) DO UPDATE SET slots = excluded.slots, gold = excluded.gold",
                rows,
            )
            return int(db.execute("SELECT count(*) FROM tasks").fetchone()[0]) - before

    def assigns(self, samples: Sequence[Samples]) -> bool:
        """Whether the assigned tasks are these, apart from gold tasks."""
        with self.connected() as db:
            rows = db.execute("SELECT record, gold IS NULL AS own FROM tasks WHERE slots > 0").fetchall()
        texts = set(map(text_of, samples))
        return {row["record"] for row in rows if row["own"]} <= texts <= {row["record"] for row in rows}

    def claim(self, name: str) -> Task | None:
        """The task that a labeler has open, or else the next one with a free slot; None if nothing is left.

        Tasks that others have begun or labelled come first, so that overlap is reached early.
        """
        now = time.time()
        with self.connected(write=True) as db:
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
                shown = _order(row["task"], name, len(json.loads(row["record"])["completions"]))
                db.execute(
                    "INSERT INTO claims VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (task, name) DO UPDATE SET since = excluded.since",
                    (row["task"], name, json.dumps(shown), now),
                )
            return self._task(db, row["task"], name)

    def task(self, number: int, name: str) -> Task | None:
        """A task that a labeler has claimed; None for others."""
        with self.connected() as db:
            return self._task(db, number, name)

    def last(self, name: str) -> Task | None:
        """The task that a labeler labelled last."""
        with self.connected() as db:
            row = db.execute("SELECT task FROM labels WHERE name = ? ORDER BY saved DESC", (name,)).fetchone()
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
        with self.connected(write=True) as db:
            task = self._task(db, number, name)
            if task is None:
                raise ValueError(f"the task {number} is not one that {name} has opened")
            assert len(label.ranks) in (0, len(task.shown)), "label_of"
            assert len(label.ratings) in (0, len(task.shown)), "label_of"
            if task.label is not None and same(task.label, label):
                return True
            if task.revision != revision:
                return False
            # The clock may have been set back, and a correction must be later than what it corrects.
            now = max([time.time(), *(saved + MOMENT for _, saved in _kept(db, number, name))])
            values = (number, name, revision + 1, json.dumps(asdict(label), ensure_ascii=False), now)
            db.execute("INSERT INTO labels VALUES (?, ?, ?, ?, ?)", values)
        return True

    def merge(self, found: Iterable[Saved]) -> int:
        """Adds labels of another store, all or none, and returns the number of new ones. A labeler's labels of a task
        become one history in the order of saving, of which the latest counts. New tasks are not assigned, and new
        labelers are not invited.
        """
        new = 0
        with self.connected(write=True) as db:
            for one in found:
                text, gold = text_of(one.samples), None if one.gold is None else json.dumps(one.gold)
                db.execute("INSERT OR IGNORE INTO people VALUES (?, ?, 0)", (one.name, f"- {one.name}"))
                db.execute("INSERT OR IGNORE INTO tasks (digest, record, slots, gold) VALUES (?, ?, 0, ?)",
                           (hashed(text), text, gold))  # fmt: skip
                task = db.execute("SELECT id FROM tasks WHERE digest = ?", (hashed(text),)).fetchone()["id"]
                shown = json.dumps(_order(task, one.name, len(one.samples.completions)))
                db.execute("INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?)", (task, one.name, shown, one.saved))
                kept, label = _kept(db, task, one.name), (json.dumps(asdict(one.label), ensure_ascii=False), one.saved)
                if label not in kept:
                    new += 1
                    history = enumerate(sorted([*kept, label], key=lambda row: (row[1], row[0])), start=1)
                    db.execute("DELETE FROM labels WHERE task = ? AND name = ?", (task, one.name))
                    rows = [(task, one.name, revision, *row) for revision, row in history]
                    db.executemany("INSERT INTO labels VALUES (?, ?, ?, ?, ?)", rows)
        return new

    def history(self, last: bool = False) -> Iterator[Saved]:
        """All labels in the order of saving, also of gold tasks; `last` leaves out those that were corrected."""
        with self.connected() as db:
            rows = db.execute(
                f"SELECT name, record, label, saved, gold FROM {'last_labels' if last else 'labels'} l "
                "JOIN tasks t ON t.id = l.task ORDER BY l.saved, digest, name, revision"
            ).fetchall()
        yield from map(_saved, rows)

    def tasks(self) -> list[tuple[Samples, list[Saved]]]:
        """The tasks that are assigned or labelled, each with the last label of each labeler; without gold tasks."""
        labels = [one for one in self.history(last=True) if one.gold is None]
        with self.connected() as db:
            rows = db.execute(
                "SELECT record FROM tasks WHERE gold IS NULL AND (slots > 0 OR id IN (SELECT task FROM labels))"
            ).fetchall()
        found = {row["record"]: (parse(json.loads(row["record"]), Samples), list[Saved]()) for row in rows}
        for one in labels:
            found[text_of(one.samples)][1].append(one)
        return list(found.values())

    def labels(self) -> Iterator[tuple[str, Samples, Label, float]]:
        """(labeler, task, label, time of saving) of the last revisions in the order of saving, without gold tasks."""
        return ((one.name, one.samples, one.label, one.saved) for one in self.history(last=True) if one.gold is None)

    def golds(self) -> dict[str, list[tuple[list[int | None], Label]]]:
        """Labeler -> (right ranks, label) of the gold tasks that she labelled."""
        found: dict[str, list[tuple[list[int | None], Label]]] = {}
        for one in self.history(last=True):
            if one.gold is not None:
                found.setdefault(one.name, []).append((one.gold, one.label))
        return found

    def progress(self, name: str | None = None) -> dict[str, int]:
        """Numbers of slots, of labelled ones (both without gold tasks), of all tasks, and of a labeler's own labels."""
        with self.connected() as db:
            slots = db.execute("SELECT coalesce(sum(slots), 0) FROM tasks WHERE gold IS NULL").fetchone()[0]
            tasks = db.execute("SELECT count(*) FROM tasks WHERE slots > 0").fetchone()[0]
            done = db.execute(
                "SELECT coalesce(sum(min(slots, (SELECT count(*) FROM last_labels WHERE task = id))), 0) FROM tasks "
                "WHERE gold IS NULL"
            ).fetchone()[0]
            own = db.execute("SELECT count(*) FROM last_labels WHERE name = ?", (name,)).fetchone()[0]
        return {"slots": slots, "done": done, "own": own, "tasks": tasks}


def _kept(db: sqlite3.Connection, task: int, name: str) -> list[tuple[str, float]]:
    """(label, time of saving) of each revision."""
    query = "SELECT label, saved FROM labels WHERE task = ? AND name = ? ORDER BY revision"
    return [(row["label"], row["saved"]) for row in db.execute(query, (task, name))]


def _saved(row: sqlite3.Row) -> Saved:
    gold = None if row["gold"] is None else json.loads(row["gold"])
    samples, label = parse(json.loads(row["record"]), Samples), Label(**json.loads(row["label"]))
    return Saved(row["name"], samples, label, row["saved"], gold)


def _order(task: int, name: str, answers: int) -> list[int]:
    """The indices of a task's answers in the order in which a labeler sees them."""
    shown = list(range(answers))
    random.Random(f"{name} {task}").shuffle(shown)
    return shown


def text_of(samples: Samples) -> str:
    """A task as the store keeps it."""
    return json.dumps(to_row(samples), ensure_ascii=False, sort_keys=True)


def same(one: Label, other: Label) -> bool:
    """Whether two labels say the same, however long they took."""
    return {**asdict(one), "seconds": 0.0} == {**asdict(other), "seconds": 0.0}
