"""A small model server for the gateway's tests: vLLM's dialect or plain OpenAI, with faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

WORDS = ("The ", "sky ", "is ", "blue", ".")


@dataclass
class Fake:
    """What it does, and what it saw. Change the fields while it runs."""

    native: bool = True
    """Speak vLLM's dialect; else refuse `return_token_ids`."""
    ignores: bool = False
    """Accept `return_token_ids` and ignore it."""
    refuses: dict[str, str] = field(default_factory=dict)
    """Field -> what a refusal of a request that has it says."""
    refusal_status: int = 400
    only_for: str | None = None
    """Refuse only requests for this model."""
    only_refuses: str | None = None
    """Refuse only requests whose last message is this."""
    words: tuple[str, ...] = WORDS
    delay: float = 0.0
    """Seconds before each chunk."""
    cut_after: int | None = None
    """Drop the connection after so many chunks."""
    end_after: int | None = None
    """End the stream cleanly but unfinished after so many chunks."""
    error_after: int | None = None
    """Send an error chunk after so many chunks."""
    reject: tuple[int, dict[str, Any]] | None = None
    retry_after: str | None = None
    raw: bytes | None = None
    """Body to answer a chat with, whatever was asked."""
    pieces: list[bytes] | None = None
    """The same in pieces, each sent by itself; `kind` is their content type."""
    kind: str = "text/event-stream"
    script: Callable[[dict[str, Any]], Any] | None = None
    """What answers a request body instead: (status, JSON) or None to answer as usual."""
    prefix: str = "/v1"
    models_body: Any = None
    """What the list of models is, if not the usual one."""
    models_status: int = 200
    tool: bool = False
    adapters: dict[str, str] = field(default_factory=dict)
    load_error: str | None = None
    load_delay: float = 0.0
    """Seconds that loading takes."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    cancelled: int = 0
    base: str = "base-model"
    lists_nothing: bool = False
    """Have an empty /v1/models."""
    shows_roots: bool = True
    """Have `root` in the model cards."""
    health_status: int = 200
    authorization: list[str | None] = field(default_factory=list)
    traceparents: list[str | None] = field(default_factory=list)
    url: str = ""
    reports: str | None = None
    """Model name to report instead of the requested one."""

    says: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What a model answers, where it differs from `words`."""
    other: dict[str, tuple[int, bytes, str]] = field(default_factory=dict)
    """Further routes: path -> status, body and content type."""
    passed: list[tuple[str, bytes, str]] = field(default_factory=list)
    """What came to them: path, body and content type."""
    fails: set[str] = field(default_factory=set)
    """Models that answer with a 500."""

    def words_of(self, body: dict[str, Any]) -> tuple[str, ...]:
        return self.says.get(body["model"], self.words)


def _error(status: int, message: str, code: Any = None, headers: dict[str, str] | None = None) -> web.Response:
    body = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": code or status}}
    return web.json_response(body, status=status, headers=headers)


