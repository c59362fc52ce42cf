"""Keeps values that take long to compute fresh, in a thread, so that no page waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

FIRST_WAIT = 0.1
"""Seconds that the first page, and the first after `stale`, waits for a value; later ones show what is known."""


class Refreshed(Generic[T]):
    """A cached value, computed again on request at most every `every` seconds.

    Args:
        compute: Runs in a thread, never twice at once.
        every: Least seconds between the end of one computation and the begin of the next.
    """

    def __init__(self, compute: Callable[[], T], every: float) -> None:
        self._compute, self._every = compute, every
        self._task: asyncio.Task[T] | None = None
        self._value: T | None = None
        self._ended = -1e9
        self._wait = FIRST_WAIT
        self._outdated = False
        """The computation that runs began before `stale`."""
        self.at: float | None = None
        """When the value was computed (Unix seconds); None before the first."""

    async def get(self) -> T | None:
        """The newest value; None while the first one is being computed.

        Raises:
            Exception: As `compute` raised; the next call tries again.
        """
        if self._task is None and time.monotonic() - self._ended >= self._every:
            self._task = asyncio.create_task(asyncio.to_thread(self._compute))
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._wait)
            self._wait = 0.0
            if self._task.done():
                task, self._task = self._task, None
                self._ended = -1e9 if self._outdated else time.monotonic()
                self._outdated = False
                self._value, self.at = task.result(), time.time()
        return self._value

    def stale(self) -> None:
        """Makes the next `get` compute again."""
        self._ended, self._wait = -1e9, FIRST_WAIT
        self._outdated = self._task is not None

    async def close(self) -> None:
        """Waits for a computation that runs."""
        if self._task is not None:
            await asyncio.wait([self._task])
            self._task.exception()
