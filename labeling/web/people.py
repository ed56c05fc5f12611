"""The SQLite file of the web app, with the people who were invited and their sessions."""

import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS people (name TEXT PRIMARY KEY, token TEXT UNIQUE NOT NULL, admin INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
  token TEXT PRIMARY KEY, name TEXT NOT NULL REFERENCES people, csrf TEXT NOT NULL, ends REAL NOT NULL);
"""
SESSION_SECONDS = 12 * 3600


class StoreError(ValueError):
    """The file cannot be read or written."""


@dataclass(frozen=True)
class Session:
    """A person who has signed in."""

    name: str
    csrf: str
    admin: bool


class People:
    """The file. Each call opens its own connection, so that threads and processes can share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with self.connected() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(SCHEMA)

    @contextmanager
    def connected(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction; `write` takes the write lock at its start."""
        try:
            db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from None
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA synchronous=FULL")  # saved means on the disk, also after a power failure
            db.executescript("PRAGMA foreign_keys=ON; PRAGMA secure_delete=ON")  # deleted text is overwritten
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

    def copy_to(self, path: Path) -> None:
        """Writes a copy, with the invitations but nobody signed in, to a new file, also while others use this one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        with self.connected() as db, closing(sqlite3.connect(partial)) as copy:
            db.backup(copy)
            copy.execute("DELETE FROM sessions")
            copy.commit()
        os.replace(partial, path)

    def invite(self, name: str, admin: bool = False) -> str:
        """A new invitation token for a person, in place of an older one; only its hash is stored.

        Raises ValueError for a name that could not be shown.
        """
        check_name(name)
        token = secrets.token_urlsafe(24)
        with self.connected(write=True) as db:
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
        with self.connected(write=True) as db:
            row = db.execute("SELECT name FROM people WHERE token = ?", (hashed(token),)).fetchone()
            if row is None:
                return None
            db.execute("DELETE FROM sessions WHERE ends < ?", (time.time(),))
            values = (hashed(secret), row["name"], secrets.token_urlsafe(24), time.time() + SESSION_SECONDS)
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", values)
        return secret

    def session(self, secret: str) -> Session | None:
        """The session of a secret; None if there is none or it has ended."""
        with self.connected() as db:
            row = db.execute(
                "SELECT s.name, csrf, admin FROM sessions s JOIN people p USING (name) WHERE s.token = ? AND ends > ?",
                (hashed(secret), time.time()),
            ).fetchone()
        return None if row is None else Session(row["name"], row["csrf"], bool(row["admin"]))

    def sign_out(self, secret: str) -> None:
        """Ends a session."""
        with self.connected(write=True) as db:
            db.execute("DELETE FROM sessions WHERE token = ?", (hashed(secret),))

    def people(self) -> list[tuple[str, bool]]:
        """(name, is an admin) of everybody who was invited."""
        with self.connected() as db:
            rows = db.execute("SELECT name, admin FROM people WHERE token NOT LIKE '- %' ORDER BY name").fetchall()
        return [(name, bool(admin)) for name, admin in rows]


def check_name(name: str) -> str:
    """The name of a person. Raises ValueError if it could not be shown."""
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise ValueError("the name of a person must have 1 to 100 printable characters")
    return name


def hashed(text: str) -> str:
    """SHA-256. Tokens are random, so that no slow hash is needed."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
