"""POST /v1/chat/completions: one answer from the upstream to the client, and its turn to the store.

Owns the order of things: link, ask, forward as it arrives, keep, let the last bytes go. Never trains, never waits for
the store before the last chunk.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from time import perf_counter

import orjson
from aiohttp import web

from afterword.chat.trail import trail_of_turn
from afterword.errors import AfterwordError, UpstreamError, error_response
from afterword.gateway.boundary import PASSED_ON
from afterword.gateway.link import Link
from afterword.gateway.state import GATEWAY, KEY, REQUEST_ID, Gateway
from afterword.gateway.watcher import Route
from afterword.gateway.wire.request import ChatRequest, parse_chat
from afterword.gateway.wire.served import DONE, Served
from afterword.records import Feedback, Json, Record, Turn, new_id
from afterword.sampling import ChatStream, UpstreamRejected
from afterword.sampling.dialect import IDS

log = logging.getLogger("afterword.gateway")
_UNLINKED = Link()


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """The handler."""
    start = perf_counter()
    gateway = request.app[GATEWAY]
    chat = parse_chat(await request.read(), request.headers, request.get(KEY), gateway.names)
    route = await gateway.adapters.resolve(chat.model, chat.who)
    exchange = Exchange(gateway, chat, route, request[REQUEST_ID], start)
    with gateway.adapters.using(route):
        try:
            return await (exchange.streamed(request) if chat.stream else exchange.whole())
        except UpstreamError as error:
            await gateway.capture.settle(exchange.failed(error))
            raise
        except (asyncio.CancelledError, ConnectionError):
            exchange.keep("aborted")
            exchange.count(499)
            raise


class Exchange:
    """One request on its way."""

    def __init__(self, gateway: Gateway, chat: ChatRequest, route: Route, request_id: str, start: float) -> None:
        self.gateway = gateway
        self.chat = chat
        self.route = route
        self.request_id = request_id
        self.turn_id = new_id("chatcmpl")
        self.served = Served(self.turn_id, chat)
        self.link = gateway.links.find(chat) if chat.keep else _UNLINKED
        if chat.keep:
            gateway.metrics.links.labels(self.link.outcome).inc()
            if chat.said.origin is not None:
                gateway.metrics.automated.labels(chat.said.origin).inc()
        self._start = start
        self._own = 0.0
        """Seconds spent here so far, not upstream."""
        self._kept = False
        self._refused = False
        """The upstream would not take this request with the question for token ids."""

    # ---- asking

    async def _ask(self) -> ChatStream:
        """The upstream's answer; an adapter that it does not know (any more) is loaded and asked for once again."""
        body = self._body()
        self._own = perf_counter() - self._start
        upstream = self.gateway.upstream
        try:
            stream = await upstream.open_chat(body)
        except UpstreamRejected as error:
            if error.answered != 404:
                raise
            self.route = await self.gateway.adapters.lost(self.route, self.chat.model, self.chat.who)
            stream = await upstream.open_chat(self._body())
        self._refused = IDS in stream.left_out
        return stream

    def _body(self) -> Json:
        route = self.route
        self.served.shown = {route.model: route.adapter} if route.adapter and route.adapter != route.model else {}
        return self.chat.for_upstream(route.model)

    def _headers(self) -> dict[str, str]:
        return {
            "x-request-id": self.request_id,
            "x-afterword-turn": self.turn_id,
            "x-afterword-adapter": self.adapter or "base",
            "x-afterword-overhead-ms": f"{1000 * self._own:.2f}",
        }

    @property
    def adapter(self) -> str | None:
        """The adapter that answered, as the upstream reports it."""
        return self.route.adapter if self.route.model == self.served.model else None

    # ---- answering

    async def whole(self) -> web.Response:
        """Not streamed: the body leaves when its turn is on disk."""
        stream = await self._ask()
        try:
            parts = []
            while data := await stream.read():
                parts.append(data)
        finally:
            stream.close()
        arrived = perf_counter()
        body = self.served.whole(b"".join(parts))
        await self.gateway.capture.settle(self.keep())
        self._own += perf_counter() - arrived
        self.count(200)
        return web.Response(body=body, headers=self._headers(), content_type="application/json")

    async def streamed(self, request: web.Request) -> web.StreamResponse:
        """Streamed: bytes leave as they come; those from the answer's end on when its turn is on disk."""
        response = web.StreamResponse()
        stream = await self._ask()
        try:
            while not self.served.done and (data := await stream.read()):
                arrived = perf_counter()
                if out := self.served.feed(data):
                    if not response.prepared:
                        await self._open(request, response, arrived)
                    await response.write(out)
            arrived = perf_counter()
            self._check_end(stream)
        except UpstreamError as error:
            if not response.prepared:
                raise
            await self.gateway.capture.settle(self.failed(error))
            await response.write_eof(b"data: " + orjson.dumps(error_response(error)[1]) + b"\n\n" + DONE)
            return response
        finally:
            stream.close()
        await self.gateway.capture.settle(self.keep())
        if response.prepared:
            self._own += perf_counter() - arrived
        else:
            await self._open(request, response, arrived)
        await response.write_eof(self.served.finish())
        self.count(200)
        return response

    def _check_end(self, stream: ChatStream) -> None:
        """UpstreamError when the stream ended before the answer was complete."""
        served = self.served
        if served.error is not None:
            raise UpstreamError(f"the model server broke off: {served.error}", code="error")
        if not served.started and stream.content_type != "text/event-stream":
            raise UpstreamError(
                f"the model server {self.gateway.upstream.url} answered {stream.content_type} in place of a stream of "
                "events. Check that the URL is that of an OpenAI-compatible server.",
                code="not_sse",
            )
        if not (served.started and (served.done or served.finish_reason)):
            raise UpstreamError(
                f"the model server {self.gateway.upstream.url} ended the stream before the answer was complete.",
                code="cut",
            )

    async def _open(self, request: web.Request, response: web.StreamResponse, since: float) -> None:
        """Fix the headers; they leave with the first bytes."""
        self._own += perf_counter() - since
        response.headers.update(self._headers())
        response.headers["Content-Type"] = "text/event-stream; charset=utf-8"
        response.headers["Cache-Control"] = "no-cache"
        await response.prepare(request)

    # ---- afterwards

    def failed(self, error: AfterwordError) -> asyncio.Future[None] | None:
        """The upstream broke off or never answered: keep what there is of the answer, count what went wrong."""
        status = error.answered if isinstance(error, UpstreamRejected) else error_response(error)[0]
        self.gateway.metrics.upstream_errors.labels(error.code or str(status)).inc()
        self.count(status)
        theirs = isinstance(error, UpstreamRejected) and error.answered in PASSED_ON
        return self.keep(None if theirs else "error")

    def count(self, status: int) -> None:
        """Count the request."""
        metrics = self.gateway.metrics
        metrics.requests.labels(self.route.model, self.adapter or "base", str(status)).inc()
        if status == 200:
            metrics.overhead.observe(self._own)

    def keep(self, finish_reason: str | None = None) -> asyncio.Future[None] | None:
        """Queue the turn, once. Without any answer there is no turn, but what the user said is still kept."""
        if self._kept or not self.chat.keep:
            return None
        self._kept = True
        try:
            return self._keep(finish_reason)
        except Exception as error:
            # The boundary between serving and capturing: whatever an upstream puts into an answer, it leaves.
            log.exception("the turn %s cannot be kept", self.turn_id)
            return self.gateway.capture.give_up(repr(error), ())

    def _keep(self, finish_reason: str | None) -> asyncio.Future[None] | None:
        if self.served.odd is not None:
            why = f"the model server's answer is odd: {self.served.odd}"
            return self.gateway.capture.give_up(why, self._said(None))
        if not (self.served.started or self.served.done):
            said: list[Record] = list(self._said(None))
            if finish_reason == "error" and self.route.canary is not None:
                # An arm that fails must be seen to fail; nobody can continue this turn, so it is on no thread.
                said.append(replace(self._turn("error"), thread=None))
            return self.gateway.capture.note(said)
        turn = self._turn(finish_reason or self.served.finish_reason)
        return self.gateway.capture.keep(turn, self.link.asked, self._said(turn.id))

    def _turn(self, finish_reason: str | None) -> Turn:
        chat, served = self.chat, self.served
        answer = served.answer()
        self.gateway.upstream.saw_ids({"prompt_token_ids": served.prompt_ids})
        return Turn(
            id=self.turn_id,
            messages=tuple(chat.messages),
            answer=answer,
            prompt_ids=tuple(served.prompt_ids) if served.prompt_ids else None,
            completion_ids=tuple(served.ids) if served.ids else None,
            logprobs=served.aligned_logprobs(),
            sampling=chat.sampling(),
            model=self.gateway.adapters.base if self.route.adapter else self.route.model,
            adapter=self.adapter,
            finish_reason=finish_reason,
            user=chat.user,
            key=chat.key,
            conversation=self.link.conversation,
            previous=self.link.previous,
            task=chat.task,
            team=chat.team,
            thread=trail_of_turn(chat.scope, chat.messages, answer),
            unlinked=self.link.unlinked,
            tools=tuple(chat.body["tools"]) if chat.body.get("tools") else None,
            usage=served.usage,
            consent=self._consent,
            missing_ids=self._missing(),
            seconds=round(perf_counter() - self._start, 6),
            unit=self.chat.who.unit,
            canary=self.route.canary,
            automated=chat.said.origin,
        )

    @property
    def _consent(self) -> bool:
        return self.gateway.settings.train if self.chat.train is None else self.chat.train

    def _said(self, turn: str | None) -> list[Feedback]:
        """What the request says about earlier turns; without consent nothing is learned from its words either."""
        return self.link.feedback(self.chat.user, turn) if self._consent else []

    def _missing(self) -> str | None:
        served = self.served
        if served.prompt_ids and served.ids:
            return None
        if self._refused or self.gateway.upstream.gives_ids is False:
            return "the upstream refuses return_token_ids"
        if served.prompt_ids and not served.ids:
            return "the answer has no token ids"
        return "the upstream gives no token ids"
