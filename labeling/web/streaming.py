"""Streams answers as server-sent events. Each model answers one prompt at a time in its own thread, so that other
requests do not wait for it.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any

from fastapi.sse import ServerSentEvent

from data.records import Prompt
from labeling.web.conversations import Conversations, Turn

MAX_JOBS = 8
"""Maximum number of answers that wait for a model or are being generated."""
EVENT_TIMEOUT = 180.0
"""Maximum seconds before the first event of a stream, and between two events."""
BUSY = "The model is busy. Reload the page in a few minutes."
ChatModel = Callable[[Prompt, Mapping[str, Any], Callable[[str], object], Callable[[], bool]], tuple[str, bool]]
"""Answers a prompt: (prompt, generation settings with the seed, what to call with each part, whether to stop) ->
(answer, whether it ended by itself). Raises ValueError for a prompt that it cannot answer."""
LOADING = threading.Lock()
"""Models are loaded one at a time: imports of the libraries are not thread-safe."""
log = logging.getLogger(__name__)


class ModelThread:
    """A model, loaded when it is first needed, and the thread in which it answers."""

    def __init__(self, load: Callable[[], ChatModel], digest: str) -> None:
        """`digest` is that of the stage's result that holds the model."""
        self.load, self.digest = load, digest
        self.thread, self.slots = ThreadPoolExecutor(max_workers=1), threading.Semaphore(MAX_JOBS)

    @cached_property
    def model(self) -> ChatModel:
        """The model, for use in its thread."""
        with LOADING:
            return self.load()


class AnswerStream:
    """Generates the answers of a turn, and stores each one before its `end` event is sent."""

    def __init__(self, conversations: Conversations, turn: Turn, stopped: Callable[[], bool]) -> None:
        self.conversations, self.turn = conversations, turn
        self.stopped_by_people, self.closed = stopped, threading.Event()
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[ServerSentEvent]()

    async def events(self, models: Mapping[str, ModelThread]) -> AsyncIterator[ServerSentEvent]:
        """`part` events, then one `end` or `problem` for each answer, with the answer's place and text. Closing the
        stream stops the answers.
        """
        for place, answer in enumerate(self.turn.answers):
            thread = models.get(answer.model)
            if thread is not None and thread.slots.acquire(blocking=False):
                thread.thread.submit(self.generate, place, thread)
            else:
                self.put("problem", place, text="The run no longer has this model." if thread is None else BUSY)
        left = set(range(len(self.turn.answers)))
        try:
            while left:
                event = await asyncio.wait_for(self.queue.get(), EVENT_TIMEOUT)
                left -= {event.data["place"]} if event.event != "part" else set()
                yield event
        except TimeoutError:
            for place in left:
                yield ServerSentEvent(event="problem", data={"place": place, "text": BUSY})
        finally:
            self.closed.set()

    def put(self, event: str, place: int, **data: str) -> None:
        """Sends an event from any thread."""
        with suppress(RuntimeError):  # the event loop is closed
            made = ServerSentEvent(event=event, data={"place": place, **data})
            self.loop.call_soon_threadsafe(self.queue.put_nowait, made)

    def stopped(self) -> bool:
        """Whether nobody waits for the answers."""
        return self.closed.is_set() or self.stopped_by_people()

    def generate(self, place: int, thread: ModelThread) -> None:
        """Generates and stores an answer, in the model's thread."""
        who = self.turn.user_id, self.turn.id
        try:
            model, turn = thread.model, self.conversations.turns(who[0], number=who[1])[0]
            answer = turn.answers[place]
            # Another window may have requested it already; a page that was left requests it again when it is opened.
            if answer.state == "waiting" and not self.closed.is_set():
                text, ended = model(
                    turn.prompt, answer.generation, lambda part: self.put("part", place, text=part), self.stopped
                )
                with self.conversations.changed(*who) as turn:
                    answer = turn.answers[place]
                    answer.text, answer.digest = text, thread.digest
                    answer.state = "complete" if ended else "stopped" if self.stopped() else "cut off"
            self.put("end", place, text=answer.text, state=answer.state)
        except ValueError as error:
            self.put("problem", place, text=f"The model cannot answer this prompt: {error}.")
        except Exception:
            log.exception("playground: %s failed", self.turn.answers[place].model)
            self.put("problem", place, text="The model failed; the app's log has the reason.")
        finally:
            thread.slots.release()
