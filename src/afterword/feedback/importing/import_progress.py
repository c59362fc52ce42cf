"""Records the progress of an import: its counts, and the row up to which everything is stored.

Written after a commit, never before it: after a kill in between, one group is read again and is a duplicate.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from afterword.records import Json, Record
from afterword.store import Store
from afterword.store.codec import BY_TABLE
from afterword.store.files import write_whole


@dataclass(slots=True)
class ImportSummary:
    """Result of importing a file."""

    file: str
    format: str = "auto"
    encoding: str = "utf-8"
    """Of its text, named or found."""
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
    left_out: Counter[str] = field(default_factory=Counter)
    """Parts of rows that came in without them (hidden messages, pictures, thoughts), by reason."""
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
        for name in ("left_out", "rejected"):
            plain[name] = dict(sorted(plain[name].items()))
        return plain


def state_file(store: Store, path: Path) -> Path:
    """Where an import of `path` keeps its mark."""
    digest = hashlib.blake2b(str(path.resolve()).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return store.path.parent / "imports" / f"{digest}.json"


@dataclass(slots=True)
class ImportProgress:
    """How far an import of this very file came in this very database."""

    file: Path
    source: list[Any]
    rows: int = 0
    """Rows whose records are all stored."""
    gathered: bool = False
    """Rows are counted by conversation."""
    rejects: int = 0
    """Bytes of the rejects file that belong to those rows."""
    conflicts: int = 0
    """Bytes of the file of conflicts that do."""
    summary: ImportSummary | None = None

    @classmethod
    def of(cls, file: Path, path: Path, format: str, store: Store) -> ImportProgress:
        """The mark of an interrupted import, if the file is unchanged and its last record is in the store."""
        stat = path.stat()
        fresh = cls(file, [stat.st_size, stat.st_mtime_ns, format])
        try:
            data = orjson.loads(file.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return fresh
        kind = BY_TABLE.get(data.get("table"))
        if data.get("source") != fresh.source or kind is None or store.find(kind, data["last"]) is None:
            return fresh
        counts = {**data["summary"], **{n: Counter(data["summary"].get(n)) for n in ("left_out", "rejected")}}
        fresh.summary = ImportSummary(**counts)
        fresh.rows, fresh.rejects, fresh.gathered = data["rows"], data["rejects"], data["gathered"]
        fresh.conflicts = data.get("conflicts", 0)
        return fresh

    def note(self, summary: Json, rejects: int, conflicts: int, last: Record) -> None:
        """Everything up to here is stored. Losing this note in a crash only costs time, so it is not synced."""
        self.rows = summary["rows"]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        data = {"source": self.source, "rows": self.rows, "gathered": self.gathered, "rejects": rejects,
                "conflicts": conflicts, "table": last.TABLE, "last": last.id, "summary": summary}  # fmt: skip
        write_whole(self.file, orjson.dumps(data), durable=False)

    def finish(self) -> None:
        """The import came to its end: another run begins anew."""
        self.file.unlink(missing_ok=True)
