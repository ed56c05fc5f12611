"""The playground: people chat with the run's models, and their prompts become data as in the paper (section 3.2)."""

import random
import secrets
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query
from fastapi.responses import RedirectResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from data.numbers import PositiveInt, Range, check_numbers
from labeling.web.conversations import Answer, Conversations, Turn
from labeling.web.forms import FormError, text
from labeling.web.pages import Fields, Number, Pages, Signed
from labeling.web.people import Session
from labeling.web.security import RateLimit
from labeling.web.streaming import AnswerStream, ModelThread
from modeling.config import GenerationSettings

PROMPTS = 10
"""Prompts that a person can send each minute."""
NUMBERS: dict[str, tuple[type, str]] = {
    "max_new_tokens": (int, "1 to 1,000"), "temperature": (float, "0 is greedy"), "top_p": (float, "1 is all"),
    "top_k": (int, "0 is all"), "seed": (int, "empty for a new one"),
}  # fmt: skip
"""The settings in the form: type and hint."""
JUDGMENTS = {"left": [1, 2], "right": [2, 1], "tie": [1, 1]}
"""Judgment of two answers -> their ranks."""


@dataclass
class Settings(GenerationSettings):
    """The settings of an answer, with upper limits."""

    max_new_tokens: Annotated[int, Range(at_least=1, at_most=1000)] = 512
    """At most 1,000, the paper's maximum response length (appendix C)."""
    temperature: Annotated[float, Range(at_least=0, at_most=10)] = 1.0
    top_k: Annotated[int, Range(at_least=0, at_most=10**6)] = 0
    batch_size: PositiveInt = 1
    seed: Annotated[int, Range(at_least=0, at_most=2**31)] = 0


@dataclass(frozen=True)
class Chat:
    """What people can chat with."""

    models: Mapping[str, ModelThread] = field(default_factory=dict)
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    """Initial values of the form."""
    ending: threading.Event = field(default_factory=threading.Event)
    """Set when the app ends."""

    @property
    def choices(self) -> dict[str, str]:
        """Names of the models that answer a prompt, separated by spaces -> title of this choice."""
        named = {name: name.upper() for name in self.models}
        both = {" ".join(named): f"{' and '.join(named.values())}, side by side"} if len(named) > 1 else {}
        return named | both | {f"{name} {name}": f"two answers of {title}" for name, title in named.items()}


NO_CHAT = Chat()
InQuery = Query(ge=0, le=2**62)


