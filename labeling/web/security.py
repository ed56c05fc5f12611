"""What protects the web app: headers, limits of size and rate, and the check of forms."""

import hmac
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src "
    "'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
MAX_BODY = 1 << 20
"""Maximum size of a request in bytes."""


class Guard:
    """ASGI middleware: adds `HEADERS` to every response, and refuses requests above `MAX_BODY`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > MAX_BODY:
            await self._refuse(send)
            return
        received, started = 0, False

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise TooLargeError
            return message

        async def secured(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                kept = [pair for pair in message["headers"] if pair[0].decode() not in HEADERS]
                message = {**message, "headers": [*kept, *own]}
            await send(message)

        try:
            await self.app(scope, limited, secured)
        except TooLargeError:
            if not started:
                await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"The request is too large."})


class TooLargeError(Exception):
    """A request without a length that goes on beyond the limit."""


class RateLimit:
    """At most `count` calls in `seconds` for each key. Raises 429 for more."""

    def __init__(self, count: int, seconds: float) -> None:
        self.count, self.seconds = count, seconds
        self.calls: dict[str, deque[float]] = defaultdict(deque)

    def __call__(self, key: str) -> None:
        """Counts a call."""
        now = time.monotonic()
        for other in [name for name, calls in self.calls.items() if calls and calls[-1] < now - self.seconds]:
            del self.calls[other]
        calls = self.calls[key]
        while calls and calls[0] < now - self.seconds:
            calls.popleft()
        if len(calls) >= self.count:
            raise HTTPException(429, "Too many requests. Wait a minute.")
        calls.append(now)


def check_csrf(expected: str, given: object) -> None:
    """Raises 403 unless a form comes from a page of this session."""
    if not isinstance(given, str) or not hmac.compare_digest(expected.encode(), given.encode()):
        raise HTTPException(403, "This form is from another session. Go back, reload the page and send it again.")
