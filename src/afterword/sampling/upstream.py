"""`Upstream`: an async client for any OpenAI-compatible model server, and for what vLLM's dialect adds.

Owns connections, time limits, the wording of what went wrong, and the knowledge whether the server gives token ids.
Never decides what is done with an answer, never touches the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Self

import aiohttp
import orjson
from yarl import URL

from afterword.errors import UpstreamError
from afterword.records import Json
from afterword.sampling.answer import Answer, read_answer
from afterword.sampling.dialect import Dialect, named_in
from afterword.sampling.stream import CLOSED, ChatStream, Timeouts, UpstreamRejected, too_slow

_OPENED: ContextVar[list[bool]] = ContextVar("opened")
"""Where a request notes that its connection is new."""


class _Connector(aiohttp.TCPConnector):
    async def _create_connection(self, *given: Any, **more: Any) -> Any:
        _OPENED.get([]).append(True)
        return await super()._create_connection(*given, **more)


class Upstream:
    """A model server at `url` (with or without `/v1`). Use it as an async context, within one event loop."""

    def __init__(
        self, url: str, api_key: str | None = None, timeouts: Timeouts | None = None, *, remedy: str = "Is it running?"
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeouts = timeouts or Timeouts()
        self._remedy = remedy
        self.dialect = Dialect()
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._chat_url = URL(f"{self.url}/v1/chat/completions")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
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

    # ---- chat

    def forget_dialect(self) -> None:
        """It may be another server by now: it is asked for everything again."""
        self.dialect = Dialect()

    @property
    def gives_ids(self) -> bool | None:
        """True once token ids came back, False while the server refuses to be asked for them."""
        return self.dialect.gives_ids

    async def open_chat(self, body: Json) -> ChatStream:
        """Start one chat completion, asking for token ids and log-probabilities as far as the server allows.

        A server that refuses the question is asked again without what its refusal names, and at last without any of
        it (`dialect` remembers). Raises UpstreamError (down, slow), UpstreamRejected (an error status).
        """
        asked = self.dialect.extras(body)
        try:
            stream = await self._post_chat(body | asked)
        except UpstreamRejected as error:
            if error.answered not in (400, 422):
                raise
            return await self._ask_less(body, asked, error)
        self.dialect.took(asked)
        return stream

    async def _ask_less(self, body: Json, asked: Json, refusal: UpstreamRejected) -> ChatStream:
        named = named_in(refusal.error, asked)
        for fewer in self.dialect.fewer(asked, named):
            try:
                stream = await self._post_chat(body | fewer)
            except UpstreamRejected as error:
                if error.answered not in (400, 422):
                    raise
                refusal = error
            else:
                self.dialect.took(fewer)
                self.dialect.refused(asked.keys() - fewer.keys(), named, body)
                stream.left_out = asked.keys() - fewer.keys()
                return stream
        raise refusal

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

    async def _post_chat(self, body: Json) -> ChatStream:
        try:
            response = await self._send("POST", self._chat_url, data=orjson.dumps(body))
            if response.status < 400:
                return ChatStream(response, self.url, self.timeouts)
            async with response:
                text = await response.read()
        except TimeoutError as error:
            raise self._slow_or_down(error) from error
        except CLOSED as error:
            raise self._down(error) from error
        raise UpstreamRejected(self.url, response.status, text, response.headers.get("Retry-After"))

    def _slow_or_down(self, error: Exception) -> UpstreamError:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return UpstreamError(
                f"the model server {self.url} took no connection within {self.timeouts.connect:g} s. Is it running?",
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
        """One whole answer as the server's JSON (not streamed)."""
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
                f"the model server {self.url} answered no JSON: {b''.join(parts)[:200]!r}.", code="not_json"
            ) from error
        self.saw_ids(answer)
        return answer if isinstance(answer, dict) else {}

    async def stream_chat(self, body: Json) -> AsyncIterator[Json]:
        """One answer as parsed chunks, in order."""
        stream = await self.open_chat(body | {"stream": True})
        try:
            async for event in stream.events():
                self.saw_ids(event)
                yield event
        finally:
            stream.close()

    def saw_ids(self, answer: Any) -> None:
        """Remember that this server speaks vLLM's dialect, from an answer or chunk that carries token ids."""
        if isinstance(answer, dict) and answer.get("prompt_token_ids"):
            self.dialect.seen_ids = True

    async def complete_many(
        self, requests: Sequence[Json], concurrency: int = 16, on_answer: Callable[[int], object] | None = None
    ) -> list[Answer]:
        """Answers to many chat bodies, in their order, `concurrency` at a time.

        `on_answer` is called with the index of each request that is done. The first error stops the rest.
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
        times = aiohttp.ClientTimeout(total=limit or self.timeouts.control, sock_connect=self.timeouts.connect)
        data = None if body is None else orjson.dumps(body)
        try:
            async with await self._send(method, URL(self.url + path), data=data, timeout=times) as response:
                text = await response.read()
        except TimeoutError as error:
            raise too_slow(self.url, limit or self.timeouts.control) from error
        except CLOSED as error:
            raise self._down(error) from error
        if response.status >= 400:
            raise UpstreamRejected(self.url, response.status, text, response.headers.get("Retry-After"))
        return text

    async def models(self) -> list[Json]:
        """The server's model cards (`id`, and for adapters `parent` and `root`)."""
        text = await self._control("GET", "/v1/models")
        try:
            cards = orjson.loads(text)["data"]
            return [card for card in cards if isinstance(card["id"], str)]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise UpstreamError(
                f"the model server {self.url} has no usable /v1/models: {text[:200]!r}. "
                "Check that the URL is that of an OpenAI-compatible server."
            ) from error

    async def load_adapter(self, name: str, path: str) -> str | None:
        """Load the adapter folder `path` under `name`. One that has the name already is left as it is.

        Returns the folder of what has the name now; None when the server does not say.
        """
        try:
            await self._control("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except UpstreamRejected as error:
            for card in await self.models():
                if card["id"] == name:
                    return card.get("root")
            raise UpstreamError(f"the adapter {name} could not be loaded from {path}: {error.message}") from error
        return path

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter. One that is not there is fine."""
        try:
            await self._control("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except UpstreamRejected as error:
            if error.answered not in (400, 404):
                raise

    async def health(self, limit: float = 3.0) -> None:
        """Returns when the server is well; UpstreamError otherwise. Servers without /health are asked for models."""
        try:
            await self._control("GET", "/health", limit=limit)
        except UpstreamRejected as error:
            if error.answered not in (401, 403, 404, 405):
                raise
            await self._control("GET", "/v1/models", limit=limit)


def complete_all(
    url: str,
    requests: Sequence[Json],
    *,
    concurrency: int = 16,
    api_key: str | None = None,
    timeouts: Timeouts | None = None,
    on_answer: Callable[[int], object] | None = None,
) -> list[Answer]:
    """`Upstream.complete_many` for callers that are not async."""

    async def run() -> list[Answer]:
        async with Upstream(url, api_key, timeouts) as upstream:
            return await upstream.complete_many(requests, concurrency, on_answer)

    return asyncio.run(run())
