"""Writes the records of an import in groups, in the order that costs the database least.

Counts the outcome of each record, and notes the progress after each commit. Never parses a row.
"""

from __future__ import annotations

import copy
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from afterword.feedback.importing.import_progress import ImportProgress, ImportSummary
from afterword.feedback.importing.rejects import Rejects
from afterword.records import Episode, Feedback, Json, Record, Turn
from afterword.store import Outcome, Store

GROUP = 1000
"""Records per commit, about."""
GROUP_BYTES = 1 << 23
"""Bytes of the rows in a commit, about: long rows make smaller groups."""
IN_FLIGHT = 3
"""Groups that wait for their commit while the file is read on, fewer when they are large; bounds the memory."""
IN_ORDER = 20_000
"""Records that are stored in the order of the file; so few touch no index that does not fit into memory."""
WINDOW = 100_000
"""Records that are put into the order of their ids before they are stored."""
WINDOW_BYTES = 1 << 27
"""Bytes of the rows that a window may hold; two windows and their objects bound the memory."""


Counts = tuple[Json, int]
"""What a mark needs besides its record: the summary, and the size of the file of rejected rows."""
Rows = list[tuple[list[Record], str, int]]
"""The records of each row, with its place in the file and its bytes."""


@dataclass(slots=True)
class _Write:
    """A group on its way; with what the counts were when all before its end had been read, if it ends a stretch."""

    done: Future[list[Outcome]]
    rows: Rows
    counts: Counts | None
    size: int


class Sink:
    """Records on their way to the store, in groups of about GROUP, at most IN_FLIGHT of them unwritten.

    The beginning of a file is written in its order. Behind it, rows that may be moved are gathered in windows, and a
    window is written in the order of its ids. Ids are hashes: in the order of the file each row would touch a page of
    its own in every index, in the order of ids a group touches few. A window is written while the next one is read.
    """

    def __init__(self, store: Store, summary: ImportSummary, mark: ImportProgress, refuse: Rejects) -> None:
        self._store, self._summary, self._mark, self._refuse = store, summary, mark, refuse
        self._group: Rows = []
        self._window: Rows = []
        self._ready: deque[tuple[Rows, Counts | None]] = deque()
        self._writes: deque[_Write] = deque()
        self._taken = self._unseen = self._held = self._bytes = self._grouped = self._grouped_bytes = 0
        self._sorting = False
        self.flushed = False
        """True when GROUP records came since the last time that it was."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._turn_over()
            self._flush()
            while self._writes:
                self._settle(self._writes.popleft())

    def add(self, records: list[Record], where: str, size: int | None = None) -> None:
        """Take the records of one row. `size`: its bytes, when it may be stored before or after other rows."""
        for record in records:
            if isinstance(record, Turn):
                self._summary.turns += 1
            elif isinstance(record, Feedback):
                self._summary.feedback += 1
        self._unseen += len(records)
        self.flushed = self._unseen >= GROUP
        if self.flushed:
            self._unseen = 0
        if not records:
            return
        if not self._sorting and (size is None or self._taken < IN_ORDER):
            beginning = self._taken < IN_ORDER
            self._taken += len(records)
            self._group += _pieces(records, where, size or 0)
            self._grouped += len(records)
            self._grouped_bytes += size or 0
            if self._grouped >= GROUP or self._grouped_bytes >= GROUP_BYTES or (beginning and self._taken >= IN_ORDER):
                self._flush()
        else:
            self._gather(records, where, size or 0)

    def _gather(self, records: list[Record], where: str, size: int) -> None:
        """Into the window, for good. What waits in a group comes along: were it sent now, with this row counted but
        not in it, a kill would pass the row over."""
        self._sorting = True
        self._window += [*self._group, *_pieces(records, where, size)]
        self._held += self._grouped
        self._group, self._grouped, self._grouped_bytes = [], 0, 0
        self._held += len(records)
        self._bytes += size
        if self.flushed and self._ready:
            self._send(*self._ready.popleft())
        if self._held >= WINDOW or self._bytes >= WINDOW_BYTES:
            self._sort()

    def _sort(self) -> None:
        """The window that was gathered becomes groups, once those of the one before are on their way."""
        self._send_ready()
        self._window.sort(key=lambda row: row[0][0].id)  # stable: of two rows with one id the first one stays
        *others, last = _groups(self._window)
        self._ready.extend((group, None) for group in others)
        self._ready.append((last, self._counts()))
        self._window, self._held, self._bytes = [], 0, 0

    def _turn_over(self) -> None:
        """Everything that was gathered goes on its way."""
        if self._window:
            self._sort()
        self._send_ready()

    def _send_ready(self) -> None:
        while self._ready:
            self._send(*self._ready.popleft())

    def _flush(self) -> None:
        if self._group:
            *others, last = _groups(self._group)
            for group in others:
                self._send(group, None)
            self._send(last, self._counts())
        self._group, self._grouped, self._grouped_bytes = [], 0, 0

    def _counts(self) -> Counts:
        return copy.deepcopy(self._summary.to_dict()), self._refuse.sizes()[0]

    def _send(self, group: Rows, counts: Counts | None) -> None:
        done = self._store.submit([record for records, _, _ in group for record in records])
        self._writes.append(_Write(done, group, counts, sum(size for _, _, size in group)))
        while len(self._writes) > IN_FLIGHT or sum(write.size for write in self._writes) > IN_FLIGHT * GROUP_BYTES:
            self._settle(self._writes.popleft())

    def _settle(self, write: _Write) -> None:
        outcomes = write.done.result()
        done = self._summary
        done.stored += outcomes.count("stored")
        done.duplicates += outcomes.count("duplicate")
        done.forgotten += outcomes.count("forgotten")
        if "conflict" in outcomes:
            places = ((record, where) for records, where, _ in write.rows for record in records)
            for (record, where), outcome in zip(places, outcomes, strict=True):
                if outcome == "conflict" and isinstance(record, Episode) and record.source.startswith("import:"):
                    done.duplicates += 1  # each row of a trace begins its episode; the first one did
                elif outcome == "conflict":
                    done.conflicts += 1
                    self._refuse.conflict(record, where)
        if write.counts is not None:
            summary, rejects = write.counts
            settled = {
                name: getattr(done, name) for name in ("stored", "duplicates", "conflicts", "forgotten", "rejects")
            }
            last = write.rows[-1][0][-1]
            self._mark.note({**summary, **settled}, rejects, self._refuse.sizes()[1], last)


def _pieces(records: list[Record], where: str, size: int) -> Rows:
    """The records of a row, in pieces of about GROUP_BYTES: a long chat is larger than a commit may be."""
    step = max(1, len(records) // (1 + size // GROUP_BYTES))
    return [
        (records[start : start + step], where, size * step // len(records)) for start in range(0, len(records), step)
    ]


def _groups(rows: Rows) -> list[Rows]:
    """Rows as groups for one commit each; at least one."""
    groups: list[Rows] = [[]]
    number = size = 0
    for row in rows:
        if number >= GROUP or size >= GROUP_BYTES:
            groups.append([])
            number = size = 0
        groups[-1].append(row)
        number += len(row[0])
        size += row[2]
    return groups
