"""Defines the engine's HTTP routes.

Owns the names of the base model and the loaded adapters, and the way from a body to a request and from outputs to
bytes. All tensor work happens on the model's side.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from afterword.engine.interface import Model, TokenOutputs
from afterword.engine.protocol import check_tokens, parse_request
from afterword.engine.wire import CompletionResponse, event
from afterword.errors import AdapterError, AfterwordError, NotFoundError, error_body, error_response
from afterword.model.generation.request import GenerationRequest, RequestError, TokenOutput
from afterword.model.generation.text import Codec, too_long
from afterword.records import Json
from afterword.sharing import BACKGROUND_HEADER

log = logging.getLogger("afterword.engine")

_MAX_BODY = 64 << 20
_LONG = 8192
"""Bytes of a body that takes milliseconds to encode."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An adapter as `/v1/models` shows it."""

    path: str
    created: int


class Server:
    """Routes over one model. Call `start` inside the running event loop before serving `app`.

    `name` is the base model's name, `root` its origin.
    """

    def __init__(self, model: Model, codec: Codec, name: str, root: str) -> None:
        self.model, self.codec, self.name, self.root = model, codec, name, root
        self._created = int(time.time())
        self._adapters: dict[str, _Loaded] = {}
        self._loading: set[str] = set()
        self._queues: dict[int, asyncio.Queue[TokenOutput]] = {}
        self._numbers = itertools.count()
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

    def distribute(self, pieces: TokenOutputs) -> None:
        """Hands each output to its waiting request; call it on the event loop's thread."""
        for number, piece in pieces:
            queue = self._queues.get(number)
            if queue is not None:
                queue.put_nowait(piece)

    # -- answers ------------------------------------------------------------------------------------------

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        ask = parse_request(await _body(http))
        if all(http.headers.get(name) == value for name, value in BACKGROUND_HEADER.items()):
            ask = replace(ask, background=True)
        prompt, limit = await self._prompt(ask, len(await http.read()))
        if ask.bad_words:
            ask = replace(ask, banned=self.codec.spellings(ask.bad_words))
        number = next(self._numbers)
        queue = self._queues[number] = asyncio.Queue()
        answer = CompletionResponse(ask, prompt, self.codec)
        self.model.submit(number, ask, prompt, limit)
        finished = False
        try:
            if ask.stream:
                response = await self._stream(http, answer, queue)
            else:
                response = await self._whole(answer, queue)
            finished = True
            return response
        finally:
            del self._queues[number]
            if not finished:
                self.model.cancel(number)

    async def _prompt(self, ask: GenerationRequest, size: int) -> tuple[list[int], int]:
        """The prompt's ids and the most tokens of an answer, once name and length are seen to be right. `size`: bytes
        of the body, tools and their calls among them."""
        if ask.model not in self._adapters and ask.model != self.name:
            raise self._unknown(ask.model)
        check_tokens(ask, self.model.vocabulary)
        context = self.model.max_model_len
        if size > _LONG:
            # Off this thread: everybody else's answers pass through it.
            prompt = await asyncio.to_thread(self._render, ask)
        else:
            prompt = self._render(ask)
        self.codec.check(prompt, self.model.vocabulary)
        room = context - len(prompt)
        if room < min(ask.min_room, ask.max_tokens or ask.min_room, max(1, context // 4)):
            raise too_long(len(prompt), context)
        return prompt, room if ask.max_tokens is None else min(room, ask.max_tokens)

    def _render(self, ask: GenerationRequest) -> list[int]:
        return self.codec.render(
            ask.messages,
            ask.tools,
            self.model.max_model_len,
            arguments=ask.template_arguments,
            continued=ask.continued,
        )

    async def _whole(self, answer: CompletionResponse, queue: asyncio.Queue[TokenOutput]) -> web.Response:
        pieces = [await queue.get()]
        while pieces[-1].finish is None:
            pieces.append(await queue.get())
        if pieces[-1].finish == "error":
            return _json(_broken(), 500)
        return _json(answer.whole(pieces))

    async def _stream(
        self, http: web.Request, answer: CompletionResponse, queue: asyncio.Queue[TokenOutput]
    ) -> web.StreamResponse:
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
            f"the model {name!r} does not exist: use one of {served}", param="model", code="model_not_found"
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
            "max_model_len": self.model.max_model_len,
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
        created = int(time.time())
        self._loading.add(name)
        try:
            await asyncio.wrap_future(self.model.load(name, path, created))
        finally:
            self._loading.discard(name)
        self._adapters[name] = _Loaded(path, created)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    def _check_free(self, name: str) -> None:
        if name == self.name or name in self._adapters or name in self._loading:
            raise AdapterError(
                f"the name {name!r} is in use: unload it first, or load under another name",
                param="lora_name",
            )

    async def _unload(self, http: web.Request) -> web.Response:
        name = _text(await _body(http), "lora_name")
        if self._adapters.pop(name, None) is None:
            raise self._unknown(name)
        await asyncio.wrap_future(self.model.unload(name))
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _health(self, http: web.Request) -> web.Response:
        if not self.model.alive:
            return _json({"status": "the model has ended; the log says why"}, 503)
        counts = await asyncio.wrap_future(self.model.counts())
        return _json({"status": "ok", "model": self.name, **counts})


async def _body(http: web.Request) -> Any:
    try:
        return orjson.loads(await http.read())
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is invalid JSON: {error}") from error


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
    """Every error in OpenAI's shape: ours, aiohttp's, and a fault in a handler, which ends its request alone."""
    try:
        return await handler(request)
    except AfterwordError as error:
        status, body = error_response(error)
        return _json(body, status)
    except web.HTTPException as error:
        return _json(error_body(f"{request.method} {request.path}: {error.reason}"), error.status)
    except (ConnectionError, asyncio.CancelledError):  # the client is gone
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _json(_broken(), 500)
