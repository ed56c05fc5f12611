"""The web app: pages on which people rank answers, and on which an admin sees their progress and agreement.

app = create_app(Store(path))
uvicorn.run(app, host="127.0.0.1", port=8000)
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from labeling.ratings import FLAGS, NULLABLE, QUALITY
from labeling.web.conversations import AbsentError
from labeling.web.export import rows_of, screening
from labeling.web.forms import MAX_FIELD, SKIP_REASONS, FormError, draft_of, label_of
from labeling.web.pages import HERE, Admin, Fields, Number, Pages, Signed, written_in
from labeling.web.people import SESSION_SECONDS, Session, StoreError
from labeling.web.playground import NO_CHAT, Chat, Playground
from labeling.web.security import Guard, RateLimit
from labeling.web.store import Label, Store, Task

HOSTS = ("127.0.0.1", "localhost", "[::1]", "testserver")
SIGN_INS = 10
"""Attempts to sign in that an address has each minute."""

PROBLEMS: dict[type[Exception], tuple[int, str]] = {
    RequestValidationError: (404, "There is no such page."),
    AbsentError: (404, "There is no such conversation of yours."),
}


class RankingPages(Pages):
    """The pages for ranking, sign-in and admins; each method answers one kind of request."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.failures = RateLimit(SIGN_INS, 60)

    def problem(self, status: int, text: str, written: str = "") -> HTMLResponse:
        """A page that says what did not work, with what the person wrote."""
        return self.page("message.html", None, status, title="This did not work", text=text, written=written)

    def explained(self, status: int, text: str, request: Request, error: Exception) -> Response:
        """`problem` for an exception of PROBLEMS."""
        return self.problem(status, text)

    async def sign_in(self, request: Request) -> Response:
        """Starts a session with an invitation token."""
        fields = await request.form(max_files=0, max_fields=5, max_part_size=MAX_FIELD)
        secret = await run_in_threadpool(self.store.sign_in, str(fields.get("token", "")).strip())
        if secret is None:
            self.failures(request.client.host if request.client else "")
            return self.page("sign_in.html", None, 401, message="This token is not known. Ask for a new invitation.")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self.cookie, secret, max_age=SESSION_SECONDS, httponly=True, samesite="strict")
        return answer

    def sign_out(self, request: Request, fields: Fields) -> Response:
        """Ends the session."""
        self.store.sign_out(self.secret(request))
        return RedirectResponse("/", 303)

    def home(self, request: Request) -> Response:
        """Progress and the way to the next task, or the form to sign in."""
        session = self.store.session(self.secret(request))
        if session is None:
            return self.page("sign_in.html", None, message="")
        return self.page("home.html", session, progress=self.store.progress(session.name))

    def next_task(self, session: Signed) -> Response:
        """To the next task of the queue."""
        task = self.store.claim(session.name)
        if task is None:
            done = "All tasks are labelled. Thank you!"
            return self.page("message.html", session, title="Nothing left", text=done, written="")
        return RedirectResponse(f"/rank/{task.id}", 303)

    def previous_task(self, session: Signed) -> Response:
        """To the task that was saved last, to correct it."""
        task = self.store.last(session.name)
        return RedirectResponse("/" if task is None else f"/rank/{task.id}", 303)

    def task(self, number: int, session: Session) -> Task:
        """A task of the labeler. Raises 404 for others, whether they exist or not."""
        found = self.store.task(number, session.name)
        if found is None:
            raise HTTPException(404, "There is no such task for you.")
        return found

    def ranking(self, number: Number, session: Signed) -> Response:
        """The page of a task."""
        return self.ranking_page(session, self.task(number, session))

    def ranking_page(self, session: Session, task: Task, message: str = "", status: int = 200) -> Response:
        """A task with what was said about it, and a message about the last attempt to save."""
        label = task.draft or task.label or Label()
        count = len(task.shown)
        return self.page(
            "rank.html", session, status, task=task, label=label, message=message,
            ranks=label.ranks or [None] * count, ratings=label.ratings or [{}] * count, flags=FLAGS,
            nullable=NULLABLE, quality=QUALITY,
            reasons=SKIP_REASONS, progress=self.store.progress(session.name),
        )  # fmt: skip

    def save(self, number: Number, session: Signed, fields: Fields) -> Response:
        """Saves a label and goes to the next task."""
        task = self.task(number, session)
        seconds = round(max(0.0, time.time() - task.since), 1)  # the clock may have been set back
        try:
            label = label_of(fields, len(task.shown), seconds)
            revision = int(str(fields.get("revision", "")))
        except (FormError, ValueError) as error:
            text = str(error) if isinstance(error, FormError) else "The form is incomplete. Reload the page."
            return self.ranking_page(session, replace(task, draft=draft_of(fields, len(task.shown))), text, 422)
        if not self.store.save(number, session.name, label, revision):
            text = "This task was saved in another window. Save this form, which was not saved, to replace that label."
            return self.ranking_page(session, replace(self.task(number, session), draft=label), text, 409)
        return RedirectResponse("/next", 303)

    def overview(self, session: Admin) -> Response:
        """Progress, agreement and screening of all labelers."""
        return self.admin_page(session)

    def admin_page(self, session: Session, token: str = "", name: str = "") -> Response:
        """The page of `overview`, with the token of a person who was just invited."""
        agreed, screened = screening(self.store)
        return self.page(
            "admin.html", session, progress=self.store.progress(), people=self.store.people(), agreement=agreed,
            screened=screened, token=token, name=name,
        )  # fmt: skip

    def invite(self, session: Admin, fields: Fields) -> Response:
        """Invites a labeler, and shows the token once."""
        name = str(fields.get("name", "")).strip()
        if (name, True) in self.store.people():
            raise HTTPException(422, "Invitations of admins can only be renewed on the command line.")
        try:
            return self.admin_page(session, self.store.invite(name), name)
        except StoreError:
            raise
        except ValueError as error:
            raise HTTPException(422, f"{error}.") from None

    def export(self, name: str, session: Admin) -> Response:
        """A file of the export, a JSON object a line. Raises 404 for an unknown name."""
        rows = rows_of(self.store).get(name)
        if rows is None:
            raise HTTPException(404, "There is no such file.")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return StreamingResponse(lines, media_type="application/x-ndjson")


