"""The records that stages exchange (Ouyang et al. 2022, sections 3.2 to 3.5), and the validation of rows of JSON Lines.

Field names are trl's where trl has one.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypedDict, TypeVar

from data.messages import Message, conversation

USE_CASES = (
    "generation", "open_qa", "brainstorming", "chat", "rewrite", "summarization", "classification", "other",
    "closed_qa", "extract",
)  # fmt: skip
"""The paper's ten use cases (table 1)."""

SOURCES = ("labeler", "api")
KINDS = ("plain", "few_shot", "user_based")
LABELERS = ("human", "simulated", "llm")
SPLITS = ("train", "valid", "test")


class Example(TypedDict):
    """One query of a few-shot prompt, and its answer."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A model's input. Only `prompt` is required in a file; the other fields have defaults."""

    prompt: str | list[Message]
    prompt_id: str = ""
    """Unique. Default: a hash of the prompt."""
    source: str = "api"
    """`labeler` (written for training) or `api` (came from a user). RL trains on API prompts only (table 6)."""
    kind: str | None = None
    """Labeler prompts are `plain`, `few_shot` or `user_based` (section 3.2)."""
    user_id: str = ""
    """All prompts of a user are in one split. Default: each prompt is a user of its own."""
    organisation_id: str = ""
    """The user's organisation, for `data.group_by: organisation`. Default: each user is one of its own."""
    dataset: str = ""
    """The configured source of the row; set when it is read."""
    use_case: str | None = None
    """One of the paper's ten, or null."""

    def __post_init__(self) -> None:
        if not self.prompt_id:
            object.__setattr__(self, "prompt_id", hashlib.sha256(json.dumps(self._asked()).encode()).hexdigest()[:16])
        if not self.user_id:
            object.__setattr__(self, "user_id", self.prompt_id)
        if not self.organisation_id:
            object.__setattr__(self, "organisation_id", self.user_id)

    def _asked(self) -> Any:
        """The value that `prompt_id` hashes."""
        return self.prompt

    @staticmethod
    def of(record: "Prompt") -> "Prompt":
        """The prompt alone, without an answer or a ranking."""
        return Prompt(**{item.name: getattr(record, item.name) for item in fields(Prompt)})

    @property
    def messages(self) -> list[Message]:
        """The prompt as a conversation; a bare string is one user turn."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt

    @property
    def text(self) -> str:
        """The prompt as one string, for people and for judges without roles."""
        return self.prompt if isinstance(self.prompt, str) else "\n".join(message["content"] for message in self.prompt)


@dataclass(frozen=True, kw_only=True)
class Demonstration(Prompt):
    """A prompt with an answer worth imitating."""

    completion: str


@dataclass(frozen=True, kw_only=True)
class FewShot(Prompt):
    """An instruction, as `prompt`, with K queries and their answers; it becomes K demonstrations (data/few_shot.py)."""

    examples: list[Example]

    def _asked(self) -> Any:
        """Includes the examples: the same instruction with other examples is another prompt."""
        return [self.prompt, self.examples]


@dataclass(frozen=True, kw_only=True)
class Ranking(Prompt):
    """A prompt with K answers and a labeler's judgments of them."""

    completions: list[str]
    ranks: list[int | None] | None = None
    """1 is best, equal ranks are ties, null is not ranked."""
    preferences: list[list[int]] | None = None
    """Instead of ranks: judgments `[better, worse]` as indices into completions, which may be incomplete or cyclic."""
    ties: list[list[int]] | None = None
    """With preferences: pairs that were judged equal."""
    labeler_id: str = ""
    labeler: str = "human"
    complete: list[bool] | None = None
    """Whether each answer ended by itself; null means that all did."""
    ratings: list[dict[str, Any]] | None = None
    """Per completion: quality 1 to 7 and the paper's flags (table 3), or a simulated labeler's rubric parts."""


@dataclass(frozen=True, kw_only=True)
class Samples(Prompt):
    """A prompt with K distinct answers of a model, not ranked yet."""

    completions: list[str]
    complete: list[bool]
    """Whether each answer ended by itself rather than being cut off."""
    reference: str | None = None
    """The demonstration, for labelers that compare answers with it."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """Plain text for the pretraining mix and for perplexity."""

    text: str
    dataset: str = ""


RecordT = TypeVar("RecordT", bound=Prompt)
CLOSE = 0.8
"""Similarity from which an unknown key counts as a misspelling: `id` must not become `kind`."""


class UnknownKeyError(ValueError):
    """A row has unknown keys."""

    def __init__(self, keys: Iterable[str], known: Sequence[str]) -> None:
        self.near, self.known = {key: _nearest(key, known) for key in keys}, ", ".join(known)
        hints = [f"{key!r}" + (f", did you mean {close!r}?" if close else "") for key, close in self.near.items()]
        self.named = f"unknown key {hints[0]}" if len(hints) == 1 else f"unknown keys {'; '.join(hints)}"
        super().__init__(self.named if all(self.near.values()) else f"{self.named}; known are {self.known}")


def parse(row: object, record_type: type[RecordT]) -> RecordT:
    """Parses a decoded JSON row. Raises ValueError, in a sentence without the file, if it is not a `record_type`."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    known = {field.name: field for field in fields(record_type)}
    if unknown := [str(key) for key in row if key not in known]:
        raise UnknownKeyError(unknown, list(known))
    for name, field in known.items():
        if field.default is MISSING and name not in row:
            raise ValueError(f"missing key {name!r}")
    if isinstance(row["prompt"], list):
        row = row | {"prompt": conversation(row["prompt"], "prompt")}
    _check_prompt(row)
    if issubclass(record_type, Demonstration) and not _is_text(row["completion"]):
        raise ValueError("'completion' must be a non-empty string")
    if issubclass(record_type, FewShot):
        if not isinstance(row["prompt"], str):
            raise ValueError("'prompt' of a row with 'examples' is the instruction, and must be a string")
        _check_examples(row["examples"])
    if issubclass(record_type, Ranking):
        _check_ranking(row)
    return record_type(**row)


