"""An answer that is under way, and the words for what can go wrong with it.

Owns the time limits, the wording of errors and the reading of bytes; never opens a connection.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Set
from dataclasses import dataclass

import aiohttp
import orjson

from afterword.errors import UpstreamError
from afterword.records import Json

CLOSED = (aiohttp.ClientError, ConnectionError, OSError)
"""What a connection that is no more raises."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for a model server."""

    connect: float = 5.0
    """Until the connection stands."""
    silence: float = 300.0
    """Between two reads: until the first byte of an answer, and from chunk to chunk."""
    control: float = 120.0
    """For a whole control request: loading an adapter, listing models."""


class UpstreamRejected(UpstreamError):
    """The model server answered with an error status. `answered` is that status, `error` its error object."""

    def __init__(self, url: str, answered: int, body: bytes, retry_after: str | None = None) -> None:
        self.answered = answered
        self.error = _error_object(body)
        self.retry_after = retry_after
        super().__init__(f"the model server {url} answered {answered}: {self.error.get('message')}")


def _error_object(body: bytes) -> Json:
    """OpenAI's error object from an error body; whatever else it is becomes the message."""
    with contextlib.suppress(orjson.JSONDecodeError):
        data = orjson.loads(body)
        found = data.get("error", data) if isinstance(data, dict) else None
        if isinstance(found, str):
            return {"message": found}
        if isinstance(found, dict) and "message" in found:
            return found
    return {"message": body[:500].decode("utf-8", "replace") or "(no text)"}


class ChatStream:
    """An answer that is under way: raw bytes as they arrive. Close it to make the server stop."""

    def __init__(self, response: aiohttp.ClientResponse, url: str, timeouts: Timeouts) -> None:
        self._response = response
        self._read = response.content.readany
        self.content_type = response.content_type
        """What the server says that it sends."""
        self._url = url
        self._timeouts = timeouts
        self.left_out: Set[str] = frozenset()
        """What the server was not asked for because it refused this body with it."""

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. UpstreamError when the stream is cut or silent for too long."""
        try:
            return await self._read()
        except TimeoutError as error:
            raise too_slow(self._url, self._timeouts.silence) from error
        except CLOSED as error:
            raise UpstreamError(f"the model server {self._url} cut the stream: {error!r}.", code="cut") from error

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else drop it so that the server stops."""
        self._response.close() if not self._response.content.at_eof() else self._response.release()

    async def events(self) -> AsyncIterator[Json]:
        """The parsed `data:` events up to `[DONE]` or the end."""
        rest = b""
        while data := await self.read():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                payload = line[5:].strip() if line.startswith(b"data:") else b""
                if payload == b"[DONE]":
                    return
                if payload:
                    yield orjson.loads(payload)


def too_slow(url: str, seconds: float) -> UpstreamError:
    """The error of a server that is silent."""
    return UpstreamError(
        f"the model server {url} sent nothing for {seconds:g} s. It may be overloaded or still loading; "
        "raise the time limit or look at its log.",
        timed_out=True,
        code="timeout",
    )
