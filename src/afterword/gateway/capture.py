"""Queues turns and feedback for the store: bounded, counted, and without delaying an answer.

The last chunk of an answer waits for the commit, with a limit. A store that fails is shown in /health and /metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from afterword.errors import AfterwordError, StoreError
from afterword.gateway.link import Links
from afterword.gateway.metrics import Metrics
from afterword.records import Feedback, Record, Turn
from afterword.store import Outcome, Store


class Capture:
    """Queues the records of one gateway and counts late and lost turns."""

    def __init__(self, store: Store, links: Links, metrics: Metrics, wait_ms: float, max_pending: int) -> None:
        self._store = store
        self._links = links
        self._metrics = metrics
        self._wait = wait_ms / 1000
        self._max_pending = max_pending
        self._loop = asyncio.get_running_loop()
        self.pending = 0
        self.late = 0
        self.dropped = 0
        self.problem: str | None = None
        """Why the last write failed; None after one that did not."""

    def enqueue(
        self, turn: Turn, asked: str, feedback: Sequence[Feedback], model: str = ""
    ) -> asyncio.Future[None] | None:
        """Queue a turn with the feedback that its request gave on earlier turns.

        Args:
            turn: The turn.
            asked: Key of the request's question (`asked_key`), for linking.
            feedback: Feedback on earlier turns.
            model: Model name in the request.

        Returns:
            A future that is done when the records are on disk or lost; None when the queue is full.
        """
        if self.pending >= self._max_pending:
            self._count_drop(f"{self.pending} turns wait for the disk already", "full")
            return None
        done = self._submit((turn, *feedback), turn)
        if done is not None:
            self._links.remember(turn, asked, model)
        return done

    def note(self, records: Sequence[Record]) -> asyncio.Future[None] | None:
        """Queue the records of a request without an answer: its feedback and its failure."""
        return self._submit(records, None) if records else None

    def drop(self, why: str, records: Sequence[Record]) -> asyncio.Future[None] | None:
        """Count a turn that cannot be stored; queue the other records of its request."""
        self._count_drop(why, "odd")
        return self.note(records)

    def _submit(self, records: Sequence[Record], turn: Turn | None) -> asyncio.Future[None] | None:
        try:
            future = self._store.submit(records)
        except AfterwordError as error:
            self._count_drop(error.message, "store")
            return None
        self.pending += 1
        done: asyncio.Future[None] = self._loop.create_future()
        ready = functools.partial(self._committed, records, turn, done)
        future.add_done_callback(functools.partial(self._from_writer, ready))
        return done

    def _from_writer(self, ready: Callable[[Future[list[Outcome]]], None], future: Future[list[Outcome]]) -> None:
        """Called in the writer's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is gone: the server stopped, what was queued is written
            self._loop.call_soon_threadsafe(ready, future)

    def _committed(
        self,
        records: Sequence[Record],
        turn: Turn | None,
        done: asyncio.Future[None],
        future: Future[list[Outcome]],
    ) -> None:
        self.pending -= 1
        error = future.exception()
        if error is not None:
            if turn is not None:
                self._links.forget(turn.id)
            self._count_drop(str(error), "store")
        else:
            self.problem = None
            for record, outcome in zip(records, future.result(), strict=True):
                if isinstance(record, Feedback):
                    # The same words after the same turn again are no news, also when another turn answered them.
                    status = "stored" if outcome == "stored" else "duplicate"
                    self._metrics.feedback.labels(record.kind, status).inc()
                else:
                    self._metrics.stored.inc()
        if not done.done():
            done.set_result(None)

    def _count_drop(self, why: str, reason: str) -> None:
        self.dropped += 1
        self.problem = why
        self._metrics.dropped.labels(reason).inc()

    async def wait_durable(self, done: asyncio.Future[None] | None) -> None:
        """Wait until a turn is on disk; after the limit count it as late."""
        if done is None or done.done():
            return
        alarm = self._loop.call_later(self._wait, self._too_late, done)
        try:
            await done
        finally:
            alarm.cancel()

    def _too_late(self, done: asyncio.Future[None]) -> None:
        if not done.done():
            self.late += 1
            self._metrics.late.inc()
            done.set_result(None)

    async def write(self, records: Sequence[Record]) -> list[Outcome]:
        """Appends records and waits until they are on disk.

        Returns:
            The outcome of each record, in order.

        Raises:
            StoreError: If the database cannot be written.
        """
        try:
            outcomes = await asyncio.wrap_future(self._store.submit(records, live=True))
        except StoreError as error:
            self.problem = error.message
            raise
        self.problem = None
        return outcomes
