"""What protects the web app: headers, limits of size and rate, and the check of forms."""

import asyncio
import hmac
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from fastapi import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src "
    "'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
MAX_BODY = 1 << 20
"""Maximum size of a request in bytes."""
BODY_SECONDS = 30.0
"""Maximum time between two parts of a request."""


class Guard:
    """The outermost ASGI layer: adds `HEADERS` to every response, and refuses requests for other hosts, forms of other
    sites, and bodies that are larger than `MAX_BODY` or slower than `BODY_SECONDS`.
    """

    def __init__(self, app: Any, hosts: Sequence[str]) -> None:
        """`hosts` are the names under which the app can be reached, so that no other site can pose as it."""
        self.app, self.hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                kept = [pair for pair in message["headers"] if pair[0].decode() not in HEADERS]
                message = {**message, "headers": [*kept, *own]}
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status, reason = self.refusal(scope["method"], headers)
        if status:
            await refuse(secured, status, reason)
            return
        await self.app(scope, limited(receive), secured)

    def refusal(self, method: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """The status and the reason for which a request is refused; 0 if it is not."""
        host, declared = headers.get("host", ""), headers.get("content-length", "0")
        if host_name(host) not in self.hosts:
            return 400, "The app is not reached under this host name."
        if not declared.isdigit() or int(declared) > MAX_BODY:
            return 413, "The request is too large."
        origin = headers.get("origin")
        if method == "POST" and (
            headers.get("sec-fetch-site") in ("cross-site", "same-site")
            or (origin is not None and origin.partition("://")[2] != host)
        ):
            return 403, "This form is from another site."
        return 0, ""


def host_name(host: str) -> str:
    """The name in a Host header, without port and the brackets of IPv6."""
    name, _, rest = host.lower().partition("]")
    return name.removeprefix("[") if host.startswith("[") else (name + rest).split(":")[0]


def limited(receive: Receive) -> Receive:
    """A body's messages. Raises TooLargeError, and TimeoutError for a body that does not come."""
    received, whole = 0, False

    async def wrapped() -> Message:
        nonlocal received, whole
        message = await (receive() if whole else asyncio.wait_for(receive(), BODY_SECONDS))
        received += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if received > MAX_BODY:
            raise TooLargeError
        return message

    return wrapped


async def refuse(send: Send, status: int, reason: str) -> None:
    """Answers with a sentence."""
    kind = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": kind})
    await send({"type": "http.response.body", "body": reason.encode()})


class TooLargeError(Exception):
    """A body without a length that goes on beyond the limit."""


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
    if not isinstance(given, str) or not hmac.compare_digest(expected.encode(), given.encode(errors="surrogatepass")):
        raise HTTPException(403, "This form is from another session. Go back, reload the page and send it again.")
