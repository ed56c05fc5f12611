"""An OpenAI-compatible server on 127.0.0.1 that injects faults."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW = 1.3
"""Seconds of the fault `timeout`; clients of tests wait for less."""


class FakeLLM:
    """Replies with `answer(last message)`; each request consumes a fault until there are none.

    Faults: `ok`, a status code (with the body of an error), `429:0.2` (with Retry-After), `timeout`, `close` (before
    the response), `cut` (in the middle of it), `html` (status 200), `empty` (no choices), `null` (cut off without any
    content), `quota` (429, as OpenAI answers without credit).
    """

    def __init__(self, answer: Callable[[str], str], faults: Iterable[str] = (), seconds: float = 0.0) -> None:
        self.answer, self.faults, self.seconds = answer, iter(faults), seconds
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.answered: Counter[str] = Counter()
        """How often each question got a good reply."""
        self.open = self.most_open = 0

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            self.requests.append(body)
            self.keys.append(handler.headers["Authorization"])
            self.times.append(time.monotonic())
            fault = next(self.faults, "ok")
        try:
            time.sleep(self.seconds)
            self.respond(handler, body, fault)
        finally:
            with self.lock:
                self.open -= 1

    def respond(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], fault: str) -> None:
        question = body["messages"][-1]["content"]
        choice: dict[str, Any] = {"message": {"role": "assistant"}}
        choice["finish_reason"] = "length" if fault == "null" else "stop"
        choice["message"]["content"] = None if fault == "null" else self.answer(question)
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        content = json.dumps({"choices": [] if fault == "empty" else [choice], "usage": usage}).encode()
        status, _, wait = {"quota": "429"}.get(fault, fault if fault[0].isdigit() else "200").partition(":")
        if fault == "timeout":
            time.sleep(SLOW)
        if fault in ("timeout", "close"):
            handler.close_connection = True
            return
        if status != "200":
            # As some servers do, it repeats the key.
            said = f"no: {handler.headers['Authorization']} {'x' * 1000}"
            code = "insufficient_quota" if fault == "quota" else None
            content = json.dumps({"error": {"message": said, "code": code}}).encode()
        if fault == "html":
            content = b"<html>Bad gateway</html>"
        if fault in ("ok", "null"):
            with self.lock:
                self.answered[json.dumps(body["messages"])] += 1
        handler.send_response(int(status))
        handler.send_header("Content-Length", str(len(content)))
        if wait:
            handler.send_header("Retry-After", wait)
        handler.end_headers()
        handler.wfile.write(content[:20] if fault == "cut" else content)
        handler.close_connection = fault == "cut"


@contextmanager
def serving(fake: FakeLLM) -> Iterator[str]:
    """Serves it; yields the base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Otherwise the body waits for the acknowledgement of the headers, for 40 ms.
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            if self.path != "/v1/chat/completions":
                self.send_error(404)
                return
            fake.reply(self)

        def log_message(self, format: str, *values: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that were killed or timed out close their connections."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()
