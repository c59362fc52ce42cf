"""Writes invalid rows and conflicting records of an import to `rejects/`, with place and reason.

Conflicts are known only after the commit: they go to a file of their own, which is appended at the end. Rows of erased
users are counted without their content. Never decides what is invalid.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import orjson

from afterword.feedback.importing.files import InvalidRow
from afterword.feedback.importing.import_progress import ImportProgress, ImportSummary, state_file
from afterword.formats.parsing import shown
from afterword.records import Json, Record
from afterword.store import Store
from afterword.store.erasure.erase import user_hash

ROW_KEPT = 1 << 20
"""Characters of a rejected row that are kept, so that it can be mended and imported; a longer one is marked `cut`."""


_VALUES = re.compile(r'"([^"]{1,200})"|\b(\d{1,30})\b')
"""Texts and whole numbers in a row of JSON, also in one that is cut off."""


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

    def __init__(self, path: Path, summary: ImportSummary, mark: ImportProgress, store: Store) -> None:
        self._summary, self._store, self._of = summary, store, str(Path(summary.file).resolve())
        self._erased = [(salt, digest) for _, _, salt, digest in store.erasures()]
        self._rows = _Lines(path, mark.rejects)
        self._conflicts = _Lines(path.with_name(f"{path.stem}.conflicts.jsonl"), mark.conflicts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._conflicts.close()
        if kind is None and self._conflicts.path.is_file():
            self._rows.append(self._conflicts.path)
        self._rows.close()

    def finish(self) -> None:
        """The mark is gone: the conflicts stand behind the rejected rows, and nowhere else."""
        self._conflicts.path.unlink(missing_ok=True)

    def sizes(self) -> tuple[int, int]:
        """Bytes of both files after flushing."""
        return self._rows.flush(), self._conflicts.flush()

    def __call__(self, bad: InvalidRow) -> None:
        """Count a bad row and write it down."""
        self._summary.rejected[bad.reason] += 1
        self._write(self._rows, bad)

    def conflict(self, record: Record, where: str) -> None:
        """Write down a record whose id is stored with other content; in our own form, so that it can be compared."""
        known, record = self._store.find(type(record), record.id), self._store.as_stored(record)
        names = [f.name for f in fields(record) if f.name != "created_at"]
        other = ", ".join(f"`{n}`" for n in names if known is None or getattr(known, n) != getattr(record, n))
        detail = f"the {record.TABLE} row {record.id} is stored with another {other}; the one that was first stays"
        row = shown({"record": record.TABLE, **record.to_dict()}, 2 * ROW_KEPT)
        self._write(self._conflicts, InvalidRow("conflict", detail, where, row, getattr(record, "user", None)))

    def _write(self, lines: _Lines, bad: InvalidRow) -> None:
        self._summary.rejects = str(self._rows.path)
        if self._names_an_erased_user(bad):
            bad = InvalidRow(
                bad.reason, "the row names a user who was erased, so its content is not kept", bad.where, "{}"
            )
        detail, row = self._store.without_private(bad.detail)[0], self._without_private(bad.text)
        line = {"where": bad.where, "reason": bad.reason, "detail": detail, "row": row[:ROW_KEPT], "file": self._of}
        if bad.user is not None:
            line["user"] = bad.user
        plain: Json = {k: v.encode("utf-8", "replace").decode() for k, v in line.items()}
        if len(row) > ROW_KEPT:
            plain["cut"] = True
        lines.write(orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE))

    def _names_an_erased_user(self, bad: InvalidRow) -> bool:
        """Is a value in the row the name of a user who was erased? Only salted hashes of their names are known."""
        if not self._erased:
            return False
        names = {bad.user} if bad.user is not None else set[str]()
        names.update(name for pair in _VALUES.findall(bad.text.replace("\\", "")) for name in pair if name)
        return any(user_hash(name, salt) == digest for name in names for salt, digest in self._erased)

    def _without_private(self, text: str) -> str:
        """A row as its file may keep it; JSON stays JSON."""
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return self._store.without_private(text)[0]
        clean = self._store.without_private("", value)[1]
        return text if clean == value else orjson.dumps(clean).decode()


class _Lines:
    """A file that goes on behind its first `kept` bytes, or is made with the first line."""

    def __init__(self, path: Path, kept: int) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        if kept and path.is_file():
            self._file = path.open("r+b")
            self._file.truncate(kept)
            self._file.seek(kept)
        else:
            path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        self._open().write(data)

    def append(self, other: Path) -> None:
        with other.open("rb") as lines:
            shutil.copyfileobj(lines, self._open())

    def _open(self) -> BinaryIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb")
        return self._file

    def flush(self) -> int:
        if self._file is None:
            return 0
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
