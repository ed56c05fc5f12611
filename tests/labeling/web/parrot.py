"""A model of the playground without weights."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from data.records import Prompt


class Parrot:
    """Repeats the prompt; asked to go on, it says `more` until it is stopped, and asked for silence, nothing."""

    def __call__(
        self, prompt: Prompt, generation: Mapping[str, Any], put: Callable[[str], object], stopped: Callable[[], bool]
    ) -> tuple[str, bool]:
        asked = prompt.messages[-1]["content"]
        if asked == "fail":
            raise ValueError("it is too long")
        goes_on = asked.startswith("go on") and not asked.endswith("?")
        while asked == "silence" and not stopped():
            time.sleep(0.01)
        put(said := f"{len(prompt.messages)} {asked} {generation['seed']}")
        if goes_on:
            while not stopped():
                put(" more")
                time.sleep(0.01)
        return said, not goes_on
