"""Replies of language models on disk: one JSON file per question, named by the SHA-256 of the request."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modeling.disk import room_for


@dataclass(frozen=True)
class Reply:
    """A model's reply to one question."""

    text: str
    truncated: bool
    """Whether it was cut off at the maximum length."""
    input_tokens: int
    output_tokens: int


def request_key(endpoint: str, payload: Mapping[str, Any]) -> str:
    """Identifies a question: the same model name at two endpoints may be two models."""
    return hashlib.sha256(json.dumps([endpoint, payload], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ReplyCache:
    """Threads and processes may share a folder. If two processes ask the same question at the same time, both send it,
    and the later reply is kept.
    """

    folder: Path

    def check(self) -> None:
        """Raises ValueError if the folder cannot be made or written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(f"cannot keep replies in {self.folder} ({error.strerror}): choose another cache") from None

    def get(self, key: str) -> Reply | None:
        """The stored reply; None if there is none, or its file was damaged by a power cut."""
        try:
            return Reply(**json.loads(self._file(key).read_bytes())["reply"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, key: str, request: Mapping[str, Any], reply: Reply) -> None:
        """Writes the reply, and the request for people who want to read it; raises ValueError when the disk is full."""
        place = self._file(key)
        content = json.dumps({"request": request, "reply": asdict(reply)}, indent=1)
        with room_for(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            # Named at random, since another process may write the same reply.
            handle, beside = tempfile.mkstemp(prefix=".", suffix=".partial", dir=place.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
            os.replace(beside, place)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
