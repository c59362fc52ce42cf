"""Sends requests to any OpenAI-compatible model server, with vLLM's additions where they are accepted.

Owns connections, time limits, and whether the server returns token ids. Never interprets an answer, never touches the
store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Self

import aiohttp
import orjson
from yarl import URL

from afterword.errors import UpstreamError
from afterword.records import Json
from afterword.sampling.dialect import Dialect, named_in
from afterword.sampling.sse import MAX_EVENT
from afterword.sampling.stream import CLOSED, Answer, ChatStream, Timeouts, UpstreamRejected, read_answer, too_slow
from afterword.sampling.urls import base_urls, route_url, server_root
from afterword.sharing import BACKGROUND_HEADER

_OPENED: ContextVar[list[bool]] = ContextVar("opened")
"""Where a request notes that its connection is new."""

MORE_HEADERS: ContextVar[dict[str, str] | None] = ContextVar("more_headers", default=None)
"""Headers for chat requests of this task, such as `traceparent`."""


class _Connector(aiohttp.TCPConnector):
    async def _create_connection(self, *given: Any, **more: Any) -> Any:
        _OPENED.get([]).append(True)
        return await super()._create_connection(*given, **more)


NO_LIST = "no_models"
"""Code of the error that says that a server does not list its models."""
_NOT_THERE = (404, 405)
_NO_LIST_STATUS = (403, 404, 405, 410, 501)


class Upstream:
    """A model server. Use it as an async context manager, within one event loop.

    Args:
        url: Its host, base path of any form, or chat route (`urls.base_urls`).
        api_key: Sent as a bearer token.
        timeouts: Time limits.
        remedy: Last sentence of the error when the server is down.
        background: Users' requests at the same engine go first.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeouts: Timeouts | None = None,
        *,
        remedy: str = "Check that it is running.",
        background: bool = False,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._base_urls = base_urls(url)
        """Where its routes may be; one place once it has answered there."""
        self.timeouts = timeouts or Timeouts()
        self._remedy = remedy
        self._dialects: dict[Any, Dialect] = {}
        """Model -> what it may be asked for."""
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        if background:
            self._headers |= BACKGROUND_HEADER
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            times = aiohttp.ClientTimeout(sock_connect=self.timeouts.connect, sock_read=self.timeouts.silence)
            self._session = aiohttp.ClientSession(
                # Shorter than the 5 s of uvicorn (vLLM), so that a connection is never used as the server closes it.
                connector=_Connector(limit=0, keepalive_timeout=4.0),
                timeout=times,
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                read_bufsize=2**18,
            )
        return self._session

    def replicas(self) -> list[Json]:
        """Each server with its state where there are several; none here."""
        return []

    # ---- chat

    def forget_dialect(self) -> None:
        """Forgets which fields are accepted: the server may be another one by now."""
        self._dialects = {}

    def dialect(self, model: Any) -> Dialect:
        """Returns the accepted fields of a model."""
        if model not in self._dialects:
            if len(self._dialects) >= _MOST_DIALECTS:
                del self._dialects[next(iter(self._dialects))]
            self._dialects[model] = Dialect()
        return self._dialects[model]

    @property
    def gives_ids(self) -> bool | None:
        """True once any model returned token ids, False while the server rejects requests for them, else None."""
        found = [dialect.gives_ids for dialect in self._dialects.values()]
        return True if True in found else False if False in found else None

    async def open_chat(self, body: Json, more: Json | None = None) -> ChatStream:
        """Starts one chat completion; adds the extra fields that the server accepts.

        A server that rejects an extra field, with whatever status, is asked again without it (`Dialect`).

        Args:
            body: The client's request.
            more: Further fields to add; its `max_tokens` yields to the client's own limit.

        Returns:
            The answer in flight.

        Raises:
            UpstreamError: If the server is down or too slow.
            UpstreamRejected: If the server answers with an error status.
        """
        dialect = self.dialect(body.get("model"))
        first = asked = dialect.extras(body, more or {})
        named: set[str] = set()
        last: set[str] = set()
        while True:
            try:
                stream = await self._post_chat(body | asked)
            except UpstreamRejected as error:
                fewer = dialect.fewer(asked, error, alone=asked is first)
                if fewer is None:
                    raise
                last = asked.keys() - fewer.keys()
                named |= last & named_in(error.text, last)
                asked = fewer
                continue
            dialect.accept(asked)
            dialect.reject(named | last, body)
            stream.asked, stream.rejected = asked, first.keys() - asked.keys()
            return stream

    def reject_fields(self, model: Any, stream: ChatStream, reported: Any) -> bool:
        """Records that an answer with status 200 turned out to be an error.

        Args:
            model: Model of the request.
            stream: The answer.
            reported: Its error.

        Returns:
            True when the error names an extra field; it is omitted from now on, and a retry may succeed.
        """
        named = named_in(reported, stream.asked)
        self.dialect(model).reject_now(named)
        return bool(named)

    async def _send(self, method: str, url: URL, **more: Any) -> aiohttp.ClientResponse:
        """The response's head. A kept connection that the server had closed meanwhile is replaced once.

        A server that drops a new connection has had the request: it is not sent again.
        """
        session = self._open()
        opened: list[bool] = []
        _OPENED.set(opened)
        try:
            return await session.request(method, url, **more)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if opened:
                raise
            return await session.request(method, url, **more)

    async def _at_base_urls(self, method: str, path: str, **more: Any) -> aiohttp.ClientResponse:
        """The head of a route's answer. A server that has no such route at the first place is asked at the next."""
        first: UpstreamRejected | None = None
        for place in self._base_urls:
            response = await self._send(method, route_url(place, path), **more)
            if response.status < 400:
                self._base_urls = [place]
                return response
            last = place == self._base_urls[-1]
            if response.status not in _NOT_THERE or (last and first is None):
                return response
            async with response:
                error = UpstreamRejected(self.url, response.status, await response.read(), response.headers)
            first = first or error
        assert first is not None
        raise first

    async def _post_chat(self, body: Json) -> ChatStream:
        try:
            more: dict[str, Any] = {"headers": found} if (found := MORE_HEADERS.get()) else {}
            response = await self._at_base_urls("POST", "/chat/completions", data=orjson.dumps(body), **more)
            if response.status < 400:
                return ChatStream(response, self.url, self.timeouts)
            async with response:
                text = await response.content.read(MAX_EVENT)
        except TimeoutError as error:
            raise self._slow_or_down(error) from error
        except CLOSED as error:
            raise self._down(error) from error
        raise UpstreamRejected(self.url, response.status, text, response.headers)

    async def forward(self, path: str, data: bytes, content_type: str) -> aiohttp.ClientResponse:
        """Posts a body to another route of the server.

        Args:
            path: Below the base URL, such as "/embeddings".
            data: The body.
            content_type: Of the body.

        Returns:
            The head of the answer, with any status but those of a missing route; the caller closes it.

        Raises:
            UpstreamError: If the server is down or too slow.
            UpstreamRejected: If the server has no such route.
        """
        try:
            answer = await self._at_base_urls("POST", path, data=data, headers={"Content-Type": content_type})
            if answer.status not in (*_NOT_THERE, 501):
                return answer
            async with answer:
                text = await answer.content.read(MAX_EVENT)
        except TimeoutError as error:
            raise self._slow_or_down(error) from error
        except CLOSED as error:
            raise self._down(error) from error
        raise UpstreamRejected(self.url, answer.status, text, answer.headers)

    def _slow_or_down(self, error: Exception) -> UpstreamError:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return UpstreamError(
                f"the model server {self.url} accepted no connection within {self.timeouts.connect:g} s. "
                "Check that it is running.",
                timed_out=True,
                code="timeout",
            )
        return too_slow(self.url, self.timeouts.silence)

    def _down(self, error: Exception) -> UpstreamError:
        return UpstreamError(
            f"the model server {self.url} cannot be reached: {error}. {self._remedy}",
            code="down",
        )

    async def chat(self, body: Json) -> Json:
        """Requests one answer without streaming.

        Returns:
            The server's JSON.

        Raises:
            UpstreamError: As `open_chat`, or if the body is not JSON.
        """
        stream = await self.open_chat(body | {"stream": False})
        try:
            parts = []
            while data := await stream.read():
                parts.append(data)
        finally:
            stream.close()
        try:
            answer = orjson.loads(b"".join(parts))
        except orjson.JSONDecodeError as error:
            raise UpstreamError(
                f"the model server {self.url} answered invalid JSON: {b''.join(parts)[:200]!r}. "
                "Check that the URL is that of an OpenAI-compatible server.",
                code="not_json",
            ) from error
        self.saw_ids(answer, body.get("model"))
        return answer if isinstance(answer, dict) else {}

    def saw_ids(self, answer: Any, model: Any) -> None:
        """Records whether an answer or chunk carries token ids."""
        if isinstance(answer, dict) and answer.get("prompt_token_ids"):
            self.dialect(model).seen_ids = True

    async def complete_many(
        self, requests: Sequence[Json], concurrency: int = 16, on_answer: Callable[[int], object] | None = None
    ) -> list[Answer]:
        """Requests answers to many chat bodies.

        Args:
            requests: Chat bodies.
            concurrency: Requests in flight at once.
            on_answer: Called with the index of each completed request.

        Returns:
            Answers, in the order of the requests.

        Raises:
            UpstreamError: If a request fails; the first error stops the rest.
        """
        gate = asyncio.Semaphore(concurrency)

        async def one(index: int, body: Json) -> Answer:
            async with gate:
                answer = read_answer(await self.chat(body))
                if on_answer is not None:
                    on_answer(index)
                return answer

        tasks = [asyncio.ensure_future(one(i, body)) for i, body in enumerate(requests)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ---- models and adapters

    async def _control(self, method: str, path: str, body: Json | None = None, limit: float | None = None) -> bytes:
        """The body of a route's answer; of `/health`, which is at the server's root. UpstreamRejected for an error."""
        times = aiohttp.ClientTimeout(total=limit or self.timeouts.control, sock_connect=self.timeouts.connect)
        more = {"data": None if body is None else orjson.dumps(body), "timeout": times}
        try:
            if path == _HEALTH:
                asking = self._send(method, route_url(server_root(self._base_urls[0]), path), **more)
            else:
                asking = self._at_base_urls(method, path, **more)
            async with await asking as response:
                text = await response.read()
        except TimeoutError as error:
            raise too_slow(self.url, limit or self.timeouts.control) from error
        except CLOSED as error:
            raise self._down(error) from error
        if response.status >= 400:
            raise UpstreamRejected(self.url, response.status, text, response.headers)
        return text

    async def models(self) -> list[Json]:
        """Lists the server's model cards (`id`; for adapters `parent` and `root`).

        Raises:
            UpstreamError: If the server is down; with the code NO_LIST if it has no readable list.
        """
        before = self._base_urls
        try:
            text = await self._control("GET", "/models")
            cards = _cards(text)
            if cards is None and len(before) > 1:  # a page of a web server: the other place is the API
                self._base_urls = [place for place in before if place != self._base_urls[0]]
                text = await self._control("GET", "/models")
                cards = _cards(text)
        except UpstreamRejected as error:
            if error.answered not in _NO_LIST_STATUS:
                raise
            self._base_urls = before
            raise UpstreamError(
                f"the model server {self.url} does not list its models (GET .../models answered {error.answered}: "
                f"{error.error['message']}).",
                code=NO_LIST,
            ) from error
        if cards is None:
            self._base_urls = before
            raise UpstreamError(
                f"the model server {self.url} answered GET /v1/models with an invalid list: {text[:200]!r}. "
                "Check that the URL is that of an OpenAI-compatible server.",
                code=NO_LIST,
            )
        return cards

    async def load_adapter(self, name: str, path: str) -> str | None:
        """Loads an adapter folder; an adapter that has the name already stays.

        Args:
            name: Name upstream.
            path: Absolute path of the folder.

        Returns:
            Folder of the adapter that has the name now; None when the server does not report it.

        Raises:
            UpstreamError: If the server cannot load the folder.
        """
        try:
            await self._control("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except UpstreamRejected as error:
            for card in await self.models():
                if card["id"] == name:
                    return card.get("root")
            raise UpstreamError(
                f"the adapter {name} could not be loaded from {path}: {error.message.removesuffix('.')}. "
                "Check the model server's log."
            ) from error
        return path

    async def unload_adapter(self, name: str) -> None:
        """Unloads an adapter; does nothing when it is not loaded.

        Raises:
            UpstreamError: If the server fails.
        """
        try:
            await self._control("POST", "/unload_lora_adapter", {"lora_name": name})
        except UpstreamRejected as error:
            if error.answered not in (400, 404):
                raise

    async def health(self, limit: float = 3.0) -> None:
        """Checks that the server is well; a server without /health is asked for its models.

        Args:
            limit: Seconds to wait.

        Raises:
            UpstreamError: If the server is down or unhealthy.
        """
        try:
            await self._control("GET", _HEALTH, limit=limit)
        except UpstreamRejected as error:
            if error.answered not in (401, 403, 404, 405):
                raise
            try:
                await self._control("GET", "/models", limit=limit)
            except UpstreamRejected as none:
                if none.answered not in _NO_LIST_STATUS:
                    raise


_HEALTH = "/health"
_MOST_DIALECTS = 1000


def _cards(text: bytes) -> list[Json] | None:
    """The model cards of a list in OpenAI's shape, without the object around it, or in Ollama's; None for no list."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if isinstance(found, dict):
        found = found.get("data") if isinstance(found.get("data"), list) else found.get("models") or None
    if not isinstance(found, list):
        return None
    cards = [{"id": card} if isinstance(card, str) else card for card in found]
    cards = [{"id": card.get("name"), **card} for card in cards if isinstance(card, dict)]
    return [card for card in cards if isinstance(card["id"], str)]


def complete_all(
    url: str,
    requests: Sequence[Json],
    *,
    concurrency: int = 16,
    api_key: str | None = None,
    timeouts: Timeouts | None = None,
    on_answer: Callable[[int], object] | None = None,
) -> list[Answer]:
    """Runs `Upstream.complete_many` for callers that are not async."""

    async def run() -> list[Answer]:
        async with Upstream(url, api_key, timeouts) as upstream:
            return await upstream.complete_many(requests, concurrency, on_answer)

    return asyncio.run(run())
