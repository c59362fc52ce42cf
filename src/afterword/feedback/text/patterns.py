"""Searches tables of word patterns fast: only patterns with a first letter that occurs in the message are tried.

Owns how a list of regular expressions becomes a search; knows none of the words itself.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from afterword.chat.words import UNSPACED

KEY = 3
"""Letters of a word by which patterns are found."""

_FREE = re.compile(rf"[{UNSPACED}]")
_DIGITS = r"\d+"
_LITERAL = re.compile(r"[^\W\d_][\w'-]*")
_TOP = re.compile(r"\((?:\?:)?|\)|\||\\.|\[(?:\\.|[^\]\\])*\]")


Keys = frozenset[str]


def keys_of(words: Iterable[str]) -> Keys:
    """Keys of a message's words (lower case) for `Patterns.search`; "" for patterns without a fixed beginning."""
    return frozenset([word[:KEY] for word in words]) | {""}


class Patterns:
    """Any of many patterns. Latin and Cyrillic ones are matched between word boundaries, those that begin with ^ at
    the beginning, those of scripts without spaces anywhere."""

    def __init__(self, entries: Iterable[str]) -> None:
        begin: list[str] = []
        free: list[str] = []
        numbers: list[str] = []
        by_key: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            if entry.startswith("^"):
                begin.append(entry[1:])
            elif _FREE.search(entry):
                free.append(entry)
            else:
                for one in expanded(entry):
                    if one.startswith(_DIGITS):
                        numbers.append(one.removeprefix(_DIGITS))
                    else:
                        by_key[_key(one)].append(one)
        self._begin = _compiled(begin)
        self._free = _compiled(free)
        self._by_key = {key: _beginning(key, group) for key, group in by_key.items()}
        if numbers:
            self._by_key[""] = re.compile(rf"[0-9](?<![\w'][0-9])[0-9]*(?:{'|'.join(numbers)})(?![\w'])")
        self._keys = frozenset(self._by_key)

    def search(self, text: str, keys: Keys) -> bool:
        """Does any pattern occur in `text` (lowered)? `keys` are `keys_of` its words."""
        if self._begin is not None and self._begin.match(text):
            return True
        for key in self._keys & keys:
            if self._by_key[key].search(text):
                return True
        return self._free is not None and not text.isascii() and self._free.search(text) is not None


def alternatives(entry: str) -> list[str]:
    """The alternatives of a regular expression at its top level."""
    parts, depth, start = [], 0, 0
    for found in _TOP.finditer(entry):
        token = found.group()
        depth += token.startswith("(") - (token == ")")
        if token == "|" and depth == 0:
            parts.append(entry[start : found.start()])
            start = found.end()
    return [*parts, entry[start:]]


def _compiled(entries: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{e})" for e in entries)) if entries else None


def _beginning(key: str, entries: list[str]) -> re.Pattern[str]:
    """Patterns that all begin with `key`: written so that the engine looks for these letters first."""
    rest = "|".join(dict.fromkeys(entry[len(key) :] for entry in entries))
    return re.compile(rf"{key}(?<![\w']{key})(?:{rest})(?![\w'])")


def _key(entry: str) -> str:
    """The first letters of the word that the pattern begins with."""
    word, rest = _literal(entry)
    whole = rest == "" or rest[0] in " ,.;:$("
    assert len(word) >= KEY or (word and whole), f"the pattern {entry!r} has no fixed beginning"
    return word[:KEY]


def _literal(entry: str) -> tuple[str, str]:
    """The word that every match begins with, and what follows it in the pattern."""
    found = _LITERAL.match(entry)
    word = found.group() if found else ""
    if entry[len(word) :][:1] in {"?", "*", "{"}:
        word = word[:-1]
    return word, entry[len(word) :]


def expanded(entry: str) -> Iterator[str]:
    """`entry` with a group at (or near) its beginning written out: one pattern for each alternative. A group that may
    be repeated stays."""
    word, rest = _literal(entry)
    if not rest.startswith("(") or rest.startswith("(?") or len(word) >= KEY:
        yield entry
        return
    parts, end = _alternatives(rest)
    if rest[end : end + 1] in {"*", "+", "{"}:
        yield entry
        return
    rest = rest[end:]
    if rest[:1] == "?":
        rest = rest[1:]
        parts = [*parts, ""]
    for part in parts:
        whole = word + part + rest if word or part else rest.lstrip(" ")
        if whole:
            yield from expanded(whole)


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
