"""Requests to a chat completions API: retries, and errors in one sentence that never contain the key."""

import random
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from evaluation.judges.llm_cache import Reply
from labeling.llm_config import LLMConfig

RETRIED = (408, 409, 425, 429)
"""Status codes after which a request is sent again, besides 5xx."""
REFUSED = (400, 413, 422)
"""Status codes that concern one question, such as one that is too long or that a content filter refuses."""
LONGEST_BACKOFF, LONGEST_WAIT = 60.0, 300.0
"""Maximum seconds between two tries: of our own backoff, and of a server's Retry-After."""
LONGEST_MESSAGE = 300
"""Characters of a server's message that an error shows."""


class TransientError(Exception):
    """A request that may succeed if it is sent again."""

    def __init__(self, words: str, wait: float | None = None, final_for_check: bool = False) -> None:
        super().__init__(words)
        self.wait, self.final_for_check = wait, final_for_check


class RefusedError(ValueError):
    """The server refuses this question, but not all questions."""


class StoppedError(Exception):
    """The request was given up because another one failed."""


class ChatEndpoint:
    """The API; threads share it.

    Args:
        first_wait: seconds before the first retry; the wait doubles with every further one.

    Raises ValueError if the endpoint, the model or the key is missing.
    """

    def __init__(self, config: LLMConfig, first_wait: float) -> None:
        config.validate()
        if config.endpoint is None or config.model is None:
            raise ValueError("the language model needs llm.endpoint and llm.model")
        self.config, self.first_wait, self.base = config, first_wait, config.endpoint.rstrip("/")
        self.requests = self.retries = 0
        self._key, self._lock = config.api_key(), threading.Lock()
        # Not Python's global generator, whose state belongs to the run.
        self._jitter = random.Random()
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._http = httpx2.Client(headers=headers, timeout=config.timeout, limits=httpx2.Limits(max_connections=None))

    def complete(self, payload: Mapping[str, Any], stop: threading.Event, is_check: bool = False) -> Reply:
        """Sends a request until it succeeds; a check is not retried if the server cannot be reached, or if its reply
        is not a chat completion.

        Raises RefusedError, ValueError if the request fails for good, and StoppedError if `stop` is set meanwhile.
        """
        for retry in range(self.config.max_retries + 1):
            try:
                return self._post(payload)
            except TransientError as error:
                if retry == self.config.max_retries or (is_check and error.final_for_check):
                    tries = f" ({retry + 1} tries)" if retry else ""
                    raise ValueError(
                        f"the language model at {self.base} gives no usable reply{tries}: {error}"
                    ) from None
                if error.wait is not None and error.wait > LONGEST_WAIT:
                    raise ValueError(
                        f"the language model at {self.base} asks for a wait of {error.wait:.0f} s: {error}"
                    ) from None
                backoff = min(LONGEST_BACKOFF, self.first_wait * 2**retry) * self._jitter.uniform(0.5, 1.0)
                if stop.wait(max(backoff, error.wait or 0.0)):
                    raise StoppedError from None
                with self._lock:
                    self.retries += 1
        raise AssertionError("the loop returns or raises")

    def _post(self, payload: Mapping[str, Any]) -> Reply:
        with self._lock:
            self.requests += 1
        try:
            response = self._http.post(f"{self.base}/chat/completions", json=payload)
        except httpx2.TimeoutException:
            raise TransientError(f"no reply within {self.config.timeout:g} s", final_for_check=True) from None
        except httpx2.RequestError as error:
            raise TransientError(self._without_key(str(error) or type(error).__name__), final_for_check=True) from None
        status = response.status_code
        if status == 429 and "insufficient_quota" in response.text:
            raise ValueError(f"the language model at {self.base} refuses requests: {self._words(response)}")
        if status in RETRIED or status >= 500:
            raise TransientError(self._words(response), retry_after(response.headers.get("Retry-After")))
        if status in REFUSED:
            raise RefusedError(f"the language model at {self.base} refuses a request: {self._words(response)}")
        if status != 200:
            advice = {
                401: "; check the key that api_key_env names",
                403: "; check the key that api_key_env names, and its permissions",
                404: f"; check the endpoint, and that it has the model {self.config.model}",
            }
            raise ValueError(
                f"the language model at {self.base} refuses requests: {self._words(response)}{advice.get(status, '')}"
            )
        try:
            return parse_completion(response)
        except TransientError as error:
            raise TransientError(f"{error}: {self._words(response)}", final_for_check=True) from None

    def _words(self, response: httpx2.Response) -> str:
        """A server's error in one line, without the key."""
        try:
            given = response.json()
            given = given.get("error", given) if isinstance(given, dict) else given
            text = str(given.get("message", given) if isinstance(given, dict) else given)
        except ValueError:
            text = response.text
        # Before it is shortened, which could leave a part of the key.
        words = " ".join(self._without_key(text).split())
        return f"HTTP {response.status_code} {response.reason_phrase}: {words[:LONGEST_MESSAGE]}".rstrip(": ")

    def _without_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "***")


def parse_completion(response: httpx2.Response) -> Reply:
    """The reply in a response. Raises TransientError if it is not a chat completion, such as a proxy's error page."""
    try:
        body = response.json()
        choice = body["choices"][0]
        # A model that refuses, or spends all tokens on its reasoning, leaves it null.
        text = choice["message"]["content"] or ""
        usage = body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise TransientError("the reply is not a chat completion") from None
    return Reply(text, choice.get("finish_reason") == "length", *tokens)


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait; None if there is no valid one."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # TypeError: a date without a time zone
        return None
