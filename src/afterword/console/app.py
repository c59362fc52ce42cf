"""Adds the console and the chat page to the gateway's application: routes, static files, signing in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from afterword.console.actions import Actions
from afterword.console.framework import (
    CONSOLE,
    Console,
    add_static,
    form_of,
    inside,
    page,
    redirect,
    render,
    static_files,
)
from afterword.console.pages import ROUTES
from afterword.console.sessions import COOKIE, set_cookie
from afterword.errors import AfterwordError
from afterword.store import Store

TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}


def add_console(app: web.Application, store: Store, actions: Actions, name: str) -> None:
    """Adds `/console` and `/chat`.

    Args:
        app: The gateway's application, before its start.
        store: The gateway's store.
        actions: Functions of other rooms.
        name: Model name that users address.
    """
    console = app[CONSOLE] = Console(store, actions, name)
    add_static("report.css", actions.report_css)

    async def parts(_: web.Application) -> AsyncIterator[None]:
        yield
        await console.close()

    app.cleanup_ctx.append(parts)
    for method, path, scope, handler in ROUTES:
        app.router.add_route(method, path, page(handler, scope))
    app.router.add_route("GET", "/console/static/{name}", _static)
    app.router.add_route("GET", "/console/login", page(_login_page, None))
    app.router.add_route("POST", "/console/login", page(_login, None))
    app.router.add_route("POST", "/console/logout", page(_logout, None))


async def _static(request: web.Request) -> web.Response:
    found = static_files().get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound
    data, tag = found
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable",
        "ETag": f'"{tag}"',
        "X-Content-Type-Options": "nosniff",
    }
    kind = TYPES.get(Path(request.match_info["name"]).suffix, "application/octet-stream")
    return web.Response(body=data, content_type=kind, charset="utf-8", headers=headers)


# ---- signing in


async def _login_page(request: web.Request) -> web.Response:
    return render(request, "login.html", title="Sign in", problem="", next=inside(request.query.get("next", "")))


async def _login(request: web.Request) -> web.StreamResponse:
    console, fields = request.app[CONSOLE], await form_of(request)
    authorization = f"Bearer {fields.get('key', '').strip()}"
    try:
        console.actions.check(request, authorization, "review")
    except AfterwordError as error:
        await asyncio.sleep(0.3)  # guesses are slow
        response = render(
            request, "login.html", title="Sign in", problem=error.message, next=inside(fields.get("next", ""))
        )
        response.set_status(error.status)
        return response
    answer = redirect(inside(fields.get("next", "")))
    set_cookie(request, answer, console.sessions.start(authorization))
    return answer


async def _logout(request: web.Request) -> web.StreamResponse:
    request.app[CONSOLE].sessions.end(request)
    answer = redirect("/console/login")
    answer.del_cookie(COOKIE, path="/")
    return answer
