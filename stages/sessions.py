"""How long a stage has run when it was interrupted and resumed: one process after another, each a session."""

import json
import time
from pathlib import Path

from modeling.disk import write_whole

NAME = "session.json"


def earlier_seconds(partial: Path) -> float:
    """Begins a session of a stage, and returns how many seconds those before it ran. One that was killed counts up to
    the last file that it wrote.
    """
    path, seconds = partial / NAME, 0.0
    if path.is_file():
        before = json.loads(path.read_text())
        last = max(file.stat().st_mtime for file in partial.rglob("*") if file.is_file())
        seconds = before["earlier_seconds"] + max(0.0, last - before["began"])
    write_whole(path, json.dumps({"earlier_seconds": seconds, "began": time.time()}).encode())
    return float(seconds)
