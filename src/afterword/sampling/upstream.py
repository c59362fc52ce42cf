"""`Upstream`: an async client for any OpenAI-compatible model server, and for what vLLM's dialect adds.

Owns connections, time limits, the wording of what went wrong, and the knowledge whether the server gives token ids.
Never decides what is done with an answer, never touches the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

import aiohttp
import orjson
from yarl import URL

from afterword.errors import UpstreamError
from afterword.records import Json
from afterword.sampling.answer import Answer, read_answer
from afterword.sampling.stream import CLOSED, ChatStream, Timeouts, UpstreamRejected, too_slow

_ASK = {"return_token_ids": True, "logprobs": True}


class Upstream:
    """A model server at `url` (with or without `/v1`). Use it as an async context, within one event loop."""

    def __init__(self, url: str, api_key: str | None = None, timeouts: Timeouts | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeouts = timeouts or Timeouts()
        self.gives_ids: bool | None = None
        """True once token ids came back, False when the server refused to be asked for them."""
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
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
                timeout=times,
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                read_bufsize=2**18,
            )
        return self._session

    # ---- chat

    async def open_chat(self, body: Json) -> ChatStream:
        """Start one chat completion, asking for token ids and log-probabilities as far as the server allows.

        A server that refuses the question is asked once more without it; if that works it is remembered
        (`gives_ids` is False). Raises UpstreamError (down, slow), UpstreamRejected (an error status).
        """
        if self.gives_ids is not False:
            try:
                return await self._post_chat(body | _ASK | _usage(body))
            except UpstreamRejected as error:
                if self.gives_ids or error.answered not in (400, 422):
                    raise
        plain = await self._post_chat(body)
        self.gives_ids = False
        return plain

    async def _send(self, method: str, url: URL, **more: Any) -> aiohttp.ClientResponse:
        """The response's head. A kept connection that the server had closed meanwhile is replaced once."""
        session = self._open()
        try:
            return await session.request(method, url, **more)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
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
            f"the model server {self.url} cannot be reached: {error}. Start it, or point --upstream at another one.",
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
        if self.gives_ids is None and isinstance(answer, dict) and answer.get("prompt_token_ids"):
            self.gives_ids = True

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


def _usage(body: Json) -> Json:
    """Token counts with a stream, too."""
    if not body.get("stream"):
        return {}
    return {"stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}


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
