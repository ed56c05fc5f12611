"""Multiple choice by likelihood: which of several texts a model finds more probable."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from data.tokenize import start_of_text, user_text_ids


@dataclass(frozen=True)
class Choice:
    """Alternatives as token ids: their common prefix, and the rest of each, which is never empty."""

    place: str
    """`file:line`, for messages."""
    prompt: list[int]
    answers: list[list[int]]

    @property
    def longest(self) -> int:
        """Number of tokens of the longest alternative."""
        return len(self.prompt) + max(map(len, self.answers))


def encode_choices(tokenizer: Any, asked: Sequence[tuple[str, str, Sequence[str]]]) -> list[Choice]:
    """The token ids of plain text, without a chat template; each of `asked` has a place, a context, which may be empty,
    and the texts that may follow it.

    Context and completion are tokenized together. The common prefix of all alternatives becomes the prompt, which is
    encoded once: its probability cancels when alternatives are compared. A text without a context starts with the
    tokenizer's BOS token, or with EOS if it has none, so that its first token has a probability; a text with a context
    starts with BOS only if the tokenizer adds it by itself.
    """
    texts = [context + completion for _, context, completions in asked for completion in completions]
    ids, start = iter(user_text_ids(tokenizer, texts)), start_of_text(tokenizer)
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id
    alone = start or [next(token for token in ends if token is not None)]
    found = []
    for place, context, completions in asked:
        rows = [next(ids) for _ in completions]
        columns = zip(*(row[:-1] for row in rows), strict=False)
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        begin = start if context else alone
        found.append(Choice(place, [*begin, *rows[0][:shared]], [row[shared:] for row in rows]))
    return found


def refuse_long(choices: Sequence[Choice], context: int, model: str) -> None:
    """Raises ValueError for a text that is longer than the model's context."""
    for choice in choices:
        if choice.longest > context:
            raise ValueError(f"{choice.place}: {choice.longest} tokens exceed the context of {model}, {context}")
