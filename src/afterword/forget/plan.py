"""Plans one erasure and keeps the plan in `forget/ID.pending` until it is done: user, rows, words, files.

The plan holds the words to erase: only its owner may read it, and the last step deletes it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from afterword.records import new_id
from afterword.store.erasure.erasure_search import Words
from afterword.store.files import write_whole


@dataclass(slots=True, kw_only=True)
class ErasurePlan:
    """One erasure."""

    file: Path
    erasure: str
    user: str
    started: float
    ids: list[str] = field(default_factory=list)
    """Rows that are the user's or were made of them."""
    texts: list[str] = field(default_factory=list)
    """Their words, and the answers to them."""
    exports: list[str] = field(default_factory=list)
    """Files that `export --user` wrote for this user."""
    files: dict[str, str] = field(default_factory=dict)
    """File -> what was done with it."""

    @classmethod
    def new(cls, directory: Path, user: str) -> ErasurePlan:
        """A fresh plan; nothing is written yet."""
        erasure = new_id("era")
        return cls(file=directory / "forget" / f"{erasure}.pending", erasure=erasure, user=user, started=time.time())

    def words(self) -> Words:
        """Texts to search for in files."""
        return Words(set(self.ids), set(self.texts), self.user)

    def keep(self) -> None:
        """Put it on disk, whole."""
        data = {name: getattr(self, name) for name in self.__slots__ if name != "file"}
        write_whole(self.file, orjson.dumps(data), private=True)

    def did(self, file: Path, what: str) -> None:
        """Record a change of a file, before it happens."""
        self.files[str(file)] = what
        self.keep()


def unfinished(directory: Path, user: str) -> ErasurePlan | None:
    """The plan of an erasure of this user that was started and not finished."""
    for file in sorted((directory / "forget").glob("*.pending")):
        data = orjson.loads(file.read_bytes())
        if data["user"] == user:
            return ErasurePlan(file=file, **data)
    return None
