"""Passes requests that are no conversation on to the model server: completions, embeddings, audio, images.

Nothing is stored or learned. The names that the gateway serves stand for the model server's own.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from afterword.errors import NotFoundError
from afterword.gateway.state import GATEWAY, REQUEST_ID, Gateway
from afterword.sampling import UpstreamRejected

PASSED = (
    "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/moderations", "/v1/audio/speech",
    "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/generations", "/v1/images/edits",
    "/v1/images/variations",
)  # fmt: skip
"""Routes of OpenAI's API (and vLLM's rerank) that are passed on."""
_NOT_THERE = (404, 405, 501)


async def pass_on(request: web.Request) -> web.StreamResponse:
    """Sends the request to the same route of the model server and its answer, with any status, to the client.

    Raises:
        NotFoundError: If the model server has no such route.
        UpstreamError: If it is down or too slow.
    """
    gateway = request.app[GATEWAY]
    kind = request.headers.get("Content-Type", "application/json")
    body = await request.read()
    if kind.partition(";")[0].strip() == "application/json":
        body = await _named(gateway, body)
    try:
        answer = await gateway.upstream.forward(request.path.removeprefix("/v1"), body, kind)
    except UpstreamRejected as error:
        if error.answered in _NOT_THERE:
            raise NotFoundError(
                f"the model server {gateway.upstream.url} has no route {request.path}: use a server that has it, or "
                "use POST /v1/chat/completions.",
            ) from error
        raise
    try:
        response = web.StreamResponse(status=answer.status, headers={"x-request-id": request[REQUEST_ID]})
        response.headers["Content-Type"] = answer.headers.get("Content-Type", "application/octet-stream")
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
    finally:
        answer.close()
    return response


async def _named(gateway: Gateway, body: bytes) -> bytes:
    """The body with the model server's name for a model of ours; any other body as it is."""
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body  # the model server says what is wrong with it
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, str):
        return body
    try:
        route = await gateway.adapters.resolve(model)
    except NotFoundError:
        return body  # a model for embeddings or speech, which only the model server knows
    return orjson.dumps({**data, "model": route.model})
