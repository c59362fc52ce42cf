"""Tables of word patterns that are searched fast: only those are tried whose first letters occur in the message.

Owns how a list of regular expressions becomes a search; knows none of the words itself.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set

KEY = 3
"""Letters of a word by which patterns are found."""

_FREE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_LITERAL = re.compile(r"[^\W\d_][\w'-]*")
_TOP = re.compile(r"\((?:\?:)?|\)|\||\\.|\[(?:\\.|[^\]\\])*\]")


def keys_of(words: Iterable[str]) -> Set[str]:
    """What `Patterns.search` needs to know of a message's words (lowered)."""
    return {word[:KEY] for word in words}


class Patterns:
    """Any of many patterns. Latin and Cyrillic ones are matched between word boundaries, those that begin with ^ at
    the beginning, Chinese and Japanese ones anywhere."""

    def __init__(self, entries: Iterable[str]) -> None:
        begin, free, always = [], [], []
        by_key: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            if entry.startswith("^"):
                begin.append(entry[1:])
            elif _FREE.search(entry):
                free.append(entry)
            else:
                for one in _expanded(entry):
                    key = _key(one)
                    (always if key is None else by_key[key]).append(one)
        self._begin = _compiled(begin)
        self._free = _compiled(free)
        self._by_key = {key: _bounded(group) for key, group in by_key.items()}
        if always:
            self._by_key[""] = _bounded(always)
        self._keys = frozenset(self._by_key)

    def search(self, text: str, keys: Set[str]) -> bool:
        """Does any pattern occur in `text` (lowered)? `keys` are `keys_of` its words, with "" to try all that have
        no fixed beginning."""
        if self._begin is not None and self._begin.match(text):
            return True
        if any(self._by_key[key].search(text) for key in self._keys & keys):
            return True
        return self._free is not None and self._free.search(text) is not None


def _compiled(entries: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{e})" for e in entries)) if entries else None


def _bounded(entries: list[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w'])(?:{'|'.join(entries)})(?![\w'])")


def _key(entry: str) -> str | None:
    """The first letters of every word that the pattern can begin with, None when they are not fixed."""
    found = _LITERAL.match(entry)
    if found is None:
        return None
    word, rest = found.group(), entry[found.end() :]
    if rest[:1] in {"?", "*", "{"}:
        word = word[:-1]
    whole = rest == "" or rest[0] in " ,.;:"
    if len(word) >= KEY:
        return word[:KEY]
    return word if whole and word else None


def _expanded(entry: str) -> Iterator[str]:
    """`entry` without a group at its beginning: one pattern for each alternative."""
    if not entry.startswith("("):
        yield entry
        return
    parts, end = _alternatives(entry)
    rest = entry[end:]
    if rest[:1] in {"*", "+", "{"}:
        yield entry
        return
    if rest[:1] == "?":
        rest = rest[1:]
        parts = [*parts, ""]
    for part in parts:
        whole = (part + rest).lstrip(" ") if part == "" else part + rest
        if whole:
            yield from _expanded(whole)


def _alternatives(entry: str) -> tuple[list[str], int]:
    """The alternatives of the group at the beginning, and where it ends."""
    depth, start, parts = 0, 0, []
    for found in _TOP.finditer(entry):
        token = found.group()
        if token.startswith("("):
            depth += 1
            if depth == 1:
                start = found.end()
        elif token == "|" and depth == 1:
            parts.append(entry[start : found.start()])
            start = found.end()
        elif token == ")":
            depth -= 1
            if depth == 0:
                return [*parts, entry[start : found.start()]], found.end()
    raise AssertionError(f"unbalanced group in {entry!r}")
