"""A model without weights for the playground's tests."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from data.records import Prompt


class EchoModel:
    """Repeats the prompt. To `go on` it adds `more` until it is stopped, and to `silence` it is silent until then."""

    def __call__(
        self, prompt: Prompt, generation: Mapping[str, Any], put: Callable[[str], object], stopped: Callable[[], bool]
    ) -> tuple[str, bool]:
        text = prompt.messages[-1]["content"]
        if text == "fail":
            raise ValueError("it is too long")
        endless = text.startswith("go on") and not text.endswith("?")
        while text == "silence" and not stopped():
            time.sleep(0.01)
        put(answer := f"{len(prompt.messages)} {text} {generation['seed']}")
        if endless:
            while not stopped():
                put(" more")
                time.sleep(0.01)
        return answer, not endless
