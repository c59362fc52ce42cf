"""Commits rows of a process from one thread, in groups.

A caller gets a future that is done when its rows are on disk (SQLite in WAL mode with synchronous=FULL syncs the
log at every commit). Under load many callers share one commit; a single row is committed at once. Other processes
(a training run, an importer) have writers of their own; SQLite lets one of them write at a time.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

import orjson

from afterword.errors import StoreError
from afterword.records import Feedback, Json
from afterword.store.codec import INSERT, EncodedRow
from afterword.store.schema import connect
from afterword.store.votes import VOTE, Vote, superseded, version_id, voter_of

Outcome = Literal["stored", "duplicate", "conflict", "forgotten"]
"""What became of a row. `forgotten`: it, or the turn that it is about, was erased; nothing was stored."""
Rows = list[EncodedRow] | Callable[[], list[EncodedRow]]
"""Rows, or a function that makes them in the writer's thread (redaction, which takes up to half a second)."""
_Item = tuple[Rows, "Future[list[Outcome]]"]
_Ready = tuple[list[EncodedRow], "Future[list[Outcome]]"]

MAX_GROUP = 512
"""Submissions per commit at most, so that one commit stays short."""
MAX_WAIT = 0.05
"""Seconds of redaction after which the rows that are made are committed: they do not wait for the whole group."""
PATIENCE_MS = 120_000
"""How long a commit waits for another process; erasing a user rewrites the whole file under the write lock."""


BULK = ("PRAGMA cache_size=-131072", "PRAGMA wal_autocheckpoint=16384")
"""For a million rows: 128 MiB of pages stay in memory, and the log (4 KiB a page) grows to 64 MiB before it is copied
into the database, so that a page that many commits change is copied once. A commit is synced as ever."""


class Writer:
    """Commits rows in groups. `submit` never blocks; `close` writes the remaining rows."""

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

    def submit(self, rows: Rows) -> Future[list[Outcome]]:
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
        running = [item for item in group if item[1].set_running_or_notify_cancel()]
        ready: list[_Ready] = []
        started = time.monotonic()
        for rows, future in running:
            if (made := self._made(rows, future)) is not None:
                ready.append((made, future))
            if ready and time.monotonic() - started > MAX_WAIT:
                self._commit_running(ready)
                ready, started = [], time.monotonic()
        if ready:
            self._commit_running(ready)

    def _made(self, rows: Rows, future: Future[list[Outcome]]) -> list[EncodedRow] | None:
        """The rows of an item; None when they cannot be made, which fails only this item."""
        if isinstance(rows, list):
            return rows
        try:
            return rows()
        except Exception as error:  # noqa: BLE001 - the outermost boundary of the thread, which must go on
            future.set_exception(StoreError(
                f"cannot write to {self._path}: redaction failed with {type(error).__name__}: {error}. Nothing of this "
                "submission was stored; set `privacy.redact_stored` to another mode if it fails again."
            ))  # fmt: skip
            return None

    def _commit_running(self, group: list[_Ready]) -> None:
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

    def _fail(self, group: list[_Ready], error: Exception) -> None:
        failure = StoreError(
            f"cannot write to {self._path}: {error}. Nothing of this group was stored; free disk space or "
            "unlock the database and send it again."
        )
        for _, future in group:
            future.set_exception(failure)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _insert(self, row: EncodedRow) -> Outcome:
        if self._connection.execute(INSERT[row.table], row.values).rowcount == 1:
            return "stored"
        found = self._connection.execute(f"SELECT digest FROM {row.table} WHERE id = ?", (row.id,)).fetchone()
        if found is None or not found[0]:  # refused by the database because of a tombstone, or a tombstone itself
            return "forgotten"
        if row.table == Feedback.TABLE and row.kind == VOTE:
            return self._vote(row)
        return "duplicate" if found[0] == row.digest else "conflict"

    def _vote(self, row: EncodedRow) -> Outcome:
        """A vote under an id that is known: the same again, or a changed one, which becomes a version of its own."""
        sql = "SELECT seq, id, digest, turn, kind, body FROM feedback WHERE id = ? OR (id > ? AND id < ?) ORDER BY seq"
        known = self._connection.execute(sql, (row.id, f"{row.id}#v", f"{row.id}#w")).fetchall()
        body = orjson.loads(row.values[-1])
        if known[0][3:5] != (body["turn"], VOTE):
            return "conflict"
        same = [name for _, name, digest, *_ in known if digest == row.digest]
        if same and (body["occurred_at"] is not None or not row.live or self._is_newest(same[-1], body)):
            return "duplicate"
        times = {orjson.loads(said)["occurred_at"] for *_, digest, _, _, said in known if digest}
        if body["occurred_at"] in times - {None}:
            return "conflict"  # of the same moment: no later vote, but another content
        values = (version_id(row.id, len(known) + 1), *row.values[1:])
        return "stored" if self._connection.execute(INSERT[row.table], values).rowcount == 1 else "conflict"

    def _is_newest(self, name: str, body: Json) -> bool:
        """Does this vote of the turn still count: not taken back, and nothing newer of the same voter?"""
        sql = """SELECT f.seq, f.id, f.turn, f.body, t.user FROM feedback f LEFT JOIN turns t ON t.id = f.turn
            WHERE f.turn = ? AND f.kind = ? AND length(f.digest) > 0
            AND NOT EXISTS (SELECT 1 FROM feedback r WHERE r.retracts = f.id)"""
        rows = self._connection.execute(sql, (body["turn"], VOTE)).fetchall()
        votes = [
            Vote(seq, known, turn, voter_of(orjson.loads(said), asked), None) for seq, known, turn, said, asked in rows
        ]
        return name in {vote.id for vote in votes} - superseded(votes)
