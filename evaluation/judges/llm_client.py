"""Asks a language model behind an OpenAI-compatible API many questions: concurrently, with retries and a cache.

    client = LLMClient(LLMConfig(endpoint="http://localhost:8000/v1", model="judge"))
    client.check([{"role": "user", "content": "Are you there?"}])
    replies = client.ask([[{"role": "user", "content": question}] for question in questions], "LLM judge")

Every reply is cached as soon as it arrives, so a resumed run sends only the remaining questions.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from tqdm import tqdm

from data.messages import Message
from evaluation.judges.llm_cache import Reply, ReplyCache, request_key
from evaluation.judges.llm_http import ChatEndpoint, RefusedError, StoppedError
from labeling.llm_config import LLMConfig

T = TypeVar("T")
WAKE_SECONDS = 0.2
"""How often the main thread looks for signals, and updates the progress bar."""


class LLMClient:
    """See the module's docstring. Several judges may share a client; each question is asked once.

    Args:
        first_wait: seconds before the first retry; the wait doubles with every further one.

    Raises ValueError if the endpoint, the model or the key is missing.
    """

    def __init__(self, config: LLMConfig, first_wait: float = 0.5) -> None:
        self.config, self.endpoint = config, ChatEndpoint(config, first_wait)
        self.cache = ReplyCache(config.cache_place())
        self._replies: dict[str, Reply] = {}
        self._from_cache: set[str] = set()
        self._refused: dict[str, str] = {}
        self._malformed: set[str] = set()

    def check(self, question: Sequence[Message]) -> str:
        """The reply to a short question, which is always sent. Raises ValueError if the server cannot be reached,
        refuses the key, does not know the model or does not accept the settings, or if the cache cannot be written.
        """
        self.cache.check()
        return self.endpoint.complete(self._payload(question), threading.Event(), is_check=True).text

    def check_parsed(self, question: Sequence[Message], parse: Callable[[str], object], what: str) -> None:
        """As `check`; also raises ValueError if `parse` does, for a reply that has no `what`."""
        reply = self.check(question)
        try:
            parse(reply)
        except ValueError as error:
            raise ValueError(
                f"the language model's reply to a simple question has no {what}: {reply[-200:]!r}; if it was cut off, "
                "raise max_tokens in its section, or the limit in extra_body; otherwise change its prompt file or the "
                f"model ({error})"
            ) from None

    def ask(self, questions: Sequence[Sequence[Message]], label: str) -> list[str | None]:
        """The reply to each question, in order; None if the server refuses the question. `label` names the progress
        bar.

        Raises ValueError if a request fails for good; the replies so far stay in the cache.
        """
        payloads = [self._payload(question) for question in questions]
        keys = [self._key(payload) for payload in payloads]
        unknown = {key: given for key, given in zip(keys, payloads, strict=True) if key not in self._replies}
        stored = {key: reply for key in unknown if (reply := self.cache.get(key)) is not None}
        self._replies |= stored
        self._from_cache |= stored.keys()
        self._send({key: payload for key, payload in unknown.items() if key not in stored}, label)
        return [reply.text if (reply := self._replies.get(key)) is not None else None for key in keys]

    def ask_parsed(
        self, questions: Sequence[Sequence[Message]], parse: Callable[[str], T], label: str
    ) -> list[T | None]:
        """The parsed reply to each question. `parse` raises ValueError, with a message for the model, for a malformed
        reply; the model then gets this message and one more try. None if the question is refused or this fails too.
        """
        found: list[T | None] = [None] * len(questions)
        again: dict[int, list[Message]] = {}
        for index, reply in enumerate(self.ask(questions, label)):
            if reply is not None:
                try:
                    found[index] = parse(reply)
                except ValueError as error:
                    again[index] = [
                        *questions[index],
                        {"role": "assistant", "content": reply or "(nothing)"},
                        {"role": "user", "content": str(error)},
                    ]
        for index, reply in zip(again, self.ask(list(again.values()), f"{label}, again"), strict=True):
            try:
                found[index] = None if reply is None else parse(reply)
            except ValueError:
                self._malformed.add(self._key(self._payload(questions[index])))
        return found

    def report(self) -> dict[str, Any]:
        """Counts of distinct questions, tokens and cost, for the results.

        Tokens, as counted by the server, and `cost` include cached replies; `spent` is the cost of this run's requests.
        Costs are None without prices.
        """
        fresh = [reply for key, reply in self._replies.items() if key not in self._from_cache]
        return {
            "endpoint": self.endpoint.base,
            "model": self.config.model,
            "replies": len(self._replies),
            "cached": len(self._from_cache),
            "requests": self.endpoint.requests,
            "retries": self.endpoint.retries,
            "refused": len(self._refused),
            "refused_because": next(iter(self._refused.values()), None),
            "malformed": len(self._malformed),
            "truncated": sum(reply.truncated for reply in self._replies.values()),
            "input_tokens": sum(reply.input_tokens for reply in self._replies.values()),
            "output_tokens": sum(reply.output_tokens for reply in self._replies.values()),
            "cost": self._cost(list(self._replies.values())),
            "spent": self._cost(fresh),
        }

    def failure(self) -> str:
        """The most frequent reason for which questions have no usable reply."""
        found = self.report()
        if found["refused"] > found["malformed"]:
            return str(found["refused_because"])
        if found["truncated"] >= found["malformed"]:
            return "its replies were cut off (raise max_tokens, or the limit in extra_body)"
        return "its replies were malformed"

    def _cost(self, replies: Sequence[Reply]) -> float | None:
        if self.config.input_price is None or self.config.output_price is None:
            return None
        tokens = sum(reply.input_tokens for reply in replies), sum(reply.output_tokens for reply in replies)
        return (tokens[0] * self.config.input_price + tokens[1] * self.config.output_price) / 1e6

    def _payload(self, messages: Sequence[Message]) -> dict[str, Any]:
        settings = {"temperature": self.config.temperature, "max_tokens": self.config.max_tokens}
        given = {name: value for name, value in settings.items() if value is not None}
        # Lone surrogates, which JSON may contain, cannot be sent.
        sent = [{**message, "content": message["content"].encode("utf-8", "replace").decode()} for message in messages]
        return {"model": self.config.model, "messages": sent, **given, **self.config.extra_body}

    def _key(self, payload: Mapping[str, Any]) -> str:
        return request_key(self.endpoint.base, payload)

    def _send(self, payloads: Mapping[str, dict[str, Any]], label: str) -> None:
        """Sends the questions, and keeps the replies by key in memory and in the cache."""
        stop = threading.Event()
        executor = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="llm-judge")
        try:
            pending = {executor.submit(self._answer, key, payload, stop) for key, payload in payloads.items()}
            with tqdm(desc=label, total=len(pending), unit="question", disable=not pending) as bar:
                while pending:
                    # With a timeout, since a signal that another thread receives does not end the wait.
                    done, pending = wait(pending, WAKE_SECONDS, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    bar.update(len(done))
        except ValueError as error:
            # Waits for the requests that were sent, since their replies are paid for.
            executor.shutdown(cancel_futures=True)
            arrived = sum(key in self._replies for key in payloads)
            raise ValueError(
                f"{error}; {arrived} of {len(payloads)} replies have arrived and are cached: run the command again "
                "to send the remaining questions"
            ) from None
        except BaseException:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        executor.shutdown()

    def _answer(self, key: str, payload: dict[str, Any], stop: threading.Event) -> None:
        """A thread's work on one question. A failure stops the other threads before it is raised."""
        try:
            if not stop.is_set():
                reply = self.endpoint.complete(payload, stop)
                self.cache.put(key, payload, reply)
                self._replies[key] = reply
        except RefusedError as error:
            self._refused[key] = str(error)
        except StoppedError:
            pass
        except BaseException:
            stop.set()
            raise
