"""The one writer of a process: a thread that commits what is waiting in one group.

A caller gets a future that is done when its rows are on disk (SQLite in WAL mode with synchronous=FULL syncs the
log at every commit). Under load many callers share one commit; alone, a row waits for nobody. Other processes
(a training run, an importer) have writers of their own; SQLite lets one of them write at a time.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

from afterword.errors import StoreError
from afterword.store.codec import INSERT, Row
from afterword.store.schema import connect

Outcome = Literal["stored", "duplicate", "conflict", "forgotten"]
"""What became of a row. `forgotten`: it, or the turn that it is about, was erased; nothing was stored."""
_Item = tuple[list[Row], "Future[list[Outcome]]"]

MAX_GROUP = 512
"""Submissions per commit at most, so that one commit stays short."""
PATIENCE_MS = 120_000
"""How long a commit waits for another process; erasing a user rewrites the whole file under the write lock."""


BULK = ("PRAGMA cache_size=-131072", "PRAGMA wal_autocheckpoint=16384")
"""For a million rows: 128 MiB of pages stay in memory, and the log (4 KiB a page) grows to 64 MiB before it is copied
into the database, so that a page that many commits change is copied once. A commit is synced as ever."""


class Writer:
    """Commits rows in groups. `submit` never blocks; `close` writes what is left."""

    def __init__(self, path: Path, *, bulk: bool = False) -> None:
        self._path = path
        self._bulk = bulk
        self._connection = connect(path)
        for setting in (f"PRAGMA busy_timeout={PATIENCE_MS}", *(BULK if bulk else ())):
            self._connection.execute(setting)
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="afterword-writer", daemon=True)
        self._thread.start()

    def submit(self, rows: list[Row]) -> Future[list[Outcome]]:
        """Queue rows; the future holds one outcome per row once they are on disk, or StoreError."""
        future: Future[list[Outcome]] = Future()
        if self._closed:
            future.set_exception(StoreError(f"the database {self._path} is closed"))
        else:
            self._queue.put((rows, future))
        return future

    @property
    def pending(self) -> int:
        """Submissions that wait for the next commit."""
        return self._queue.qsize()

    def close(self) -> None:
        """Write everything that was submitted, then stop."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            if self._bulk:  # not left to the next commit of a server beside
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._connection.close()

    def _run(self) -> None:
        open_for_business = True
        while open_for_business:
            item = self._queue.get()
            group: list[_Item] = []
            while item is not None:
                group.append(item)
                if len(group) >= MAX_GROUP or self._queue.empty():
                    break
                item = self._queue.get()
            if item is None:
                open_for_business = False
            self._commit(group)

    def _commit(self, group: list[_Item]) -> None:
        group = [item for item in group if item[1].set_running_or_notify_cancel()]
        if group:
            self._commit_running(group)

    def _commit_running(self, group: list[_Item]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [[self._insert(row) for row in rows] for rows, _ in group]
            self._connection.execute("COMMIT")
        except (sqlite3.Error, TypeError, ValueError, OverflowError) as error:
            self._roll_back()
            if len(group) > 1 and not isinstance(error, sqlite3.OperationalError):
                for item in group:  # a row that the database refuses fails only those it was sent with
                    self._commit_running([item])
            else:
                self._fail(group, error)
            return
        for (_, future), outcome in zip(group, outcomes, strict=True):
            future.set_result(outcome)

    def _fail(self, group: list[_Item], error: Exception) -> None:
        failure = StoreError(
            f"cannot write to {self._path}: {error}. Nothing of this group was stored; free disk space or "
            "unlock the database and send it again."
        )
        for _, future in group:
            future.set_exception(failure)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _insert(self, row: Row) -> Outcome:
        if self._connection.execute(INSERT[row.table], row.values).rowcount == 1:
            return "stored"
        found = self._connection.execute(f"SELECT digest FROM {row.table} WHERE id = ?", (row.id,)).fetchone()
        if found is None or not found[0]:  # refused by the database because of a tombstone, or a tombstone itself
            return "forgotten"
        return "duplicate" if found[0] == row.digest else "conflict"
