"""Renders a page: checks its key, answers errors as pages, sets the security headers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import orjson
from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

import afterword
from afterword.console import filters
from afterword.console.actions import Actions
from afterword.console.background import Refreshed
from afterword.console.overview import Learned, Overview
from afterword.console.sessions import COOKIE, Sessions
from afterword.errors import AfterwordError, UsageError
from afterword.records import Json
from afterword.store import Store
from afterword.store.browse import UserTurns, users_with_turns

log = logging.getLogger("afterword.console")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FORM_BYTES = 64 * 1024
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-src 'self'; frame-ancestors 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every page: nothing from other hosts, no inline script, no frame of others."""
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"
"""Of a stored report: it carries its own style and no script."""


class Console:
    """The parts that all pages of one data directory share."""

    def __init__(self, store: Store, actions: Actions, name: str) -> None:
        self.store, self.actions, self.name = store, actions, name
        self.directory: Path = store.path.parent
        self.sessions = Sessions()
        self.overview = Overview(store)
        self.counts = Refreshed(self.overview.update, every=2.0)
        self.learned: Refreshed[Learned] = Refreshed(self.overview.learned, every=20.0)
        self.live: Refreshed[Json] = Refreshed(actions.live, every=60.0)
        self.waiting: Refreshed[list[str]] = Refreshed(actions.waiting, every=15.0)
        self.agreement: Refreshed[Json] = Refreshed(actions.agreement, every=15.0)
        self.canaries: Refreshed[list[Json]] = Refreshed(actions.canaries, every=5.0)
        self.needs: Refreshed[Json] = Refreshed(actions.needs, every=120.0)
        self.plan: Refreshed[Json] = Refreshed(actions.plan, every=120.0)
        self.users: Refreshed[list[UserTurns]] = Refreshed(lambda: users_with_turns(store), every=60.0)

    async def close(self) -> None:
        """Waits for computations that run."""
        for one in self.computed:
            await one.close()

    @property
    def computed(self) -> tuple[Refreshed[Any], ...]:
        """Everything that is computed in the background."""
        return (
            self.counts, self.learned, self.live, self.waiting, self.agreement, self.canaries, self.needs, self.plan,
            self.users,
        )  # fmt: skip


CONSOLE: web.AppKey[Console] = web.AppKey("console", Console)


def page(handler: Handler, scope: str | None) -> Handler:
    """Wraps a page: checks the key, answers errors as pages, sets the security headers.

    Args:
        handler: The page.
        scope: Scope of the key that it needs; None: none.
    """

    async def wrapped(request: web.Request) -> web.StreamResponse:
        response = await _answer(request, handler, scope)
        for header, value in SECURITY.items():
            response.headers.setdefault(header, value)
        return response

    return wrapped


async def _answer(request: web.Request, handler: Handler, scope: str | None) -> web.StreamResponse:
    console = request.app[CONSOLE]
    try:
        if scope is not None:
            authorization = console.sessions.authorization(request)
            console.actions.check(request, authorization, scope)
        if request.method == "POST":
            console.sessions.check_form(request, (await form_of(request)).get("token", ""))
        return await handler(request)
    except AfterwordError as error:
        if error.status == 401 and request.method == "GET" and "hx-request" not in request.headers:
            return redirect(f"/console/login?next={quote(request.path_qs, safe='')}")
        return error_page(request, error)
    except web.HTTPException:
        raise
    except ConnectionError:
        raise
    except Exception as error:
        log.exception("the page %s failed", request.path)
        return error_page(request, AfterwordError(f"the page failed ({type(error).__name__}): see the server's log."))


def error_page(request: web.Request, error: AfterwordError) -> web.Response:
    """An error as a page, or as a fragment where only a part of the page was asked for."""
    template = "error_part.html" if "hx-request" in request.headers else "error.html"
    response = render(request, template, title="Error", message=error.message, status=error.status)
    response.set_status(error.status)
    return response


def inside(address: str, otherwise: str = "/console") -> str:
    """An address of the console; anything else becomes `otherwise`."""
    parts = urlsplit(address)
    own = not parts.scheme and not parts.netloc and parts.path.startswith("/console") and "\\" not in address
    return address if own else otherwise


def row_number(request: web.Request, name: str) -> int | None:
    """A row number of the query.

    Raises:
        UsageError: It is no whole number.
    """
    text = request.query.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UsageError(f"`{name}` is {text!r:.40}: it must be a row number. Follow the links of the page.")
    return int(text)


def redirect(address: str) -> web.Response:
    """Sends the browser to another page of this server."""
    return web.Response(status=303, headers={"Location": address})


async def form_of(request: web.Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        UsageError: It is larger than FORM_BYTES, or holds a file.
    """
    if request.content_length is not None and request.content_length > FORM_BYTES:
        raise UsageError(f"the form has {request.content_length} bytes, at most {FORM_BYTES} are allowed: shorten it.")
    try:
        fields = await request.post()
    except ValueError as error:
        raise UsageError("the form cannot be read: send it as application/x-www-form-urlencoded.") from error
    if any(not isinstance(value, str) for value in fields.values()):
        raise UsageError("the form holds a file: this page takes text only.")
    return {name: str(value) for name, value in fields.items()}


# ---- rendering


@cache
def _environment() -> Environment:
    loader = PackageLoader("afterword.console", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters.FILTERS)
    return environment


@cache
def static_files() -> dict[str, tuple[bytes, str]]:
    """Name -> content and its hash, of every file of `static/`."""
    folder = resources.files("afterword.console").joinpath("static")
    found = {}
    for file in folder.iterdir():
        data = file.read_bytes()
        found[file.name] = data, hashlib.sha256(data).hexdigest()[:12]
    return found


def add_static(name: str, text: str) -> None:
    """Serves a text of another room beside the files of `static/`."""
    data = text.encode()
    static_files()[name] = data, hashlib.sha256(data).hexdigest()[:12]


def asset(name: str) -> str:
    """The address of a file of `static/`; it changes with the content."""
    return f"/console/static/{name}?v={static_files()[name][1]}"


def render(request: web.Request, template: str, /, **values: Any) -> web.Response:
    """A page of `templates/`; everything in it is escaped."""
    console = request.app[CONSOLE]
    shared = {
        "asset": asset,
        "here": request.path,
        "token": console.sessions.token(request),
        "signed_in": COOKIE in request.cookies,
        "name": console.name,
        "version": afterword.__version__,
    }
    text = _environment().get_template(template).render({**shared, **values})
    return web.Response(text=text, content_type="text/html")


def json_page(data: Any) -> web.Response:
    """JSON for a script of ours."""
    return web.Response(body=orjson.dumps(data), content_type="application/json")
