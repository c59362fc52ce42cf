"""Signs people in to the console: a session cookie stands for an API key, and forms carry a token against forgery.

A session holds the key's text in memory alone. The key is checked again at each request, so that a revoked key ends its
sessions at once; a restart of the server ends all.
"""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import web

from afterword.errors import AfterwordError

COOKIE = "afterword_console"
IDLE_SECONDS = 12 * 3600.0
"""A session ends after so long without a request."""
MAX_SESSIONS = 1000


class ForgedForm(AfterwordError):
    """A form was sent from another site, or its page is older than the server's start."""

    status = 403
    kind = "permission_error"


@dataclass(slots=True)
class _Session:
    authorization: str
    seen: float


@dataclass(slots=True)
class Sessions:
    """The sessions of one server."""

    _sessions: dict[str, _Session] = field(default_factory=dict)
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def start(self, authorization: str) -> str:
        """Begins a session for a checked `Authorization` value; its cookie."""
        now = time.monotonic()
        for name in [name for name, one in self._sessions.items() if now - one.seen > IDLE_SECONDS]:
            del self._sessions[name]
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        cookie = secrets.token_urlsafe(32)
        self._sessions[cookie] = _Session(authorization, now)
        return cookie

    def end(self, request: web.Request) -> None:
        """Ends the session of a request."""
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)

    def authorization(self, request: web.Request) -> str | None:
        """The `Authorization` value of a request: its own header, else that of its session."""
        if header := request.headers.get("Authorization"):
            return header
        found = self._sessions.get(request.cookies.get(COOKIE, ""))
        now = time.monotonic()
        if found is None or now - found.seen > IDLE_SECONDS:
            return None
        found.seen = now
        return found.authorization

    def token(self, request: web.Request) -> str:
        """The token that forms of this session carry."""
        cookie = request.cookies.get(COOKIE, "")
        return hmac.new(self._secret, b"form:" + cookie.encode("utf-8", "replace"), "sha256").hexdigest()

    def check_form(self, request: web.Request, given: str) -> None:
        """Checks that a form comes from a page of this server.

        Raises:
            ForgedForm: Its token is wrong, or the browser names another origin.
        """
        origin = request.headers.get("Origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower()
        if foreign or not hmac.compare_digest(given.encode("utf-8", "replace"), self.token(request).encode()):
            raise ForgedForm(
                "the form is rejected: it was not sent by a current page of this console. Load the page again and "
                "repeat the entry.",
                code="form",
            )


def set_cookie(request: web.Request, response: web.StreamResponse, cookie: str) -> None:
    """Gives a session cookie to the browser: not for scripts, not for other sites."""
    secure = request.secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"
    response.set_cookie(COOKIE, cookie, httponly=True, samesite="Strict", path="/", secure=secure)
