"""Where an import writes: groups of records, the file of rejected rows, and the mark up to which all is stored.

Owns the counts of an import, its commits and how it goes on after a kill. The mark is written after a commit, never
before it: a kill in between costs a group that is read again and found to be stored. Never parses a row.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson

from afterword.feedback.files import Bad
from afterword.records import RECORDS, Feedback, Json, Record, Turn
from afterword.store import Outcome, Store

GROUP = 1000
"""Records per commit, about."""
IN_FLIGHT = 3
"""Groups that wait for their commit while the file is read on; bounds the memory."""
IN_ORDER = 20_000
"""Records that are stored in the order of the file; so few touch no index that does not fit into memory."""
WINDOW = 100_000
"""Records that are put into the order of their ids before they are stored."""
WINDOW_BYTES = 1 << 27
"""Bytes of the rows that a window may hold; two windows and their objects bound the memory."""


@dataclass(slots=True)
class ImportSummary:
    """What became of a file."""

    file: str
    format: str = "auto"
    rows: int = 0
    """Rows that were read, the rejected ones included."""
    conversations: int = 0
    messages: int = 0
    turns: int = 0
    feedback: int = 0
    stored: int = 0
    """Records that are new in the store."""
    duplicates: int = 0
    """Records that were there already."""
    conflicts: int = 0
    """Records whose id was there with other content; the first one stays."""
    forgotten: int = 0
    """Records that were erased at their user's request; they stay erased."""
    without_request: int = 0
    """Answers that nobody asked for (a conversation that begins in the middle)."""
    mended: int = 0
    """Rows with broken Unicode, stored with replacement characters."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    rejects: str | None = None
    """The file with the rejected rows."""
    resumed_at: int = 0
    """Rows that an interrupted run had finished; they are counted above and were not read again."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All counts as JSON."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        plain["rejected"] = dict(sorted(self.rejected.items()))
        return plain


