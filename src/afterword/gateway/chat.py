"""Answers chat requests: forwards the upstream's answer, then stores its turn. `dialects` brings other APIs' requests.

Owns the order of steps: request, link, forward, enqueue, release the last bytes. Never trains; waits for the store only
before the last chunk, and only up to a limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from urllib.parse import quote

import orjson
from aiohttp import web

from afterword.chat.trail import trail_of_turn
from afterword.errors import AfterwordError, UpstreamError, error_response
from afterword.gateway.episodes import RunningEpisode, headers_of
from afterword.gateway.full_context import REMEDY, is_full, shorter
from afterword.gateway.link import Link
from afterword.gateway.metrics import REPETITION
from afterword.gateway.middleware import PASSED_ON, given_key
from afterword.gateway.model_routing import Route
from afterword.gateway.retries import Saved
from afterword.gateway.state import GATEWAY, KEY, REQUEST_ID, Gateway
from afterword.gateway.tracing import TurnTrace
from afterword.gateway.wire.encoder import ChatEncoder, Encoder
from afterword.gateway.wire.request import ChatRequest, parse_chat
from afterword.gateway.wire.response import UpstreamAnswer
from afterword.records import Feedback, Json, Record, Turn, new_id
from afterword.sampling import ChatStream, UpstreamRejected
from afterword.sampling.dialect import IDS, LIMIT, NEWER_LIMIT
from afterword.sampling.sse import MAX_EVENT
from afterword.sampling.upstream import MORE_HEADERS

log = logging.getLogger("afterword.gateway")
_UNLINKED = Link()
_STEPS_TO_SEND = 2
"""Steps of the event loop until a request on an open connection is with the upstream: aiohttp writes in a task."""
_TAKEN_BACK = 3
"""Requests for one answer whose errors came with status 200 and named a field that the client did not ask for."""


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Handles one chat completion request."""
    start = perf_counter()
    chat = parse_chat(await request.read(), headers_of(request), request.get(KEY), request.app[GATEWAY].names)
    return await answer(request, chat, start, ChatEncoder)


async def answer(
    request: web.Request, chat: ChatRequest, start: float, encoder: Callable[[], Encoder]
) -> web.StreamResponse:
    """Answers a chat request, or a retry of an earlier one.

    Args:
        request: The HTTP request.
        chat: What it asks for.
        start: When it came (`perf_counter`).
        encoder: Makes the encoder of the client's API.
    """
    gateway = request.app[GATEWAY]
    attempt, saved = await gateway.retries.begin(chat, request.headers, request.remote or "")
    if chat.retry:
        gateway.metrics.retries.labels("anew" if saved is None else "replayed").inc()
    if saved is not None:
        headers = {**saved.headers, "x-request-id": request[REQUEST_ID], "x-afterword-replayed": "true"}
        return web.Response(body=saved.body, headers={**headers, "Content-Type": saved.content_type})
    done: Saved | None = None
    try:
        response, done = await _answered(request, gateway, chat, start, encoder(), keep=attempt is not None)
    finally:
        gateway.retries.end(attempt, done)
    return response


async def _answered(
    request: web.Request, gateway: Gateway, chat: ChatRequest, start: float, encoder: Encoder, *, keep: bool
) -> tuple[web.StreamResponse, Saved | None]:
    """The response, and what a retry of the request gets if it is to be kept."""
    if chat.model.startswith(f"{gateway.settings.name}@cand-"):
        gateway.keys.check(given_key(request), "review")  # nobody's users get what the gate has not let through
    route = await gateway.adapters.resolve(chat.model, chat.requester)
    episode = await gateway.episodes.begin(chat)
    exchange = Exchange(gateway, chat, route, request[REQUEST_ID], start, encoder, episode)
    if gateway.tracing is not None:
        exchange.trace = gateway.tracing.begin(request.headers, chat.model)
    exchange.sent = [] if keep else None
    with gateway.adapters.using(route):
        try:
            response = await (exchange.streamed(request) if chat.stream else exchange.whole())
            return response, exchange.saved(response)
        except UpstreamError as error:
            await gateway.capture.wait_durable(exchange.failed(error))
            raise
        except (asyncio.CancelledError, ConnectionError):
            exchange.keep("aborted")
            exchange.count(499)
            raise
        finally:
            exchange.traced()


