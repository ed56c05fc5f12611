"""Answers as streams of events. Each model answers one prompt at a time, in a thread of its own, so that no page waits
for a model.
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
"""Answers that a model owes at a time."""
PATIENCE = 180.0
"""Maximum seconds between two events of a stream, and before the first."""
BUSY = "The model is busy. Reload the page in a few minutes."
ChatModel = Callable[[Prompt, Mapping[str, Any], Callable[[str], object], Callable[[], bool]], tuple[str, bool]]
"""Answers a prompt: (prompt, generation settings with the seed, what to call with each part, whether nobody waits for
the rest) -> (answer, whether it ended by itself). Raises ValueError for a prompt that it cannot answer."""
LOADING = threading.Lock()
"""Libraries that are imported while models are loaded are not made for several threads."""
log = logging.getLogger(__name__)


class ModelThread:
    """A model, loaded when it is first needed, and the thread in which it answers."""

    def __init__(self, load: Callable[[], ChatModel], digest: str) -> None:
        """`digest` is that of the stage's result that holds the model."""
        self.load, self.digest = load, digest
        self.thread, self.room = ThreadPoolExecutor(max_workers=1), threading.Semaphore(MAX_JOBS)

    @cached_property
    def model(self) -> ChatModel:
        """The model, for use in its thread."""
        with LOADING:
            return self.load()


class AnswerStream:
    """Lets models answer a turn, and stores what they say before it sends the end."""

    def __init__(self, said: Conversations, turn: Turn, stopped: Callable[[], bool]) -> None:
        self.said, self.turn, self.stopped_by_people, self.closed = said, turn, stopped, threading.Event()
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[ServerSentEvent]()

    async def events(self, models: Mapping[str, ModelThread]) -> AsyncIterator[ServerSentEvent]:
        """`part`, and for each answer at last `end` or `problem`, with the answer's place, and text. A stream that is
        closed early stops the answers.
        """
        for place, answer in enumerate(self.turn.answers):
            thread = models.get(answer.model)
            if thread is not None and thread.room.acquire(blocking=False):
                thread.thread.submit(self.work, place, thread)
            else:
                self.put("problem", place, text="The run no longer has this model." if thread is None else BUSY)
        left = set(range(len(self.turn.answers)))
        try:
            while left:
                event = await asyncio.wait_for(self.queue.get(), PATIENCE)
                left -= {event.data["place"]} if event.event != "part" else set()
                yield event
        except TimeoutError:
            for place in left:
                yield ServerSentEvent(event="problem", data={"place": place, "text": BUSY})
        finally:
            self.closed.set()

    def put(self, event: str, place: int, **data: str) -> None:
        """Sends an event from any thread."""
        with suppress(RuntimeError):  # the app has ended
            made = ServerSentEvent(event=event, data={"place": place, **data})
            self.loop.call_soon_threadsafe(self.queue.put_nowait, made)

    def stopped(self) -> bool:
        """Whether nobody waits for the answers."""
        return self.closed.is_set() or self.stopped_by_people()

    def work(self, place: int, thread: ModelThread) -> None:
        """Makes and stores an answer, in the model's thread."""
        who = self.turn.user_id, self.turn.id
        try:
            model, turn = thread.model, self.said.turns(who[0], number=who[1])[0]
            answer = turn.answers[place]
            # Another window may have asked, too; a page that was left while it waited asks again when it is opened.
            if answer.state == "waiting" and not self.closed.is_set():
                text, ended = model(
                    turn.prompt, answer.generation, lambda part: self.put("part", place, text=part), self.stopped
                )
                with self.said.changed(*who) as turn:
                    answer = turn.answers[place]
                    answer.text, answer.digest = text, thread.digest
                    answer.state = "complete" if ended else "stopped" if self.stopped() else "cut off"
            self.put("end", place, text=answer.text, state=answer.state)
        except ValueError as error:
            self.put("problem", place, text=f"This prompt has no answer: {error}.")
        except Exception:
            log.exception("playground: %s has failed", self.turn.answers[place].model)
            self.put("problem", place, text="The model has failed; the app's log has the reason.")
        finally:
            thread.room.release()
