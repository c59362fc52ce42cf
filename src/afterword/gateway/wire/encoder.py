"""Declares how an answer in OpenAI's chat form is written in another API's form, and reads our own chunks for that.

The exchange works with chat completions alone; an encoder stands between it and the client. Never does I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import orjson

from afterword.errors import AfterwordError, error_response
from afterword.gateway.wire.response import DONE
from afterword.records import Json

EVENT_STREAM = "text/event-stream; charset=utf-8"


class Encoder(Protocol):
    """Writes one answer."""

    @property
    def content_type(self) -> str:
        """Of a streamed answer."""

    def feed(self, data: bytes) -> bytes:
        """The bytes for the client, of whole events `data: {chunk}`; b"" for none yet."""

    def finish(self, data: bytes) -> bytes:
        """The same for the last events, with the end mark."""

    def whole(self, body: bytes) -> bytes:
        """The body for the client, of a whole chat completion."""

    def failure(self, error: AfterwordError) -> bytes:
        """The last bytes of a stream that failed."""


class ChatEncoder:
    """OpenAI's chat completions, as they are."""

    content_type = EVENT_STREAM

    def feed(self, data: bytes) -> bytes:
        """Passes the events on."""
        return data

    def finish(self, data: bytes) -> bytes:
        """Passes the events on."""
        return data

    def whole(self, body: bytes) -> bytes:
        """Passes the body on."""
        return body

    def failure(self, error: AfterwordError) -> bytes:
        """The error as an event, and the end mark."""
        return b"data: " + orjson.dumps(error_response(error)[1]) + b"\n\n" + DONE


def chunks(data: bytes) -> Iterator[Json]:
    """The chunks of events that `UpstreamAnswer` wrote; comments and the end mark are left out."""
    for event in data.split(b"\n\n"):
        if event.startswith(b"data: {"):
            yield orjson.loads(event[6:])


def event(kind: str, body: Json) -> bytes:
    """A named event, whose body has its kind as `type`."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **body}))


def first_choice(chunk: Json) -> tuple[Json, str | None]:
    """The delta of the first choice and its finish reason."""
    for choice in chunk.get("choices") or ():
        if (choice.get("index") or 0) == 0:
            return choice.get("delta") or choice.get("message") or {}, choice.get("finish_reason")
    return {}, None


def text_of_delta(value: Any) -> str:
    """The words of a delta's content, which some servers send as parts."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else []
    return "".join(
        part if isinstance(part, str) else str(part.get("text") or "") for part in parts if isinstance(part, str | dict)
    )


def thought_of(delta: Json) -> str:
    """The words of a model's reasoning, under either of its names."""
    value = delta.get("reasoning_content") or delta.get("reasoning")
    return value if isinstance(value, str) else ""


class CallParts:
    """Puts the parts of tool calls in order: which call a part belongs to, and whether it begins one."""

    def __init__(self) -> None:
        self._ids: list[str | None] = []
        self._index: dict[Any, int] = {}

    def place(self, part: Json) -> tuple[int, bool]:
        """The number of the call, and True for its first part."""
        name, index = part.get("id"), part.get("index")
        known = self._index.get(index) if index is not None else len(self._ids) - 1
        another = name and known is not None and 0 <= known < len(self._ids) and self._ids[known] not in (None, name)
        if known is None or known < 0 or another:
            self._ids.append(name if isinstance(name, str) else None)
            known = self._index[index] = len(self._ids) - 1
            return known, True
        return known, False


def name_of_call(part: Json) -> str:
    """The name of the called function."""
    function = part.get("function")
    return str(function.get("name") or "") if isinstance(function, dict) else ""


def arguments_of(part: Json) -> str:
    """The (part of the) arguments, as JSON text."""
    function = part.get("function")
    value = function.get("arguments") if isinstance(function, dict) else None
    return value if isinstance(value, str) else "" if value is None else orjson.dumps(value).decode()
