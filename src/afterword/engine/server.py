"""The engine's HTTP routes. Owns the names that can be asked for (the base model and the loaded adapters) and
the way from a body to a request and from pieces to bytes; all tensor work happens on the engine's thread."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from afterword.engine.adapters import Adapter, read_adapter
from afterword.engine.core import Engine, Piece, Request
from afterword.engine.protocol import Ask, RequestError, parse_ask
from afterword.engine.runner import Runner
from afterword.engine.text import Codec
from afterword.engine.wire import Answer, event
from afterword.errors import AdapterError, AfterwordError, NotFoundError, error_body, error_response
from afterword.records import Json

_MAX_BODY = 64 << 20


class Server:
    """Routes over one engine. `name` is the base model's name, `base` the hash of its weights.

    Make it inside the running event loop whose thread is to answer; `start` before serving `app`.
    """

    def __init__(self, runner: Runner, codec: Codec, name: str, root: str, base: str, *, max_batch: int = 32) -> None:
        self.name, self.root, self._base = name, root, base
        self.codec, self.runner = codec, runner
        self.engine = Engine(runner, codec, self._hand_over, max_batch=max_batch)
        self._created = int(time.time())
        self._adapters: dict[str, Adapter] = {}
        self._queues: dict[Request, asyncio.Queue[Piece]] = {}
        self._loop = asyncio.get_running_loop()
        self.app = web.Application(client_max_size=_MAX_BODY, middlewares=[_errors])
        self.app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name:.+}", self._model),
                web.post("/v1/load_lora_adapter", self._load),
                web.post("/v1/unload_lora_adapter", self._unload),
                web.get("/health", self._health),
            ]
        )

    # -- from the model thread to the requests' queues ----------------------------------------------------

    def _hand_over(self, pieces: list[tuple[Request, Piece]]) -> None:
        self._loop.call_soon_threadsafe(self._distribute, pieces)

    def _distribute(self, pieces: list[tuple[Request, Piece]]) -> None:
        for request, piece in pieces:
            queue = self._queues.get(request)
            if queue is not None:
                queue.put_nowait(piece)

    # -- answers ------------------------------------------------------------------------------------------

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        ask = parse_ask(await _body(http))
        request = self._request(ask)
        queue = self._queues[request] = asyncio.Queue()
        answer = Answer(request, self.codec)
        self.engine.submit(request)
        finished = False
        try:
            if ask.stream:
                response = await self._stream(http, answer, queue)
            else:
                response = await self._whole(answer, queue)
            finished = True
            return response
        finally:
            del self._queues[request]
            if not finished:
                self.engine.cancel(request)

    def _request(self, ask: Ask) -> Request:
        """Resolve the name, write the prompt and see that it fits."""
        adapter = self._adapters.get(ask.model)
        if adapter is None and ask.model != self.name:
            raise self._unknown(ask.model)
        prompt = self.codec.render(ask.messages, ask.tools)
        context = self.runner.max_model_len
        if len(prompt) >= context:
            raise RequestError(
                f"the prompt is {len(prompt)} tokens long and leaves no room for an answer: this model's context "
                f"is {context} tokens; shorten the messages",
                param="messages",
                code="context_length_exceeded",
            )
        limit = context - len(prompt)
        if ask.max_tokens is not None:
            limit = min(limit, ask.max_tokens)
        return Request(ask, prompt, limit, adapter, self.codec)

    async def _whole(self, answer: Answer, queue: asyncio.Queue[Piece]) -> web.Response:
        pieces = [await queue.get()]
        while pieces[-1].finish is None:
            pieces.append(await queue.get())
        if pieces[-1].finish == "error":
            return _json(_broken(), 500)
        return _json(answer.whole(pieces))

    async def _stream(self, http: web.Request, answer: Answer, queue: asyncio.Queue[Piece]) -> web.StreamResponse:
        piece = await queue.get()
        if piece.finish == "error":
            return _json(_broken(), 500)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        await response.prepare(http)
        data = answer.first() + answer.next(piece)
        while piece.finish is None:
            if data:
                await response.write(data)
            piece = await queue.get()
            data = answer.next(piece) if piece.finish != "error" else event(_broken())
        await response.write(data + answer.last())
        await response.write_eof()
        return response

    # -- models and adapters ------------------------------------------------------------------------------

    def _unknown(self, name: str) -> NotFoundError:
        served = ", ".join([self.name, *self._adapters])
        return NotFoundError(
            f"the model {name!r} does not exist; served are: {served}", param="model", code="model_not_found"
        )

    def _card(self, name: str) -> Json:
        adapter = self._adapters.get(name)
        return {
            "id": name,
            "object": "model",
            "created": self._created if adapter is None else adapter.created,
            "owned_by": "afterword",
            "root": self.root if adapter is None else adapter.path,
            "parent": None if adapter is None else self.name,
            "max_model_len": self.runner.max_model_len,
        }

    async def _models(self, http: web.Request) -> web.Response:
        names = [self.name, *self._adapters]
        return _json({"object": "list", "data": [self._card(name) for name in names]})

    async def _model(self, http: web.Request) -> web.Response:
        name = http.match_info["name"]
        if name != self.name and name not in self._adapters:
            raise self._unknown(name)
        return _json(self._card(name))

    async def _load(self, http: web.Request) -> web.Response:
        body = await _body(http)
        name, path = _text(body, "lora_name"), _text(body, "lora_path")
        self._check_free(name)
        read = functools.partial(read_adapter, name, Path(path), self.runner.lines, self._base, int(time.time()))
        adapter = await self._loop.run_in_executor(None, read)
        self._check_free(name)
        self._adapters[name] = adapter
        try:
            await asyncio.wrap_future(self.engine.add_adapter(adapter))
        except RuntimeError as error:
            del self._adapters[name]
            raise AdapterError(f"adapter {path!r} could not be laid into the model: {error}") from error
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    def _check_free(self, name: str) -> None:
        if name == self.name or name in self._adapters:
            raise AdapterError(
                f"the name {name!r} is already in use: unload it first or load under another name",
                param="lora_name",
            )

    async def _unload(self, http: web.Request) -> web.Response:
        name = _text(await _body(http), "lora_name")
        adapter = self._adapters.pop(name, None)
        if adapter is None:
            raise self._unknown(name)
        await asyncio.wrap_future(self.engine.remove_adapter(adapter))
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _health(self, http: web.Request) -> web.Response:
        if not self.engine.alive:
            return _json({"status": "the model thread has ended; the log says why; start the engine again"}, 503)
        return _json({"status": "ok", "model": self.name, **self.engine.counts()})


async def _body(http: web.Request) -> Any:
    try:
        return orjson.loads(await http.read())
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error


def _text(body: Any, name: str) -> str:
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(value, str) or not value:
        raise RequestError(f"{name} must be a text, not {value!r}", param=name)
    return value


def _json(body: Json, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def _broken() -> Json:
    return error_body("the model failed on this request; the engine's log says why", kind="server_error")


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Our errors and aiohttp's own refusals in OpenAI's shape."""
    try:
        return await handler(request)
    except AfterwordError as error:
        status, body = error_response(error)
        return _json(body, status)
    except web.HTTPException as error:
        return _json(error_body(f"{request.method} {request.path}: {error.reason}"), error.status)