class _Server:
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post(self.fake.prefix + "/chat/completions", self.chat)
        app.router.add_get(self.fake.prefix + "/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_post("/v1/load_lora_adapter", self.load)
        app.router.add_post("/v1/unload_lora_adapter", self.unload)
        for path in self.fake.other:
            app.router.add_post(path, self.others)
        return app

    async def others(self, request: web.Request) -> web.Response:
        self.fake.passed.append((request.path, await request.read(), request.headers["Content-Type"]))
        status, body, kind = self.fake.other[request.path]
        return web.Response(status=status, body=body, content_type=kind)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.fake.health_status)

    async def models(self, request: web.Request) -> web.Response:
        if self.fake.models_status != 200 or self.fake.models_body is not None:
            return web.json_response(self.fake.models_body, status=self.fake.models_status)
        data: list[dict[str, Any]] = [{"id": self.fake.base, "object": "model", "root": self.fake.base, "parent": None}]
        data += [
            {"id": n, "object": "model", "root": p, "parent": self.fake.base} for n, p in self.fake.adapters.items()
        ]
        if not self.fake.shows_roots:
            data = [{k: v for k, v in card.items() if k != "root"} for card in data]
        return web.json_response({"object": "list", "data": [] if self.fake.lists_nothing else data})

    async def load(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.fake.loads.append(body["lora_name"])
        await asyncio.sleep(self.fake.load_delay)
        if self.fake.load_error:
            return _error(400, self.fake.load_error)
        if body["lora_name"] in self.fake.adapters:
            return _error(400, f"The lora adapter {body['lora_name']} has already been loaded.")
        self.fake.adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success")

    async def unload(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.fake.unloads.append(body["lora_name"])
        if self.fake.adapters.pop(body["lora_name"], None) is None:
            return _error(404, "no such adapter")
        return web.Response(text="Success")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        fake = self.fake
        body = await request.json()
        fake.requests.append(body)
        fake.authorization.append(request.headers.get("Authorization"))
        fake.traceparents.append(request.headers.get("traceparent"))
        if fake.reject:
            headers = {"Retry-After": fake.retry_after} if fake.retry_after else None
            return web.json_response(fake.reject[1], status=fake.reject[0], headers=headers)
        if fake.models_body is None and body["model"] not in (fake.base, *fake.adapters):
            return _error(404, f"The model `{body['model']}` does not exist.")
        if body["model"] in fake.fails:
            return _error(500, "CUDA out of memory")
        if not fake.native and "return_token_ids" in body:
            return _error(400, "Unrecognized request argument supplied: return_token_ids")
        if (said := await self._unusual(request, body)) is not None:
            return said
        try:
            return await (self.stream(request, body) if body.get("stream") else self.whole(body))
        except (asyncio.CancelledError, ConnectionError):
            fake.cancelled += 1
            raise

    async def _unusual(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse | None:
        fake = self.fake
        if fake.only_refuses in (None, body["messages"][-1]["content"]):
            for name, says in fake.refuses.items():
                if name in body and fake.only_for in (None, body["model"]):
                    return _error(fake.refusal_status, says)
        if fake.script is not None and (scripted := fake.script(body)) is not None:
            return web.json_response(scripted[1], status=scripted[0])
        if fake.pieces is not None:
            response = web.StreamResponse(headers={"Content-Type": fake.kind})
            await response.prepare(request)
            for piece in fake.pieces:
                await response.write(piece)
                await asyncio.sleep(0)
            return response
        if fake.raw is not None:
            return web.Response(body=fake.raw, content_type="application/json")
        return None

    def _told(self, body: dict[str, Any]) -> bool:
        return self.fake.native and not self.fake.ignores and bool(body.get("return_token_ids"))

    def _logprobs(self, body: dict[str, Any], words: list[str]) -> dict[str, Any] | None:
        if not body.get("logprobs") or self.fake.ignores:
            return None
        return {"content": [{"token": w, "logprob": -0.5, "bytes": None, "top_logprobs": []} for w in words]}

    async def whole(self, body: dict[str, Any]) -> web.Response:
        fake, words = self.fake, self.fake.words_of(body)
        await asyncio.sleep(fake.delay)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
        if fake.tool:
            call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice: dict[str, Any] = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(body, [*words, ""]),
            "finish_reason": "tool_calls" if fake.tool else "stop",
        }
        answer: dict[str, Any] = {
            "id": "up-1",
            "object": "chat.completion",
            "created": 1,
            "model": fake.reports or body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": 3, "completion_tokens": len(words) + 1, "total_tokens": 0},
        }
        if self._told(body):
            choice["token_ids"] = [100 + i for i in range(len(words))] + [2]
            answer["prompt_token_ids"] = [1, 2, 3]
        return web.json_response(answer)

    async def stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        fake = self.fake
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, chunk in enumerate(self._chunks(body)):
            if number == fake.cut_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if number == fake.end_after:
                return response
            if number == fake.error_after:
                await response.write(b'data: {"error": {"message": "CUDA is on fire", "code": 500}}\n\n')
                break
            if fake.delay:
                await asyncio.sleep(fake.delay)
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        fake = self.fake

        def chunk(delta: dict[str, Any], ids: list[int], words: list[str], reason: str | None = None) -> dict[str, Any]:
            choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason}
            choice["logprobs"] = self._logprobs(body, words) if words else None
            if self._told(body):
                choice["token_ids"] = ids
            found: dict[str, Any] = {"id": "up-1", "object": "chat.completion.chunk", "created": 1}
            return {**found, "model": fake.reports or body["model"], "choices": [choice]}

        first = chunk({"role": "assistant", "content": ""}, [], [])
        if self._told(body):
            first["prompt_token_ids"] = [1, 2, 3]
        yield first
        if fake.tool:
            function = {"name": "look", "arguments": ""}
            yield chunk(
                {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}, [5], ["a"]
            )
            for part in ('{"at":', ' "sky"}'):
                yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}, [6], [part])
            yield chunk({}, [2], [""], "tool_calls")
        else:
            for number, word in enumerate(fake.words_of(body)):
                yield chunk({"content": word}, [100 + number], [word])
            yield chunk({"content": ""}, [2], [""], "stop")
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
            yield {"id": "up-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"], "choices": [],
                   "usage": usage}  # fmt: skip


@contextlib.contextmanager
def fake_upstream(fake: Fake, port: int = 0) -> Iterator[Fake]:
    """Serve `fake` from a thread; `fake.url` is set."""
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        runner = web.AppRunner(_Server(fake).app(), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    started.wait()
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
