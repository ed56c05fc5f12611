"""Questions to a language model from Jinja files, and the JSON object at the end of its replies.

The packaged files enclose every text of a model or a user in tags that contain a code. The code is a hash of these
texts, so that no text can contain it and close its own tags.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from data.messages import Message
from data.records import Demonstration

FOLDER = Path(__file__).parent / "prompts"
LAST_OBJECT = re.compile(r"(?:\A|\n)[ \t]*(\{[^{}]*\})\s*(?:```)?\s*\Z")
"""A JSON object without nested ones that begins a line and ends the reply; it may stand in a code block."""
EXAMPLE = Demonstration(prompt="What is the capital of France?", completion="It is Paris.")
"""A simple question to test a prompt file and a model."""


@dataclass(frozen=True)
class PromptFile:
    """A Jinja file that renders one question."""

    path: Path
    template: Template
    sha256: str

    @staticmethod
    def read(path: str | None, packaged: str) -> "PromptFile":
        """The user's file; the packaged one if `path` is None. Raises ValueError if it is missing or not a template."""
        place = FOLDER / packaged if path is None else Path(path)
        try:
            text = place.read_text(encoding="utf-8")
            environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
            return PromptFile(place, environment.from_string(text), hashlib.sha256(text.encode()).hexdigest())
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the prompt file {place}: {error}") from None
        except TemplateError as error:
            raise ValueError(f"the prompt file {place} is not a Jinja template: {error}") from None

    def render(self, prompt: Demonstration, answers: Sequence[str], **values: Any) -> list[Message]:
        """The question as a conversation of one message.

        The file can use `messages` (the conversation that was answered), `reference` (its demonstration), `answers`,
        `code` and `values`. Raises ValueError if it uses anything else.
        """
        texts = [*(message["content"] for message in prompt.messages), prompt.completion, *answers]
        try:
            rendered = self.template.render(
                messages=prompt.messages, reference=prompt.completion, answers=answers, code=code_for(texts), **values
            )
        except Exception as error:  # whatever an expression in a user's file raises
            raise ValueError(f"the prompt file {self.path} cannot be rendered: {error}") from None
        return [{"role": "user", "content": rendered}]

    def check(self, answers: Sequence[str], **values: Any) -> None:
        """Raises ValueError if the file cannot be rendered for `EXAMPLE`, or leaves out the prompt or an answer."""
        (message,) = self.render(EXAMPLE, answers, **values)
        for text in (EXAMPLE.text, *answers):
            if text not in message["content"]:
                raise ValueError(f"the prompt file {self.path} leaves out the prompt or an answer: {text!r} is missing")


def code_for(texts: Sequence[str]) -> str:
    """A code that none of the texts contains; the same texts give the same code, so that replies can be cached."""
    code = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
    return code_for([*texts, code]) if any(code in text for text in texts) else code


def last_object(reply: str) -> dict[str, Any]:
    """The JSON object at the end of a reply. Raises ValueError if there is none, or a key is repeated."""
    found = LAST_OBJECT.search(reply)
    if found is None:
        raise ValueError("Your reply must end with a line that holds only the JSON object that was asked for.")
    try:
        pairs: list[tuple[str, Any]] = json.loads(found[1], object_pairs_hook=list)
    except ValueError as error:
        raise ValueError(f"The last line of your reply is not valid JSON: {error}") from None
    if len(dict(pairs)) < len(pairs):
        raise ValueError("The JSON object at the end of your reply has the same key twice.")
    return dict(pairs)
