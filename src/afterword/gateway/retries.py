"""Answers repeated requests of one client from memory: same answer, one turn.

Requests are the same by `Idempotency-Key`, or by `x-stainless-retry-count` above 0 with an equal body. A retry whose
answer is gone is sent upstream again, but gives no feedback. Never touches the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from afterword.errors import UsageError
from afterword.gateway.wire.request import ChatRequest

KEPT_SECONDS = 900.0
"""How long an answer can be had again."""
MAX_BYTES = 64 << 20
"""Of all answers that are kept."""
MAX_ANSWER = 4 << 20
"""Of one answer; a larger one is asked for anew."""
MOST_KEPT = 20_000
"""Answers, however short: what is noted of each takes about 2 kB."""
MAX_KEY = 255
"""Characters of an idempotency key."""
_KEYS = ("idempotency-key", "x-idempotency-key")


class KeyReused(UsageError):
    """An idempotency key arrived with another body than before."""

    status = 422


@dataclass(slots=True)
class Saved:
    """A complete answer as it was sent."""

    body: bytes
    headers: dict[str, str]
    content_type: str


@dataclass(slots=True)
class Attempt:
    """A request that its client may send again."""

    name: tuple[str, ...]
    digest: str
    started: float = field(default_factory=time.monotonic)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    saved: Saved | None = None


class Retries:
    """Keeps recent retryable requests and their answers, oldest first.

    Args:
        seconds: How long an answer is kept.
        max_bytes: Bytes of all kept answers.
    """

    def __init__(self, seconds: float = KEPT_SECONDS, max_bytes: int = MAX_BYTES) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._attempts: OrderedDict[tuple[str, ...], Attempt] = OrderedDict()
        self._bytes = 0

    async def begin(
        self, chat: ChatRequest, headers: Mapping[str, str], peer: str
    ) -> tuple[Attempt | None, Saved | None]:
        """Registers a request, or returns the answer of an equal one; waits while the equal one is in flight.

        Sets `chat.retry`.

        Args:
            chat: The request.
            headers: Its headers.
            peer: Its remote address.

        Returns:
            The attempt to pass to `end` (None: not retryable), and the known answer (None: send it upstream).

        Raises:
            KeyReused: If the key was used with another body.
            UsageError: If the key is too long.
        """
        count = _count(headers)
        key = next((headers[name] for name in _KEYS if headers.get(name)), None)
        chat.retry = bool(count)
        if not chat.keep or (key is None and count is None):
            return None, None
        if key is not None and len(key) > MAX_KEY:
            raise UsageError(f"the header `Idempotency-Key` is invalid: {len(key)} characters; use at most {MAX_KEY}.",
                             param="Idempotency-Key")  # fmt: skip
        body = orjson.dumps([chat.dialect, chat.body, chat.conversation, chat.previous], option=orjson.OPT_SORT_KEYS)
        digest = hashlib.blake2b(body, digest_size=16).hexdigest()
        scope = tuple(part or "" for part in chat.scope)
        name = ("key", *scope, key) if key is not None else ("body", *scope, peer, digest)
        while (known := self._known(name)) is not None:
            if known.digest != digest:
                raise KeyReused(
                    f"the Idempotency-Key {key!r:.80} was used for another request: use a new key for each request.",
                    param="Idempotency-Key", code="idempotency_key_reused",
                )  # fmt: skip
            if key is None and not count:
                self._forget(known)  # the same words again, by a user
                break
            chat.retry = True
            await known.done.wait()
            if known.saved is not None:
                return None, known.saved
            if self._attempts.get(name) is known:
                self._forget(known)
        attempt = self._attempts[name] = Attempt(name, digest)
        return attempt, None

    def end(self, attempt: Attempt | None, saved: Saved | None) -> None:
        """Completes an attempt.

        Args:
            attempt: From `begin`.
            saved: Its answer; None when it failed or the client left.
        """
        if attempt is None or attempt.done.is_set():
            return
        if saved is not None and len(saved.body) <= MAX_ANSWER and self._attempts.get(attempt.name) is attempt:
            attempt.saved = saved
            self._bytes += len(saved.body)
        attempt.done.set()
        if attempt.saved is None and self._attempts.get(attempt.name) is attempt:
            del self._attempts[attempt.name]
        while self._too_much() and (oldest := self._oldest_finished()) is not None:
            self._forget(oldest)

    def _too_much(self) -> bool:
        return self._bytes > self._max_bytes or len(self._attempts) > MOST_KEPT

    def _known(self, name: tuple[str, ...]) -> Attempt | None:
        """The newest equal attempt; those that are too old are dropped."""
        now = time.monotonic()
        while (oldest := self._oldest_finished()) is not None and now - oldest.started > self._seconds:
            self._forget(oldest)
        return self._attempts.get(name)

    def _oldest_finished(self) -> Attempt | None:
        return next((attempt for attempt in self._attempts.values() if attempt.done.is_set()), None)

    def _forget(self, attempt: Attempt) -> None:
        if self._attempts.get(attempt.name) is attempt:
            del self._attempts[attempt.name]
        if attempt.saved is not None:
            self._bytes -= len(attempt.saved.body)
            attempt.saved = None


def _count(headers: Mapping[str, str]) -> int | None:
    """How often the client has sent this request before; None when it does not say."""
    value = headers.get("x-stainless-retry-count", "").strip()
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 4 else None
