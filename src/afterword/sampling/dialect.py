"""What one model server may be asked for beyond OpenAI's API: token ids, log-probabilities, usage of a stream.

Owns the memory of what it takes and what it refuses, each field for itself. One refusal says little (it may be about
that one body), so a field is left out for good only when the refusal names it or several bodies were refused; and it
is asked for again now and then. Never makes a request.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from afterword.records import Json, content_hash

IDS, LOGPROBS, USAGE = "return_token_ids", "logprobs", "stream_options"
_BODIES = 3
"""Different bodies that only go through without a field before the field is held responsible."""
_AGAIN, _AGAIN_MAX = 30.0, 3600.0
"""Seconds after which a refused field is asked for again; doubled each time."""


class Dialect:
    """The extra fields of one server."""

    def __init__(self) -> None:
        self.seen_ids = False
        """Token ids came back."""
        self._taken: set[str] = set()
        """Fields with which a request went through."""
        self._doubts: dict[str, set[str]] = {}
        """Field -> bodies that went through only without it."""
        self._refused: dict[str, tuple[float, float]] = {}
        """Field -> when it is asked for again, and the wait after that."""

    @property
    def gives_ids(self) -> bool | None:
        """True once token ids came back, False while the server refuses to be asked for them, None until then."""
        return False if IDS in self._refused else self.seen_ids or None

    def extras(self, body: Json) -> Json:
        """The fields to ask `body` with."""
        asked: Json = {IDS: True, LOGPROBS: True}
        if body.get("stream"):
            asked[USAGE] = {**(body.get(USAGE) or {}), "include_usage": True}
        return self._allowed(asked) if self._refused else asked

    def _allowed(self, asked: Json) -> Json:
        now = time.monotonic()
        for name, (again, wait) in self._refused.items():
            if now < again:
                asked.pop(name, None)
            elif name in asked:  # by this one request; the others go on without it
                self._refused[name] = (now + wait, min(_AGAIN_MAX, 2 * wait))
        return asked

    def fewer(self, asked: Json, named: set[str]) -> Iterator[Json]:
        """What to ask with after a refusal that `named` some of the fields: without them, then with none.

        Nothing when the server takes them all and complains about something else.
        """
        if not named and asked.keys() <= self._taken:
            return
        if named and named < asked.keys():
            yield {name: value for name, value in asked.items() if name not in named}
        if asked:
            yield {}

    def took(self, asked: Iterable[str]) -> None:
        """A request went through with these fields."""
        self._taken.update(asked)
        if self._doubts or self._refused:
            for name in asked:
                self._doubts.pop(name, None)
                self._refused.pop(name, None)

    def refused(self, dropped: Iterable[str], named: set[str], body: Json) -> None:
        """A request went through only without the `dropped` fields."""
        for name in dropped:
            bodies = self._doubts.setdefault(name, set())
            bodies.add(content_hash(body.get("messages")))
            sure = (name in named and name not in self._taken) or len(bodies) >= _BODIES
            if sure and name not in self._refused:
                self._refused[name] = (time.monotonic() + _AGAIN, 2 * _AGAIN)


def named_in(error: Json, asked: Json) -> set[str]:
    """The fields that an error object speaks of."""
    text = str(error)
    return {name for name in asked if name in text}
