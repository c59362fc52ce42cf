"""Wraps every request: assigns its id, checks its key and renders errors in one JSON shape.

Owns status and headers of errors; never changes a successful answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from afterword.errors import AfterwordError, UpstreamError, error_body, error_response
from afterword.gateway.keys import KeyMissing
from afterword.gateway.state import GATEWAY, KEY, REQUEST_ID
from afterword.gateway.wire import messages, ollama
from afterword.records import Json, new_id
from afterword.sampling import UpstreamRejected

log = logging.getLogger("afterword.gateway")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_EPISODE_PATH = re.compile(r"^/episodes/[^/]+(?=/v1/)")
"""The part of a path that names an episode."""
DOWN_SECONDS = 10
"""When to ask again a model server that cannot be reached: the built-in engine starts again in about as long, and
OpenAI's clients wait so long by themselves."""
PASSED_ON = (400, 402, 404, 409, 413, 422, 429)
"""Statuses of the upstream that are about the request and reach the client as they are."""
_BASE = "the client's base URL must end with /v1, as in http://HOST:PORT/v1."
_INSTEAD = {
    "/chat/completions": _BASE, "/models": _BASE, "/feedback": _BASE, "/v1/v1/chat/completions": _BASE,
}  # fmt: skip
"""What to use in place of routes that are elsewhere."""


def json_response(body: Json, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Builds a JSON response."""
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type="application/json")


def guard(handler: Handler, scope: str | None) -> Handler:
    """Wraps a handler in the check of the API key and, without keys, of the origin.

    Args:
        handler: The handler.
        scope: Scope that the key needs; None: no check.

    Returns:
        A handler that raises KeyMissing, ScopeMissing, KeysUnreadable or OriginRejected first.
    """

    async def checked(request: web.Request) -> web.StreamResponse:
        if scope is not None:
            gateway = request.app[GATEWAY]
            key = request[KEY] = gateway.keys.check(given_key(request), scope)
            if key is None:
                gateway.origin_policy.check(request.headers)
        return await handler(request)

    return checked


@web.middleware
async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Assigns the request id and turns exceptions into error responses."""
    given = request.headers.get("x-request-id")
    usable = given and len(given) <= 200 and given.isascii() and given.isprintable()
    request[REQUEST_ID] = given if given and usable else new_id("req")
    try:
        response = (request.method == "OPTIONS" and _preflight(request)) or await handler(request)
    except AfterwordError as error:
        response = error_answer(error)
    except web.HTTPException as error:
        response = _http_error(request, error)
    except ConnectionError:
        raise
    except Exception:
        log.exception("request %s failed", request[REQUEST_ID])
        message = f"internal error: search the server's log for {request[REQUEST_ID]}."
        response = json_response(error_body(message, kind="server_error"), 500)
    if not response.prepared:
        if response.status >= 400:
            _in_clients_form(_EPISODE_PATH.sub("", request.path), response)
        response.headers["x-request-id"] = request[REQUEST_ID]
    return response


def _in_clients_form(path: str, response: web.StreamResponse) -> None:
    """Rewrites an error for a client of the Messages API or of Ollama's."""
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        return
    if path.startswith(messages.PATH):
        response.body = orjson.dumps(messages.error_json(response.status, orjson.loads(response.body)["error"]))
    elif path.startswith(ollama.PATH):
        response.body = orjson.dumps(ollama.error_json(orjson.loads(response.body)["error"]))


def given_key(request: web.Request) -> str | None:
    """The API key that a request brings, in either of the two headers."""
    return request.headers.get("Authorization") or request.headers.get("x-api-key")


def _preflight(request: web.Request) -> web.Response | None:
    return request.app[GATEWAY].origin_policy.preflight(request)


def error_answer(error: AfterwordError) -> web.Response:
    """Builds the HTTP response for an AfterwordError."""
    status, body = error_response(error)
    headers: dict[str, str] = {}
    if isinstance(error, UpstreamRejected):
        headers |= error.headers
    elif isinstance(error, UpstreamError) and error.code == "down":
        headers["Retry-After"] = str(DOWN_SECONDS)
    if isinstance(error, UpstreamRejected) and error.answered in PASSED_ON:
        status = error.answered
        body = error_body(
            str(error.error.get("message")),
            kind=str(error.error.get("type") or "invalid_request_error"),
            param=None if (param := error.error.get("param")) is None else str(param),
            code=error.error.get("code"),
        )
    if isinstance(error, KeyMissing):
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(body, status, headers)


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    headers: dict[str, str] = {}
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        limit = request.app[GATEWAY].settings.max_body
        message = f"the body exceeds {limit} bytes: send a smaller one."
    elif isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"the method {request.method} is invalid for {request.path}: use {allowed}."
        headers["Allow"] = allowed
    elif isinstance(error, web.HTTPNotFound):
        instead = _INSTEAD.get(request.path, "GET /openapi.json lists the routes.")
        message = f"no route {request.path}: {instead}"
    else:
        message = error.text or error.reason
    kind = "not_found_error" if error.status == 404 else "invalid_request_error"
    return json_response(error_body(message, kind=kind), error.status, headers)
