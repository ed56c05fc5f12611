"""What goes into an engine and what comes out."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from modeling.load import context_length


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    batch_size: int = 64
    """Rows decoded side by side; changes speed and memory only, with the native engine in float32."""


@dataclass
class Generation:
    """One response."""

    ids: list[int]
    """Up to and including the end token, if there is one."""
    logprobs: list[float] | None
    """Of each token in the distribution that it was sampled from; None where the engine does not record them."""
    ended: bool
    """Whether the response ends with an end token."""


class Engine(Protocol):
    """What samples responses."""

    records_logprobs: bool
    """Whether a generation includes the log-probabilities of its tokens."""

    def generate(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        stop_ids: Collection[int],
        pad_id: int,
        on_batch: Callable[[int], object] | None = None,
    ) -> list[Generation]:
        """A response to each prompt, in order; any of `stop_ids` ends it.

        `on_batch` is called with the number of prompts answered since its last call.

        Raises ValueError when a prompt is empty, or leaves no room for an answer in the model's context.
        """
        ...


def check_room(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Raises ValueError when a prompt is empty, or leaves no room for an answer in the model's context."""
    room = context_length(model.config)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt has no tokens: there is nothing to answer")
    if longest + sampling.max_new_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones do not fit the model's context of "
            f"{room}"
        )


def by_length(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of the prompts, the longest first, equal ones beside each other.

    Neighbours need little padding, answers to one prompt can share its pass, and a batch too large for the memory shows
    at once.
    """
    return sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), tuple(prompts[index])))
