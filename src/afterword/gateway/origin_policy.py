"""Which web pages may use the gateway, and under which host names it answers when no key protects it.

A browser lets any page send requests to a server on its user's machine. So without keys only pages and names of this
machine come in, and those that the settings name. Owns this check and the CORS headers; never looks at a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from aiohttp import web

from afterword.errors import AfterwordError, ConfigError
from afterword.sampling.urls import is_loopback

_EXPOSED = "x-request-id, x-afterword-turn, x-afterword-adapter, x-afterword-overhead-ms, retry-after"
_REMEMBERED = 1000


class OriginRejected(AfterwordError):
    """A page or a name that is not this machine's, and no key."""

    status = 403
    kind = "permission_error"


class OriginPolicy:
    """The check of one gateway. `allowed`: origins such as `https://chat.example`; "*" allows every page and name."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._all = "*" in allowed
        self._origins = {_origin(text) for text in allowed if text != "*"}
        self._names = {urlsplit(origin).hostname for origin in self._origins}
        self._known: set[tuple[str | None, str | None]] = {(None, None)}
        """Pairs of host and origin that were let in before."""

    def check(self, headers: Mapping[str, str]) -> None:
        """For a request without a key. Raises OriginRejected."""
        host, origin = headers.get("Host"), headers.get("Origin")
        if (host, origin) in self._known or self._all:
            return
        if host is not None and not self._is_ours(_name(host)):
            raise OriginRejected(_message(f"the host name {host!r:.80}", "http"), code="host")
        if origin is not None and not self.allows(origin):
            raise OriginRejected(_message(f"the page {origin!r:.80}", "https"), code="origin")
        if len(self._known) < _REMEMBERED:
            self._known.add((host, origin))

    def allows(self, origin: str) -> bool:
        """May a page of this origin use the gateway?"""
        if self._all or origin.lower() in self._origins:
            return True
        name = _name(origin.partition("://")[2]) if origin.lower().startswith(("http://", "https://")) else None
        return is_loopback(name)

    def _is_ours(self, name: str | None) -> bool:
        return is_loopback(name) or name in self._names

    # ---- CORS

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let an allowed page read the answer."""
        origin = request.headers.get("Origin")
        if origin is not None and self.allows(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
            response.headers["Vary"] = "Origin"

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks whether it may ask; None for any other request."""
        headers = request.headers
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in headers:
            return None
        origin = headers.get("Origin", "")
        if not self.allows(origin):
            raise OriginRejected(_message(f"the page {origin!r:.80}", "https"), code="origin")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, DELETE",
                "Access-Control-Allow-Headers": headers.get("Access-Control-Request-Headers", "*"),
                "Access-Control-Max-Age": "600",
            },
        )


def _message(what: str, scheme: str) -> str:
    return (
        f"{what} is not this machine's, and without API keys nobody else is let in. Name it in the setting "
        f'`serve.allow_origins`, as in ["{scheme}://chat.example"], or make a key with `afterword keys create`.'
    )


def _name(host: str) -> str | None:
    """The name of `name:port`, None when it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _origin(text: str) -> str:
    """A checked origin of the settings."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(
            f"`serve.allow_origins` has {text!r:.80}, which is no origin; write it like https://chat.example:8443.",
            param="allow_origins",
        )
    return text.rstrip("/").lower()