def parse_document(row: dict[str, Any]) -> Document:
    """Parses a document. Raises ValueError if its text is not a string, or empty."""
    if not _is_text(row["text"]):
        raise ValueError("'text' must be a non-empty string")
    return Document(**row)


def to_row(record: Prompt) -> dict[str, Any]:
    """The record as a JSON object, without empty fields."""
    return {key: value for key, value in asdict(record).items() if value is not None and value != ""}


def _nearest(key: str, known: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(key, known, n=1, cutoff=CLOSE)
    return near[0] if near else f"{key}_id" if f"{key}_id" in known else None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_prompt(row: Mapping[str, Any]) -> None:
    prompt = row["prompt"]
    if isinstance(prompt, list):
        if not prompt[-1]["content"].strip():
            raise ValueError("the last message of 'prompt' is empty, so nothing is asked")
        if prompt[-1]["role"] == "assistant":
            raise ValueError("the last message of 'prompt' must not be the assistant's: that is the answer")
    elif not _is_text(prompt):
        raise ValueError("'prompt' must be a non-empty string or a list of messages")
    for key in ("prompt_id", "user_id", "organisation_id", "dataset", "labeler_id"):
        if not isinstance(row.get(key, ""), str):
            raise ValueError(f"{key!r} must be a string")
    choices = {"source": SOURCES, "kind": (*KINDS, None), "use_case": (*USE_CASES, None), "labeler": LABELERS}
    for key, allowed in choices.items():
        if key in row and row[key] not in allowed:
            known = ", ".join(str(value) for value in allowed)
            leave = f"if the column means something else, set `columns: {{{key}: null}}` under data.sources"
            raise ValueError(f"{key!r} is {row[key]!r}; allowed are {known}; {leave}")


def _check_examples(examples: object) -> None:
    if not isinstance(examples, list) or len(examples) < 2:
        raise ValueError("'examples' must be a list of at least 2 query and answer pairs")
    for example in examples:
        is_pair = isinstance(example, dict) and set(example) == {"prompt", "completion"}
        if not is_pair or not all(map(_is_text, example.values())):
            raise ValueError('each of \'examples\' must be {"prompt": string, "completion": string}, neither empty')


def _check_ranking(row: Mapping[str, Any]) -> None:
    completions, ranks, preferences = row["completions"], row.get("ranks"), row.get("preferences")
    if not isinstance(completions, list) or not all(isinstance(completion, str) for completion in completions):
        raise ValueError("'completions' must be a list of strings")
    count = len(completions)
    for key, kind, meaning in (("complete", bool, "true or false"), ("ratings", dict, "an object")):
        value = row.get(key)
        fits = isinstance(value, list) and len(value) == count and all(isinstance(item, kind) for item in value)
        if value is not None and not fits:
            raise ValueError(f"{key!r} must be a list as long as 'completions' ({count}), {meaning} for each")
    if count < 2:
        raise ValueError(f"a ranking needs at least 2 completions, found {count}")
    if (ranks is None) == (preferences is None):
        raise ValueError("exactly one of 'ranks' and 'preferences' must be given")
    if ranks is not None:
        if not isinstance(ranks, list) or len(ranks) != count:
            raise ValueError(f"'ranks' must be a list as long as 'completions' ({count})")
        if not all(rank is None or (type(rank) is int and 1 <= rank < 2**31) for rank in ranks):
            unranked = "null for an answer that was not ranked"
            raise ValueError(f"'ranks' must hold integers from 1 up (1 is best), or {unranked}")
    if preferences is not None:
        _check_pairs(preferences, count, "preferences", "[better, worse] pairs")
    if row.get("ties") is not None:
        if preferences is None:
            raise ValueError("'ties' needs 'preferences'; in 'ranks' a tie is an equal rank")
        _check_pairs(row["ties"], count, "ties", "pairs")


def _check_pairs(pairs: object, count: int, key: str, what: str) -> None:
    def is_pair(pair: object) -> bool:
        is_two = isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 0 <= i < count for i in pair)
        return is_two and pair[0] != pair[1]  # type: ignore[index]

    if not isinstance(pairs, list) or not all(map(is_pair, pairs)):
        raise ValueError(f"{key!r} must be a list of {what} of different indices into 'completions'")
