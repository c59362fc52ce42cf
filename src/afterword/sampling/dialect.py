"""Learns which extra request fields a model accepts: token ids, log-probabilities, usage, a token limit.

A field is omitted once a request succeeded only without it; one that succeeded before, only when several requests
agree, because an error may be about one body. Omitted fields are tried again later. Never makes a request.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from afterword.records import Json, content_hash
from afterword.sampling.stream import UpstreamRejected

IDS, LOGPROBS, USAGE = "return_token_ids", "logprobs", "stream_options"
LIMIT, NEWER_LIMIT = "max_tokens", "max_completion_tokens"
_SPOKEN_OF = {USAGE: (USAGE, "include_usage")}
"""Field -> how a refusal may call it; its own name where it is not here."""
_ORDER = (IDS, LOGPROBS, USAGE)
"""The rarest first: what is left out of a request whose refusal names nothing."""
_BODIES = 3
"""Different bodies that only go through without a field that others went through with."""
_AGAIN, _AGAIN_MAX = 30.0, 3600.0
"""Seconds after which a refused field is asked for again; doubled each time."""
_NOT_ABOUT_FIELDS = (401, 402, 407, 408, 413, 429)
_ABOUT_A_BODY = (400, 422)
_BUSY = (502, 503, 504, 529)
"""Such a server is asked once more at most."""
_OTHER_CODES = ("context_length_exceeded", "model_not_found", "insufficient_quota", "rate_limit_exceeded")


class Dialect:
    """Tracks the extra fields of one model."""

    def __init__(self) -> None:
        self.seen_ids = False
        """Token ids came back."""
        self._limit = LIMIT
        """What the bound of an answer is called here."""
        self._taken: set[str] = set()
        """Fields with which a request went through."""
        self._doubts: dict[str, set[str]] = {}
        """Field -> bodies that went through only without it."""
        self._refused: dict[str, tuple[float, float]] = {}
        """Field -> when it is asked for again, and the wait after that."""

    @property
    def gives_ids(self) -> bool | None:
        """True once token ids came back, False while the server rejects the request for them, None until then."""
        return False if IDS in self._refused else self.seen_ids or None

    def extras(self, body: Json, more: Json) -> Json:
        """Selects the fields to add to a request.

        Args:
            body: The client's request.
            more: Further fields to add where the client does not set them.

        Returns:
            Fields and their values; token ids and log-probabilities included.
        """
        asked: Json = {IDS: True, LOGPROBS: True}
        if body.get("stream"):
            asked[USAGE] = {**(body.get(USAGE) or {}), "include_usage": True}
        for name, value in more.items():
            if name != LIMIT:
                asked[name] = value
            elif body.get(LIMIT) is None and body.get(NEWER_LIMIT) is None:
                asked[self._limit] = value
        # What the client sends itself in the same words is no question of ours.
        asked = {name: value for name, value in asked.items() if body.get(name) != value}
        return self._allowed(asked) if self._refused else asked

    def _allowed(self, asked: Json) -> Json:
        now, due = time.monotonic(), False
        for name, (again, wait) in self._refused.items():
            if now < again or due:
                asked.pop(name, None)
            elif name in asked:  # by this one request, and only this field; the others go on without it
                self._refused[name] = (now + wait, min(_AGAIN_MAX, 2 * wait))
                due = True
        return asked

    def fewer(self, asked: Json, refusal: UpstreamRejected, alone: bool) -> Json | None:
        """Selects the fields for the next attempt after an error.

        Omits the fields that the error names, else the next one that was never accepted, else all.

        Args:
            asked: Fields of the failed attempt.
            refusal: Its error.
            alone: True for the first attempt.

        Returns:
            Fields and their values; None when the error has another cause.
        """
        named = named_in(refusal.text, asked)
        if named:
            if LIMIT in named and NEWER_LIMIT in refusal.text:
                self._limit = NEWER_LIMIT
                asked = {**asked, NEWER_LIMIT: asked[LIMIT]}
            return {name: value for name, value in asked.items() if name not in named}
        suspects = [name for name in asked if name not in self._taken]
        about_else = refusal.answered in _NOT_ABOUT_FIELDS or refusal.error.get("code") in _OTHER_CODES
        if about_else or not (suspects or asked):
            return None
        if not suspects:  # all were taken before, but perhaps not with this body: once more as the client wrote it
            return {} if refusal.answered in _ABOUT_A_BODY else None
        if refusal.answered in _BUSY:
            return {name: value for name, value in asked.items() if name in self._taken} if alone else None
        first = min(suspects, key=lambda name: (name in _ORDER, _ORDER.index(name) if name in _ORDER else 0))
        return {name: value for name, value in asked.items() if name != first}

    def accept(self, asked: Iterable[str]) -> None:
        """Records the fields of a successful request."""
        self._taken.update(asked)
        if self._doubts or self._refused:
            for name in asked:
                self._doubts.pop(name, None)
                self._refused.pop(name, None)

    def reject(self, dropped: Iterable[str], body: Json) -> None:
        """Records fields without which a request succeeded.

        Args:
            dropped: The omitted fields.
            body: The client's request.
        """
        for name in dropped:
            bodies = self._doubts.setdefault(name, set())
            bodies.add(content_hash(body.get("messages")))
            if name not in self._taken or len(bodies) >= _BODIES:
                self._leave_out(name)

    def reject_now(self, names: Iterable[str]) -> None:
        """Records fields that the server accepted with status 200 and then rejected inside the answer."""
        for name in names:
            self._taken.discard(name)
            self._leave_out(name)

    def _leave_out(self, name: str) -> None:
        if name not in self._refused:
            self._refused[name] = (time.monotonic() + _AGAIN, 2 * _AGAIN)


def named_in(reported: Any, asked: Iterable[str]) -> set[str]:
    """Returns the fields that an error names.

    Args:
        reported: The error, as text or as an object.
        asked: Names of the request's extra fields.
    """
    text = str(reported)
    found = {name for name in asked if any(word in text for word in _SPOKEN_OF.get(name, (name,)))}
    if LIMIT in found and LIMIT not in text.replace(NEWER_LIMIT, ""):
        found.discard(LIMIT)
    return found