def create_app(store: Store, hosts: Sequence[str] = HOSTS, chat: Chat = NO_CHAT) -> ASGIApp:
    """The app, as an ASGI application. Requests for hosts not in `hosts` are refused, against DNS rebinding."""
    app, pages = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), RankingPages(store)
    app.state.pages = pages
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.get("/")(pages.home)
    app.post("/sign-in")(pages.sign_in)
    app.post("/sign-out")(pages.sign_out)
    app.get("/next")(pages.next_task)
    app.get("/previous")(pages.previous_task)
    app.get("/rank/{number}")(pages.ranking)
    app.post("/rank/{number}")(pages.save)
    app.get("/admin")(pages.overview)
    app.post("/admin/invite")(pages.invite)
    app.get("/admin/{name}.jsonl")(pages.export)
    Playground(pages, chat).add_to(app)

    @app.exception_handler(StarletteHTTPException)
    async def explain(request: Request, error: StarletteHTTPException) -> Response:
        written = await written_in(request) if error.status_code in (401, 403, 404) else ""
        return pages.problem(error.status_code, str(error.detail), written)

    @app.exception_handler(StoreError)
    async def unsaved(request: Request, error: StoreError) -> Response:
        text = f"Nothing was saved: {error}. Tell the admin; then go back and send the form again."
        return pages.problem(503, text, await written_in(request))

    for kind, (status, text) in PROBLEMS.items():
        app.add_exception_handler(kind, partial(pages.explained, status, text))
    return Guard(TrustedHostMiddleware(app, hosts, www_redirect=False))
