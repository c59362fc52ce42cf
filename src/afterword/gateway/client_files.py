"""Serves the JavaScript client from the gateway itself, so that a page needs no other host."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

from aiohttp import web

_TYPES = {"afterword.js": "text/javascript", "afterword.d.ts": "text/plain"}


@cache
def _file(name: str) -> tuple[bytes, str]:
    content = resources.files("afterword.client").joinpath("js", name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:16]


async def client_file(request: web.Request) -> web.Response:
    """Returns the client, or its types, as a file that a browser may keep for an hour."""
    name = request.path.rpartition("/")[2]
    content, tag = _file(name)
    headers = {"ETag": f'"{tag}"', "Cache-Control": "public, max-age=3600", "Access-Control-Allow-Origin": "*",
               "X-Content-Type-Options": "nosniff"}  # fmt: skip
    if request.headers.get("If-None-Match") == headers["ETag"]:
        return web.Response(status=304, headers=headers)
    return web.Response(body=content, content_type=_TYPES[name], charset="utf-8", headers=headers)
