"""Parses server-sent events as they arrive: all line ends, several data lines, byte order marks, a truncated end.

Never interprets events, never does I/O.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from afterword.errors import UpstreamError

MAX_EVENT = 64 * 2**20
"""Bytes of one event, and of an answer that is not streamed; larger ones are an error."""
BLANK = b"\xef\xbb\xbf \t\r\n"
"""Bytes that may stand before an answer: white space, and a byte order mark."""
_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event of a stream."""

    kind: str
    """Its `event:` field; "" when it has none, "comment" for a line that begins with a colon."""
    data: bytes
    """Its data lines, joined by line ends; for a comment the line itself."""
    value: Any = None
    """The data as JSON; None when they are no JSON."""
    broken: bool = False
    """The data are no JSON."""

    @property
    def done(self) -> bool:
        """True for the mark that ends a stream."""
        return self.data == b"[DONE]"


class EventReader:
    """Turns bytes into events. Complete JSON is returned at the end of its line, so that servers without the blank line
    after it lose no time.
    """

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        """Pieces of a line that has no end yet."""
        self._size = 0
        self._skip_newline = False
        """The last piece ended with a carriage return; a newline at the start of the next one belongs to it."""
        self._kind = ""
        self._data: list[bytes] = []
        """Data lines of the event that is being read."""

    def feed(self, data: bytes) -> list[Event]:
        """Returns the events that `data` completes.

        Raises:
            UpstreamError: If an event exceeds MAX_EVENT bytes.
        """
        if self._skip_newline and data:
            self._skip_newline = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._skip_newline = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._size += len(data)
        if b"\n" not in data:
            self._rest.append(data)
            self._check_size()
            return []
        *lines, rest = b"".join((*self._rest, data)).split(b"\n")
        self._rest = [rest] if rest else []
        events: list[Event] = []
        for line in lines:
            self._line(line, events)
        self._size = len(rest) + sum(map(len, self._data))
        self._check_size()
        return events

    def close(self) -> list[Event]:
        """Returns the events at the end of the stream: a last line without its end, an event without its blank line."""
        events: list[Event] = []
        if self._rest:
            self._line(b"".join(self._rest), events)
            self._rest = []
        self._line(b"", events)
        return events

    def _check_size(self) -> None:
        if self._size > MAX_EVENT:
            raise UpstreamError(
                f"the model server sent one event of more than {MAX_EVENT >> 20} MiB. Check that the URL is that of an "
                "OpenAI-compatible server.",
                code="too_large",
            )

    def _line(self, line: bytes, events: list[Event]) -> None:
        line = line.removeprefix(_MARK)
        if not line:
            self._dispatch(events)
        elif line.startswith(b":"):
            events.append(Event("comment", line))
        else:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._add(value.strip(), events)
            elif name == b"event":
                self._kind = value.strip().decode("utf-8", "replace")

    def _add(self, value: bytes, events: list[Event]) -> None:
        if not self._data and value:
            event = _event(self._kind, value)
            if event.done or not event.broken:
                events.append(event)
                return
        self._data.append(value)

    def _dispatch(self, events: list[Event]) -> None:
        kind, lines = self._kind, self._data
        self._kind, self._data = "", []
        joined = b"\n".join(lines)
        if not joined.strip():
            return
        event = _event(kind, joined)
        if event.broken and len(lines) > 1:
            # One object a line, without the empty line between them.
            events += [_event(kind, line) for line in lines if line]
        else:
            events.append(event)


def _event(kind: str, data: bytes) -> Event:
    try:
        return Event(kind, data, orjson.loads(data))
    except orjson.JSONDecodeError:
        return Event(kind, data, broken=True)
