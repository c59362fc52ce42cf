"""Answers and scores by content: what was once computed from the same inputs is read back.

Owns one append-only file of JSON lines per kind of result. The key is a hash over everything that decides the
value (weights, adapter bytes, prompt ids, sampling), so an entry is never stale. A line that was cut off by a kill
is left out when the file is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from afterword.records import content_hash


class Cache:
    """Get and put by content key; `folder` None keeps nothing beyond the process."""

    def __init__(self, folder: Path | None, kind: str) -> None:
        self._file = None if folder is None else folder / f"{kind}.jsonl"
        self._known: dict[str, Any] = {}
        if self._file is not None and self._file.is_file():
            for line in self._file.read_bytes().split(b"\n"):
                self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            key, value = orjson.loads(line)
        except (orjson.JSONDecodeError, ValueError, TypeError):
            return
        self._known[key] = value

    @staticmethod
    def key(*parts: Any) -> str:
        """Hash of everything that decides a value."""
        return content_hash(*parts)

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._known.get(key)

    def put(self, entries: dict[str, Any]) -> None:
        """Remember values; one write, which begins on a line of its own whatever stood there before."""
        self._known.update(entries)
        if self._file is not None and entries:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as stream:
                stream.write(b"\n" + b"\n".join(orjson.dumps([k, v]) for k, v in entries.items()) + b"\n")
