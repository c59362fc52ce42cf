"""Restricts which web pages and host names reach a gateway without API keys; sets CORS headers.

A browser lets any page send requests to a server on its user's machine. So without keys only origins and host names of
this machine, or in `serve.allow_origins`, are allowed. Never looks at a key.
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
    """A request without an API key has a foreign origin or host name."""

    status = 403
    kind = "permission_error"


class OriginPolicy:
    """Checks origins and host names for one gateway.

    Args:
        allowed: Origins such as `https://chat.example`; "*" allows every origin and host name.

    Raises:
        ConfigError: If an origin is invalid.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._all = "*" in allowed
        self._origins = {_origin(text) for text in allowed if text != "*"}
        self._names = {urlsplit(origin).hostname for origin in self._origins}
        self._known: set[tuple[str | None, str | None]] = {(None, None)}
        """Pairs of host and origin that were let in before."""

    def check(self, headers: Mapping[str, str]) -> None:
        """Checks a request that has no API key.

        Raises:
            OriginRejected: If its host name or origin is not allowed.
        """
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
        """True when pages of this origin may use the gateway."""
        if self._all or origin.lower() in self._origins:
            return True
        name = _name(origin.partition("://")[2]) if origin.lower().startswith(("http://", "https://")) else None
        return is_loopback(name)

    def _is_ours(self, name: str | None) -> bool:
        return is_loopback(name) or name in self._names

    # ---- CORS

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Adds CORS headers for an allowed origin."""
        origin = request.headers.get("Origin")
        if origin is not None and self.allows(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
            response.headers["Vary"] = "Origin"

    def preflight(self, request: web.Request) -> web.Response | None:
        """Answers a CORS preflight request.

        Returns:
            The response; None for any other request.

        Raises:
            OriginRejected: If the origin is not allowed.
        """
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
        f"{what} is rejected: without API keys only this machine's are allowed. Add it to "
        f'`serve.allow_origins`, as in ["{scheme}://chat.example"], or create a key with `afterword keys create`.'
    )


def _name(host: str) -> str | None:
    """The host name of `name:port`; None when it is invalid."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _origin(text: str) -> str:
    """Normalises an origin of the settings; ConfigError when it is invalid."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(
            f"`serve.allow_origins` has the invalid origin {text!r:.80}: write it like https://chat.example:8443.",
            param="allow_origins",
        )
    return text.rstrip("/").lower()
