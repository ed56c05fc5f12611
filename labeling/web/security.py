"""What protects the web app: response headers, a rate limit and the check of forms."""

import hmac
import time
from collections import defaultdict, deque

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src "
    "'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """The outermost ASGI layer: adds `HEADERS` to every response, and refuses forms of other sites."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["method"] == "POST" and is_foreign(Headers(scope=scope)):
            await PlainTextResponse("This form is from another site.", 403)(scope, receive, secured)
        else:
            await self.app(scope, receive, secured)


def is_foreign(headers: Headers) -> bool:
    """Whether a browser sent a form from a page of another site."""
    origin = headers.get("origin")
    other = origin is not None and origin.partition("://")[2] != headers.get("host", "")
    return other or headers.get("sec-fetch-site") in ("cross-site", "same-site")


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