def state_file(store: Store, path: Path) -> Path:
    """Where an import of `path` keeps its mark."""
    digest = hashlib.blake2b(str(path.resolve()).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return store.path.parent / "imports" / f"{digest}.json"


@dataclass(slots=True)
class Mark:
    """How far an import of this very file came in this very database."""

    file: Path
    source: list[Any]
    rows: int = 0
    """Rows whose records are all stored."""
    gathered: bool = False
    """Rows are counted by conversation."""
    rejects: int = 0
    """Bytes of the rejects file that belong to those rows."""
    summary: ImportSummary | None = None

    @classmethod
    def of(cls, file: Path, path: Path, format: str, store: Store) -> Mark:
        """The mark of an interrupted import, if the file is unchanged and its last record is in the store."""
        stat = path.stat()
        fresh = cls(file, [stat.st_size, stat.st_mtime_ns, format])
        try:
            data = orjson.loads(file.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return fresh
        kind = next((k for k in RECORDS if data.get("table") == k.TABLE), None)
        if data.get("source") != fresh.source or kind is None or store.find(kind, data["last"]) is None:
            return fresh
        counts = {**data["summary"], "rejected": Counter(data["summary"]["rejected"])}
        fresh.summary = ImportSummary(**counts)
        fresh.rows, fresh.rejects, fresh.gathered = data["rows"], data["rejects"], data["gathered"]
        return fresh

    def note(self, summary: Json, rejects: int, last: Record) -> None:
        """Everything up to here is stored. Losing this note in a crash only costs time, so it is not synced."""
        self.rows = summary["rows"]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        data = {"source": self.source, "rows": self.rows, "gathered": self.gathered, "rejects": rejects,
                "table": last.TABLE, "last": last.id, "summary": summary}  # fmt: skip
        work = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        work.write_bytes(orjson.dumps(data))
        work.replace(self.file)

    def finish(self) -> None:
        """The import came to its end: another run begins anew."""
        self.file.unlink(missing_ok=True)


ROW_KEPT = 1 << 20
"""Characters of a rejected row that are kept, so that it can be mended and imported; a longer one is marked `cut`."""


def rejects_file(store: Store, path: Path, name: str) -> Path:
    """Where the rejected rows of `path` go: `rejects/NAME.jsonl`, with a digest of the path when rows of another file
    lie there."""
    plain = store.path.parent / "rejects" / f"{name}.jsonl"
    other = plain.with_name(f"{path.name}.{state_file(store, path).stem[:8]}.jsonl")
    if other.is_file() or (plain.is_file() and _written_for(plain) != str(path.resolve())):
        return other
    return plain


def _written_for(file: Path) -> str | None:
    """The file whose rows these are."""
    with file.open("rb") as lines:
        try:
            found = orjson.loads(lines.readline()).get("file")
        except orjson.JSONDecodeError:
            return None
    return found if isinstance(found, str) else None


class Rejects:
    """The file of rejected rows: written anew by each import, and only when there are any."""

    def __init__(self, path: Path, summary: ImportSummary, mark: Mark, store: Store) -> None:
        self._path, self._summary, self._kept = path, summary, mark.rejects
        self._store, self._of = store, str(Path(summary.file).resolve())
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self._kept and self._path.is_file():
            self._file = self._path.open("r+b")
            self._file.truncate(self._kept)
            self._file.seek(self._kept)
        else:
            self._path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def flush(self) -> int:
        """Write what is buffered; the size of the file."""
        if self._file is None:
            return 0
        self._file.flush()
        return self._file.tell()

    def __call__(self, bad: Bad) -> None:
        """Count a bad row and write it down."""
        self._summary.rejected[bad.reason] += 1
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
            self._summary.rejects = str(self._path)
        detail, row = self._store.without_private(bad.detail)[0], self._without_private(bad.text)
        shown = {"where": bad.where, "reason": bad.reason, "detail": detail, "row": row[:ROW_KEPT], "file": self._of}
        if bad.user is not None:
            shown["user"] = bad.user
        plain: Json = {k: v.encode("utf-8", "replace").decode() for k, v in shown.items()}
        if len(row) > ROW_KEPT:
            plain["cut"] = True
        self._file.write(orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE))

    def _without_private(self, text: str) -> str:
        """A row as its file may keep it; JSON stays JSON."""
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return self._store.without_private(text)[0]
        clean = self._store.without_private("", value)[1]
        return text if clean == value else orjson.dumps(clean).decode()


Counts = tuple[Json, int]
"""What a mark needs besides its record: the summary, and the size of the rejects file."""


@dataclass(slots=True)
class _Write:
    """A group on its way; with what the counts were when all before its end had been read, if it ends a stretch."""

    done: Future[list[Outcome]]
    last: Record
    counts: Counts | None


class Sink:
    """Records on their way to the store, in groups of about GROUP, at most IN_FLIGHT of them unwritten.

    The beginning of a file is written in its order. Behind it, rows that may be moved are gathered in windows, and a
    window is written in the order of its ids. Ids are hashes: in the order of the file each row would touch a page of
    its own in every index, in the order of ids a group touches few. A window is written while the next one is read.
    """

    def __init__(self, store: Store, summary: ImportSummary, mark: Mark, refuse: Rejects) -> None:
        self._store, self._summary, self._mark, self._refuse = store, summary, mark, refuse
        self._group: list[Record] = []
        self._window: list[list[Record]] = []
        self._ready: deque[tuple[list[Record], Counts | None]] = deque()
        self._writes: deque[_Write] = deque()
        self._taken = self._unseen = self._held = self._bytes = 0
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

    def add(self, records: list[Record], size: int | None = None) -> None:
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
        if size is None or self._taken < IN_ORDER:
            self._taken += len(records)
            self._turn_over()
            self._group += records
            if len(self._group) >= GROUP:
                self._flush()
        elif records:
            self._gather(records, size)

    def _gather(self, records: list[Record], size: int) -> None:
        self._flush()
        self._window.append(records)
        self._held += len(records)
        self._bytes += size
        if self.flushed and self._ready:
            self._send(*self._ready.popleft())
        if self._held >= WINDOW or self._bytes >= WINDOW_BYTES:
            self._sort()

    def _sort(self) -> None:
        """The window that was gathered becomes groups, once those of the one before are on their way."""
        self._send_ready()
        self._window.sort(key=lambda records: records[0].id)  # stable: of two rows with one id the first one stays
        group: list[Record] = []
        for records in self._window:
            group += records
            if len(group) >= GROUP:
                self._ready.append((group, None))
                group = []
        last = group or self._ready.pop()[0]
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
            self._send(self._group, self._counts())
            self._group = []

    def _counts(self) -> Counts:
        return copy.deepcopy(self._summary.to_dict()), self._refuse.flush()

    def _send(self, group: list[Record], counts: Counts | None) -> None:
        self._writes.append(_Write(self._store.submit(group), group[-1], counts))
        while len(self._writes) > IN_FLIGHT:
            self._settle(self._writes.popleft())

    def _settle(self, write: _Write) -> None:
        outcomes = write.done.result()
        done = self._summary
        done.stored += outcomes.count("stored")
        done.duplicates += outcomes.count("duplicate")
        done.conflicts += outcomes.count("conflict")
        done.forgotten += outcomes.count("forgotten")
        if write.counts is not None:
            summary, rejects = write.counts
            settled = {name: getattr(done, name) for name in ("stored", "duplicates", "conflicts", "forgotten")}
            self._mark.note({**summary, **settled}, rejects, write.last)