class Exchange:
    """Holds the state of one chat request, from linking to the stored turn."""

    def __init__(
        self,
        gateway: Gateway,
        chat: ChatRequest,
        route: Route,
        request_id: str,
        start: float,
        encoder: Encoder,
        episode: RunningEpisode | None = None,
    ) -> None:
        self.gateway = gateway
        self.encoder = encoder
        self.chat = chat
        self.route = route
        self.request_id = request_id
        self.turn_id = new_id("chatcmpl")
        self.episode = episode
        self._index = None if episode is None else episode.requests - 1
        self.served = UpstreamAnswer(self.turn_id, chat)
        self._link = None if chat.keep else _UNLINKED
        self._start = start
        self._own = 0.0
        """Seconds that the answer waited for the gateway so far, not for the upstream."""
        self.messages = chat.messages
        """What the model reads: the oldest may be dropped."""
        self.sent: list[bytes] | None = None
        """What left so far, when a retry may ask for it again."""
        self.trace: TurnTrace | None = None
        """Its spans, where traces are on."""
        self._status = 500
        self._failed = False
        self._kept = False
        self._taken_back = 0
        self._asked: Json = {}
        """What the upstream was asked for beside the client's request."""
        self._ids_rejected = False
        """The upstream rejected this request with `return_token_ids`."""

    @property
    def link(self) -> Link:
        """The turns and the conversation that the request continues; read once."""
        if self._link is None:
            self._link = self.gateway.links.find(self.chat, self.route.adapter)
            self.gateway.metrics.links.labels(self._link.outcome).inc()
            if self.chat.newest.origin is not None:
                self.gateway.metrics.automated.labels(self.chat.newest.origin).inc()
        return self._link

    # ---- asking

    async def _ask(self) -> ChatStream:
        """The upstream's answer; an adapter that it does not know (any more) is loaded and asked for once again."""
        self._own = self._own or perf_counter() - self._start
        try:
            stream = await self._ask_and_link()
        except UpstreamRejected as error:
            if error.answered != 404:
                raise
            self.route = await self.gateway.adapters.reroute(self.route, self.chat.model, self.chat.requester)
            stream = await self._ask_shorter()
        self._ids_rejected = IDS in stream.rejected
        self._asked = stream.asked
        return stream

    async def _ask_and_link(self) -> ChatStream:
        """The upstream's answer. The request is linked, and its newest message read, while the upstream works."""
        asking = asyncio.ensure_future(self._ask_shorter())
        try:
            for _ in range(_STEPS_TO_SEND):
                await asyncio.sleep(0)
            _ = self.link
            return await asking
        except BaseException:
            asking.cancel()
            raise

    async def _ask_shorter(self) -> ChatStream:
        """The upstream's answer; when the messages are too long for it, to fewer of them, if the setting says so."""
        attempt = 0
        while True:
            try:
                body = self._body()
                if self.trace is not None:
                    MORE_HEADERS.set(self.trace.asking(self.route.model, self.gateway.upstream.url))
                return await self.gateway.upstream.open_chat(body, self.gateway.settings.extras())
            except UpstreamRejected as error:
                if not is_full(error):
                    raise
                attempt += 1
                drops = self.gateway.settings.on_full_context == "drop_oldest"
                fewer = shorter(self.messages, error, attempt) if drops else None
                if fewer is None:
                    self.gateway.metrics.full_context.labels("error").inc()
                    raise error.with_remedy(REMEDY if not drops else _NOTHING_LEFT) from error
                if attempt == 1:
                    self.gateway.metrics.full_context.labels("dropped").inc()
                self.messages = fewer

    def _body(self) -> Json:
        route = self.route
        self.served.shown = {route.model: route.adapter} if route.adapter and route.adapter != route.model else {}
        return {**self.chat.for_upstream(route.model), "messages": self.messages}

    def _again(self, stream: ChatStream) -> bool:
        """Nothing but an error came, with status 200: may asking again without a field of ours help?"""
        served = self.served
        if served.error is None or served.started or self._taken_back >= _TAKEN_BACK:
            return False
        self._taken_back += 1
        if not self.gateway.upstream.reject_fields(self.route.model, stream, served.error_object):
            return False
        self.served = UpstreamAnswer(self.turn_id, self.chat)
        return True

    def _headers(self) -> dict[str, str]:
        dropped = len(self.chat.messages) - len(self.messages)
        return {
            "x-request-id": self.request_id,
            "x-afterword-turn": self.turn_id,
            "x-afterword-adapter": self.adapter or "base",
            "x-afterword-overhead-ms": f"{1000 * self._own:.2f}",
            **({"x-afterword-episode": quote(self.episode.row.id)} if self.episode is not None else {}),
            **({"x-afterword-dropped-messages": str(dropped)} if dropped else {}),
        }

    @property
    def adapter(self) -> str | None:
        """The adapter that answered, as the upstream reports it."""
        return self.route.adapter if self.route.model == self.served.model else None

    # ---- answering

    async def whole(self) -> web.Response:
        """Answers without streaming; the body is sent once its turn is on disk.

        Raises:
            UpstreamError: If the upstream fails or its answer is invalid.
        """
        while True:
            stream = await self._ask()
            try:
                data = await _read_all(stream)
            finally:
                stream.close()
            arrived = perf_counter()
            body = self.served.whole(data)
            if not self._again(stream):
                break
        self._check_error()
        body = self.encoder.whole(body)
        await self.gateway.capture.wait_durable(self.keep())
        self._own += perf_counter() - arrived
        self.count(200)
        if self.sent is not None:
            self.sent.append(body)
        return web.Response(body=body, headers=self._headers(), content_type="application/json")

    def saved(self, response: web.StreamResponse) -> Saved | None:
        """Returns the answer for later retries; None when none is kept or the answer is incomplete."""
        if self.sent is None or self._failed:
            return None
        return Saved(b"".join(self.sent), self._headers(), response.headers["Content-Type"])

    async def streamed(self, request: web.Request) -> web.StreamResponse:
        """Answers with a stream; bytes from the end of the answer on are sent once its turn is on disk.

        Raises:
            UpstreamError: If the upstream fails before the first byte was sent; later errors are sent as an event.
        """
        response = web.StreamResponse()
        while True:
            stream = await self._ask()
            try:
                await self._forward(stream, request, response)
                arrived = perf_counter()
                if not response.prepared and self._again(stream):
                    continue
                self._check_end(stream)
                break
            except UpstreamError as error:
                if not response.prepared:
                    raise
                await self.gateway.capture.wait_durable(self.failed(error))
                await response.write_eof(self.encoder.failure(error))
                return response
            finally:
                stream.close()
        await self.gateway.capture.wait_durable(self.keep())
        if response.prepared:
            self._own += perf_counter() - arrived
        else:
            await self._open(request, response, arrived)
        end = self.encoder.finish(self.served.finish())
        if self.sent is not None:
            self.sent.append(end)
        await response.write_eof(end)
        self.count(200)
        return response

    async def _forward(self, stream: ChatStream, request: web.Request, response: web.StreamResponse) -> None:
        """Pass on what comes, up to the end of the answer."""
        served = self.served
        while not served.done:
            try:
                data = await stream.read()
            except UpstreamError:
                if served.ended:
                    return  # the connection broke after the answer was complete
                raise
            arrived = perf_counter()
            out = served.feed(data) if data else served.close()
            if out and (out := self.encoder.feed(out)):
                if not response.prepared:
                    await self._open(request, response, arrived)
                if self.sent is not None:
                    self.sent.append(out)
                await response.write(out)
            if not data:
                return

    def _check_error(self) -> None:
        """UpstreamError for an error that came with status 200."""
        served = self.served
        if served.fault is not None:
            raise served.fault
        if served.error is None:
            return
        code = served.error_object.get("code")
        if not served.started and isinstance(code, int) and code in PASSED_ON:
            raise UpstreamRejected(self.gateway.upstream.url, code, orjson.dumps({"error": served.error_object}))
        raise UpstreamError(f"the model server failed during the answer: {served.error}", code="error")

    def _check_end(self, stream: ChatStream) -> None:
        """UpstreamError when the stream ended before the answer was complete."""
        served, url = self.served, self.gateway.upstream.url
        self._check_error()
        sent = f" It sent: {served.unread!r}." if served.unread else ""
        if not served.started and stream.content_type != "text/event-stream":
            raise UpstreamError(
                f"the model server {url} answered {stream.content_type} instead of an event stream. Check that the "
                f"URL is that of an OpenAI-compatible server.{sent}",
                code="not_sse",
            )
        if not (served.started and (served.complete or served.ended)):
            raise UpstreamError(
                f"the model server {url} ended the stream before the answer was complete.{sent}", code="cut"
            )

    async def _open(self, request: web.Request, response: web.StreamResponse, since: float) -> None:
        """Fix the headers; they leave with the first bytes."""
        self._own += perf_counter() - since
        response.headers.update(self._headers())
        response.headers["Content-Type"] = self.encoder.content_type
        response.headers["Cache-Control"] = "no-cache"
        await response.prepare(request)

    # ---- afterwards

    def failed(self, error: AfterwordError) -> asyncio.Future[None] | None:
        """Counts an upstream error and queues the partial answer.

        Returns:
            A future that is done when the records are on disk; None without records.
        """
        self._failed = True
        status = error.answered if isinstance(error, UpstreamRejected) else error_response(error)[0]
        reason = error.code or str(status)
        self.gateway.metrics.upstream_errors.labels(reason).inc()
        self.count(status)
        theirs = isinstance(error, UpstreamRejected) and error.answered in PASSED_ON
        if not theirs:
            self.gateway.outcomes.failed(error.message, reason)
        return self.keep(None if theirs else "error")

    def traced(self) -> None:
        """Ends the request's span."""
        if self.trace is not None:
            served = self.served
            self.trace.end(
                status=self._status, adapter=self.adapter, usage=served.usage, finish_reason=served.finish_reason
            )

    def count(self, status: int) -> None:
        """Counts the request under its HTTP status."""
        self._status = status
        metrics = self.gateway.metrics
        known = self.route.adapter is not None or self.route.model in self.gateway.adapters.bases
        # A client's word for a model of a server without a list is no label: there may be any number of them.
        metrics.requests.labels(self.route.model if known else "other", self.adapter or "base", str(status)).inc()
        if status == 200:
            self.gateway.outcomes.answered()
            metrics.overhead.observe(self._own)
            if self.served.finish_reason == "length":
                metrics.cut.labels(REPETITION if self.served.stop_reason == REPETITION else "length").inc()

    def keep(self, finish_reason: str | None = None) -> asyncio.Future[None] | None:
        """Queues the turn, once; without an answer only the feedback of the request.

        Args:
            finish_reason: Overrides the upstream's finish reason; "aborted" or "error".

        Returns:
            A future that is done when the records are on disk; None when nothing is stored.
        """
        if self._kept or not self.chat.keep:
            return None
        self._kept = True
        if self.trace is not None:
            self.trace.answered()
        try:
            done = self._keep(finish_reason)
            if self.trace is not None:
                self.trace.storing(self.turn_id, done)
            return done
        except Exception as error:
            # The boundary between serving and capturing: whatever an upstream puts into an answer, it leaves.
            log.exception("the turn %s cannot be kept", self.turn_id)
            return self.gateway.capture.drop(f"a turn could not be made ({type(error).__name__})", ())

    def _keep(self, finish_reason: str | None) -> asyncio.Future[None] | None:
        if self.served.odd is not None:
            log.warning("the turn %s cannot be kept: %s", self.turn_id, self.served.odd)
            why = "the model server's answer is invalid and cannot be stored; see the server's log"
            return self.gateway.capture.drop(why, self._said(None))
        if not (self.served.started or self.served.complete):
            said: list[Record] = list(self._said(None))
            if finish_reason == "error" and self.route.canary is not None:
                # An arm that fails must be seen to fail; nobody can continue this turn, so it is on no thread.
                said.append(replace(self._turn("error"), thread=None))
            return self.gateway.capture.note(said)
        turn = self._turn(finish_reason or self.served.finish_reason)
        if self.episode is not None:
            self.episode.count(turn)
        return self.gateway.capture.enqueue(turn, self.link.asked, self._said(turn.id), self.chat.model)

    def _turn(self, finish_reason: str | None) -> Turn:
        chat, served = self.chat, self.served
        answer = served.answer()
        self.gateway.upstream.saw_ids({"prompt_token_ids": served.prompt_ids}, self.route.model)
        return Turn(
            id=self.turn_id,
            messages=tuple(self.messages),
            answer=answer,
            prompt_ids=tuple(served.prompt_ids) if served.prompt_ids else None,
            completion_ids=tuple(served.ids) if served.ids else None,
            logprobs=served.aligned_logprobs(),
            sampled_logprobs=served.sampled_logprobs(),
            sampling=self.gateway.settings.sampling_defaults
            | chat.sampling()
            | {n: v for n, v in self._asked.items() if n in (LIMIT, NEWER_LIMIT)},
            model=self.gateway.adapters.base if self.route.adapter else self.route.model,
            adapter=self.adapter,
            finish_reason=finish_reason,
            user=chat.user or (self.episode.row.user if self.episode is not None else None),
            key=chat.key,
            conversation=self.link.conversation,
            previous=self.link.previous,
            task=chat.task,
            team=chat.team,
            thread=None if chat.beside else self._thread(answer),
            unlinked=self.link.unlinked,
            tools=tuple(chat.body["tools"]) if chat.body.get("tools") else None,
            usage=served.usage,
            consent=self._consent,
            missing_ids=self._missing(),
            seconds=round(perf_counter() - self._start, 6),
            unit=self.chat.requester.unit,
            canary=self.route.canary,
            automated=chat.newest.origin,
            episode_id=self.episode.row.id if self.episode is not None else None,
            episode_index=self._index,
        )

    @property
    def _consent(self) -> bool:
        return self.gateway.settings.train if self.chat.train is None else self.chat.train

    def _said(self, turn: str | None) -> list[Feedback]:
        """What the request says about earlier turns; without consent nothing is learned from its words either. Within
        an episode that is read from its turns, once it has ended."""
        return self.link.feedback(self.chat.user, turn) if self._consent and self.episode is None else []

    def _thread(self, answer: Json) -> str:
        """The trail by which later requests find this turn."""
        chat = self.chat
        return trail_of_turn(chat.scope, chat.history, chat.unstopped(answer), self.link.sent)

    def _missing(self) -> str | None:
        served = self.served
        if served.prompt_ids and served.ids:
            return None
        if self._ids_rejected or self.gateway.upstream.dialect(self.route.model).gives_ids is False:
            return "the upstream refuses return_token_ids"
        if served.prompt_ids and not served.ids:
            return "the answer has no token ids"
        return "the upstream gives no token ids"


_NOTHING_LEFT = "Nothing more can be dropped: the last message, with the system messages if there are any, is too long."


async def _read_all(stream: ChatStream) -> bytes:
    """The whole body. UpstreamError beyond MAX_EVENT."""
    parts, size = [], 0
    while data := await stream.read():
        parts.append(data)
        size += len(data)
        if size > MAX_EVENT:
            raise UpstreamError(f"the model server sent more than {MAX_EVENT >> 20} MiB at once.", code="too_large")
    return b"".join(parts)
