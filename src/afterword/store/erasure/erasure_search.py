"""Searches files for the words of a user to erase, and decides which rows of a file are theirs.

A needle is a run of plain characters, so that it reads the same in UTF-8, JSON, HTML and Python's notation. Never
changes a file.
"""

from __future__ import annotations

import itertools
import json
import mmap
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from afterword.records import Json

_PLAIN = re.compile(r"""[^"'\\<>&\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{12,}""")
PIECE = 32
"""Characters of a needle at most: what is quoted of a text in one piece of twice this length holds one of them."""
PIECES = 24
"""Needles of one text at most, from its beginning."""
ALONE = 40
"""A text of this length says whose line it is; of shorter ones two are needed."""
BUDGET = 60_000_000_000
"""Bytes times needles of one search; beyond it later pieces of the texts are left out, and the report says how many."""
_OWN = {"turns": ("messages", "answer"), "feedback": ("text", "final_text", "output", "metadata"),
        "interactions": ("hindsight",), "skips": ("detail",), "reviews": ("why",), "revisions": ("text",),
        "episodes": ("metadata",), "episode_ends": ("reason",), "skills": ("text",)}  # fmt: skip
"""Table -> fields with words in them."""
_NOT_THEIRS = ("system", "developer")


@dataclass(slots=True)
class Words:
    """Ids of rows, whole texts, and needles."""

    ids: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    user: str | None = None
    """The name itself: a row of a file that names them as its user is theirs."""

    def add(self, table: str, row: Json) -> None:
        """Take in a row that is held of the user."""
        self.ids.add(row["id"])
        for name in _OWN.get(table, ()):
            value = row.get(name)
            if name == "messages":  # the system message is the operator's, and the same for everybody
                value = [m for m in value or () if m.get("role") not in _NOT_THEIRS]
            self.texts.update(text for text in _strings(value) if len(text.strip()) >= 3)
        self.texts -= {"user", "assistant", "tool", "text", "function"}

    def needles(self) -> list[bytes]:
        """Byte strings to search for: pieces of the texts, so that a quotation of a part is found too; the first piece
        of every text before the second of any. Texts without 12 plain characters in a row have none. The ids of rows
        are nobody's words, although events quote them (`inference_id`): they stay in tombstones.
        """
        found: dict[bytes, None] = {}
        runs = [itertools.islice(pieces(text, self.ids), PIECES) for text in sorted(self.texts - self.ids)]
        for piece in itertools.chain.from_iterable(itertools.zip_longest(*runs)):
            if piece is not None:
                found[piece.encode("utf-8", "replace")] = None
                found[json.dumps(piece)[1:-1].encode()] = None
        return list(found)

    def match(self, value: Any) -> bool:
        """Is this row of a file theirs? By an id, by a text of `ALONE` characters, or by two shorter ones."""
        if self.user is not None and named(value, self.user):
            return True
        seen: set[str] = set()
        for text in _strings(value):
            if text in self.ids or (text in self.texts and len(text) >= ALONE):
                return True
            if text in self.texts:
                seen.add(text)
        return len(seen) >= 2


def pieces(text: str, without: Collection[str] = ()) -> Iterator[str]:
    """Runs of plain characters of a text, cut to `PIECE`; runs in `without` are left out."""
    for run in _PLAIN.findall(text[:10_000]):
        if run in without:
            continue
        starts = [*range(0, len(run) - PIECE + 1, PIECE), max(0, len(run) - PIECE)]
        for start in dict.fromkeys(starts):
            piece = run[start : start + PIECE].strip()
            if len(piece) >= 8:
                yield piece


def _strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value, also those in JSON that is kept as a text."""
    if isinstance(value, str):
        yield value
        if value[:1] in "[{" and len(value) > 1:
            try:
                yield from _strings(orjson.loads(value))
            except orjson.JSONDecodeError:
                return
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


_USER = frozenset({"user", "user_id", "userId", "hashed_ip"})
"""Fields by which rows of a file name their user."""


def named(value: Any, user: str) -> bool:
    """Does a JSON value say that it is of this user? Also where JSON is kept as a text."""
    if isinstance(value, str) and value[:1] in "[{" and len(value) > 1:
        try:
            return named(orjson.loads(value), user)
        except orjson.JSONDecodeError:
            return False
    if isinstance(value, dict):
        return any((key in _USER and inner == user) or named(inner, user) for key, inner in value.items())
    return isinstance(value, list) and any(named(inner, user) for inner in value)


def user_of(row: Any) -> str | None:
    """The user that a row of a file names, at its top level or one level below."""
    if not isinstance(row, dict):
        return None
    for part in (row, *row.values(), *(v[0] for v in row.values() if isinstance(v, list) and v)):
        for key in sorted(_USER & part.keys()) if isinstance(part, dict) else ():
            if isinstance(part[key], str | int) and part[key] != "":
                return str(part[key])
    return None


_EVERYWHERE = frozenset({"user", "users", "assistant", "system", "default", "none", "null", "true", "false", "text",
                         "content", "messages", "anonymous"})  # fmt: skip
"""Names that stand in every file of rows: nobody can be looked for by them."""


def name_pattern(user: str) -> re.Pattern[bytes] | None:
    """The name as a whole word in bytes; None when it is shorter than 4 characters or a word of every file."""
    if len(user) < 4 or user.lower() in _EVERYWHERE:
        return None
    forms = {user.encode("utf-8", "replace"), json.dumps(user)[1:-1].encode()}
    return re.compile(rb"(?<![A-Za-z0-9_])(?:" + b"|".join(map(re.escape, sorted(forms))) + rb")(?![A-Za-z0-9_])")


def rejects_of(directory: Path, user: str) -> Iterator[Json]:
    """The lines of `rejects/` of this user, by their content or by the name in them."""
    pattern = name_pattern(user)
    for file in files_below(directory / "rejects") if (directory / "rejects").is_dir() else ():
        if file.suffix != ".jsonl":
            continue
        with file.open("rb") as lines:
            for line in lines:
                try:
                    found = orjson.loads(line)
                except orjson.JSONDecodeError:  # damaged: its text still counts, and the others are read
                    found = {"line": line.decode("utf-8", "replace")}
                if (pattern is not None and pattern.search(line)) or named(found, user):
                    yield found


def files_below(folder: Path) -> list[Path]:
    """Every plain file below a folder, sorted."""
    return sorted(f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())


def thinned(needles: list[bytes], files: Iterable[Path]) -> list[bytes]:
    """The needles that one search can afford, from the front."""
    size = sum(f.stat().st_size for f in files if f.is_file())
    return needles[: max(16, BUDGET // max(1, size))]


def search(file: Path, needles: Iterable[bytes]) -> list[bytes]:
    """The needles that are in the file, as it lies on disk."""
    if not file.is_file() or file.stat().st_size == 0:
        return []
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [needle for needle in needles if data.find(needle) >= 0]