class Playground:
    """The pages of the playground; each method answers one kind of request."""

    def __init__(self, pages: Pages, chat: Chat) -> None:
        self.pages, self.chat, self.conversations = pages, chat, Conversations(pages.store)
        self.rate, self.stops = RateLimit(PROMPTS, 60), set[int]()

    def add_to(self, app: FastAPI) -> None:
        """Adds the pages to the app."""

        def own(number: Number, session: Signed) -> Turn:
            return self.conversations.turns(session.name, number=number)[0]

        @app.get("/playground/{number}", response_class=EventSourceResponse)
        async def answer(turn: Annotated[Turn, Depends(own)]) -> AsyncIterator[ServerSentEvent]:
            stream = AnswerStream(self.conversations, turn, lambda: turn.id in self.stops or self.chat.ending.is_set())
            async for event in stream.events(self.chat.models):
                yield event
            self.stops.discard(turn.id)

        app.get("/playground")(self.show)
        app.post("/playground")(self.ask)
        app.post("/playground/accept")(self.accept)
        app.post("/playground/delete")(self.delete)
        app.post("/playground/{number}/stop")(self.stop)
        app.post("/playground/{number}/judge")(self.judge)

    def accept(self, session: Signed, fields: Fields) -> Response:
        """Stores that the person has accepted the notice."""
        self.conversations.accept(session.name)
        return RedirectResponse("/playground", 303)

    def show(self, session: Signed, conversation: Annotated[int | None, InQuery] = None) -> Response:
        """A conversation, the form for a new one, or the notice."""
        return self.page(session, conversation, {})

    def page(self, session: Session, number: int | None, fields: dict[str, Any], problem: str = "") -> Response:
        """The page of `show`; a form that was refused is shown with its fields and the problem."""
        own = self.conversations.turns(session.name)
        turns = [] if number is None else self.conversations.turns(session.name, number)
        asked = sorted(answer.model for answer in turns[-1].answers) if turns else []
        chosen = next((choice for choice in self.chat.choices if sorted(choice.split()) == asked), "")
        used = turns[-1].answers[0].generation if turns else self.chat.settings.recorded(0)
        values = {"models": chosen, "prompt": "", **used, "seed": "", **fields}
        return self.pages.page(
            "playground.html", session, 422 if problem else 200, turns=turns, number=number, values=values,
            problem=problem, first_turns={turn.conversation: turn for turn in reversed(own)}, numbers=NUMBERS,
            judgments=JUDGMENTS, choices=self.chat.choices, accepted=self.conversations.accepted(session.name),
            form=secrets.token_urlsafe(16),
        )  # fmt: skip

    def ask(self, session: Signed, fields: Fields, conversation: Annotated[int | None, InQuery] = None) -> Response:
        """Stores a prompt, and shows the page to which its answers are streamed."""
        if not self.conversations.accepted(session.name):
            raise HTTPException(403, "Accept the notice of the playground first.")
        try:
            answers, prompt, form = answers_of(fields, self.chat.choices), text(fields, "prompt"), text(fields, "form")
            if not prompt:
                raise FormError("Write a prompt.")
            self.rate(session.name)
        except (FormError, HTTPException) as error:
            return self.page(session, conversation, fields, getattr(error, "detail", str(error)))
        return to(self.conversations.ask(session.name, prompt, answers, form, conversation))

    def stop(self, session: Signed, number: Number, fields: Fields) -> Response:
        """Stops the answers that are being generated."""
        if self.conversations.turns(session.name, number=number)[0].waiting:
            self.stops.add(number)
        return Response(status_code=204)

    def judge(self, session: Signed, number: Number, fields: Fields) -> Response:
        """Stores which of two answers is better, and each answer's thumb; `none` removes the thumb."""
        with self.conversations.changed(session.name, number) as turn:
            if turn.waiting:
                raise HTTPException(422, "Wait for the answers.")
            if len(turn.answers) == 2:
                turn.ranks = JUDGMENTS.get(str(fields.get("judgment")), turn.ranks)
            for place, answer in enumerate(turn.answers):
                if (thumb := fields.get(f"thumb-{place}")) in ("up", "down", "none"):
                    answer.thumb = "" if thumb == "none" else str(thumb)
        return to(turn)

    def delete(self, session: Signed, fields: Fields, conversation: Annotated[int, InQuery]) -> Response:
        """Deletes a conversation."""
        self.conversations.delete(session.name, conversation)
        return RedirectResponse("/playground", 303)


def to(turn: Turn) -> Response:
    """Redirects to a turn on the page of its conversation."""
    return RedirectResponse(f"/playground?conversation={turn.conversation}#turn-{turn.id}", 303)


def answers_of(fields: Mapping[str, Any], choices: Mapping[str, str]) -> list[Answer]:
    """The answers that a form asks for. Raises FormError for settings that are not allowed."""
    models = text(fields, "models")
    if models not in choices:
        raise FormError("Choose a model from the list.")
    try:
        values = {name: text(fields, name) for name in NUMBERS}
        values["seed"] = values["seed"] or str(secrets.randbelow(2**31))
        settings = Settings(**{name: kind(values[name]) for name, (kind, _) in NUMBERS.items()})
    except ValueError:
        raise FormError("Each of the settings is a number; max_new_tokens, top_k and seed are whole numbers.") from None
    try:
        check_numbers(settings)
    except ValueError as error:
        raise FormError(f"{error}.") from None
    if settings.greedy and len(set(models.split())) < len(models.split()):
        raise FormError("Without sampling, two answers of one model are the same: raise the temperature.")
    shown = random.sample(models.split(), len(models.split()))  # so that neither model is always on the left
    return [Answer(model, settings.recorded(settings.seed + place)) for place, model in enumerate(shown)]
