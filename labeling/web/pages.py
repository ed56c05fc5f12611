"""Templates, sessions and forms, shared by the pages of the web app. Signed, Admin, Fields and Number are types of
parameters that FastAPI fills in for handlers.
"""

from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from labeling.web.forms import MAX_FIELD
from labeling.web.people import Session, hashed
from labeling.web.security import check_csrf
from labeling.web.store import Store

HERE = Path(__file__).parent


class Pages:
    """The templates, and the store with its cookie."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self.cookie = f"session-{hashed(str(store.path.resolve()))[:12]}"
        """One for each store: browsers share the cookies of all ports of a host."""

    def page(self, template: str, session: Session | None, status: int = 200, **content: Any) -> HTMLResponse:
        """A rendered page."""
        text = self.templates.get_template(template).render(session=session, **content)
        return HTMLResponse(text, status)

    def secret(self, request: Request) -> str:
        """The secret of the request's session; empty without one."""
        return request.cookies.get(self.cookie, "")


def signed(request: Request) -> Session:
    """The session of a request. Raises 401 without one."""
    pages: Pages = request.app.state.pages
    found = pages.store.session(pages.secret(request))
    if found is None:
        raise HTTPException(401, "Sign in first.")
    return found


Signed = Annotated[Session, Depends(signed)]


def admin(session: Signed) -> Session:
    """The session of an admin. Raises 403 for others."""
    if not session.admin:
        raise HTTPException(403, "This page is for admins.")
    return session


async def form(request: Request, session: Signed) -> dict[str, Any]:
    """The fields of a form of this session. Raises 403 for forms of other sites and sessions."""
    fields = await form_fields(request)
    check_csrf(session.csrf, fields.get("csrf"))
    return fields


async def form_fields(request: Request) -> dict[str, Any]:
    """The fields of a request's form."""
    return dict(await request.form(max_files=0, max_fields=500, max_part_size=MAX_FIELD))


async def written_in(request: Request) -> str:
    """The demonstration or prompt in a refused form, so that the person can copy it; empty for other requests."""
    if request.method != "POST" or not request.url.path.startswith(("/rank/", "/playground")):
        return ""
    try:
        fields = await form_fields(request)
    except HTTPException:
        return ""
    return str(fields.get("demonstration") or fields.get("prompt") or "")


Admin = Annotated[Session, Depends(admin)]
Fields = Annotated[dict[str, Any], Depends(form)]
Number = Annotated[int, InPath(ge=0, le=2**62)]
