"""Derives the URLs of a model server's routes from the URL in the settings; tells whether a host is this machine.

The configured URL may end at the host, at a version (`/v1`) or at a route. Callers try the base URLs in order.
"""

from __future__ import annotations

import ipaddress
import re

from yarl import URL

_VERSION = re.compile(r"v\d+\w*")
_ROUTES = ("/chat/completions", "/models")


def base_urls(url: str) -> list[URL]:
    """Lists the URLs that `chat/completions` may be below, the most likely one first.

    Args:
        url: As configured. A query (`?api-version=...`) is kept.

    Returns:
        One URL where the path ends with a version (`/v1`, `/api/paas/v4`) or with a route. Otherwise two: `/v1` and the
        host for a bare host; the path and `/v1` below it for any other path (`/v1beta/openai`, a proxy's prefix).
    """
    given = URL(url)
    path = given.path.rstrip("/")
    for route in _ROUTES:
        if path.endswith(route):
            return [_at(given, path.removesuffix(route))]
    if _VERSION.fullmatch(path.rpartition("/")[2]):
        return [_at(given, path)]
    return [_at(given, path + "/v1"), _at(given, path)] if not path else [_at(given, path), _at(given, path + "/v1")]


def route_url(base: URL, path: str) -> URL:
    """Joins a base URL and the path of a route; keeps the query."""
    return base.with_path(base.path.rstrip("/") + path, keep_query=True)


def server_root(base: URL) -> URL:
    """Strips the version from a base URL: health probes are served there."""
    path = base.path.rstrip("/")
    head, _, last = path.rpartition("/")
    return base.with_path((head if _VERSION.fullmatch(last) else path) or "/")


def is_loopback(name: str | None) -> bool:
    """True when a host name or address is this machine."""
    if name is None:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _at(given: URL, path: str) -> URL:
    return given.with_path(path or "/", keep_query=True).with_fragment(None)
