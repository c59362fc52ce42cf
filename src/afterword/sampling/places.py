"""Where a model server's routes are, from the one URL that a user gives: with or without a version, or a whole route;
and whether a host is this machine.

Pure; whoever asks tries the places in their order until one answers.
"""

from __future__ import annotations

import ipaddress
import re

from yarl import URL

_VERSION = re.compile(r"v\d+\w*")
_ROUTES = ("/chat/completions", "/models")


def places(url: str) -> list[URL]:
    """The URLs below which `chat/completions` may be, the likeliest first.

    A path that ends with a version (`/v1`, `/api/paas/v4`) or that came with the route itself is the place. Of a bare
    host it is `/v1` or the host, of any other path (`/v1beta/openai`, `/inference`, a proxy's prefix) the path or `/v1`
    below it. A query (`?api-version=...`) stays.
    """
    given = URL(url)
    path = given.path.rstrip("/")
    for route in _ROUTES:
        if path.endswith(route):
            return [_at(given, path.removesuffix(route))]
    if _VERSION.fullmatch(path.rpartition("/")[2]):
        return [_at(given, path)]
    return [_at(given, path + "/v1"), _at(given, path)] if not path else [_at(given, path), _at(given, path + "/v1")]


def route(place: URL, path: str) -> URL:
    """The URL of a route below a place."""
    return place.with_path(place.path.rstrip("/") + path, keep_query=True)


def root(place: URL) -> URL:
    """The server's root, where probes are: the place without its version."""
    path = place.path.rstrip("/")
    head, _, last = path.rpartition("/")
    return place.with_path((head if _VERSION.fullmatch(last) else path) or "/")


def is_loopback(name: str | None) -> bool:
    """Is this host name or address the machine itself?"""
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
