"""Folds text for pattern matching: ASCII digits, signs and spaces, no invisible characters, escapes decoded.

Keeps the way back to the original's characters. Decodes escapes of JSON, URLs and HTML. Pure; knows no pattern.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

Span = tuple[int, int]

_HIDDEN = "\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_SPECIAL = re.compile(
    rf"(?<!\\)\\++(?:u(?P<code>[0-9a-fA-F]{{4}})|(?P<letter>[nrtbf])|(?P<sign>[\"'/]))"
    rf"|%(?P<percent>40|2[BbFf]|3[AaDd])|&(?:#(?P<entity>64|43)|(?P<name>commat|amp|quot));|(?P<hidden>[{_HIDDEN}])"
)
_NAMES = {"commat": "@", "amp": "&", "quot": '"'}


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded text. `starts` and `ends` map its characters to the original; None when both are equal."""

    text: str
    starts: list[int] | None = None
    ends: list[int] | None = None

    def original(self, start: int, end: int) -> Span:
        """Maps the characters [start, end) of `text` to a span of the original."""
        if self.starts is None or self.ends is None or start >= end:
            return start, end
        return self.starts[start], self.ends[end - 1]


def fold(text: str) -> Folded:
    """Folds a text; see the module."""
    plain = text if text.isascii() else text.translate(_table())
    if not _SPECIAL.search(plain):
        return Folded(plain)
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    for found in _SPECIAL.finditer(plain):
        begin, end = found.span()
        parts.append(plain[done:begin])
        starts.extend(range(done, begin))
        ends.extend(range(done + 1, begin + 1))
        written = _written(found)
        parts.append(written)
        starts.extend([begin] * len(written))
        ends.extend([end] * len(written))
        done = end
    parts.append(plain[done:])
    starts.extend(range(done, len(plain)))
    ends.extend(range(done + 1, len(plain) + 1))
    return Folded("".join(parts), starts, ends)


def _written(found: re.Match[str]) -> str:
    """The character that an escape stands for; nothing for one that does not show."""
    kind = found.lastgroup
    if kind == "hidden" or kind is None:
        return ""
    what = found[kind]
    if kind == "letter":
        return "\n" if what in "nr" else " "
    if kind == "sign":
        return what
    if kind == "name":
        return _NAMES[what]
    code = int(what, 10 if kind == "entity" else 16)
    return chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd"


@cache
def _table() -> dict[int, str]:
    """One character for one: digits of all scripts, full-width forms, dashes and spaces."""
    table = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    for code in range(0x80, sys.maxunicode + 1):
        one = chr(code)
        category = unicodedata.category(one)
        if category == "Nd":
            table.setdefault(code, str(unicodedata.digit(one)))
        elif category == "Zs":
            table[code] = " "
        elif category == "Pd":
            table.setdefault(code, "-")
    return table | {0x2212: "-", 0xFE6B: "@", 0x2028: "\n", 0x2029: "\n", 0x85: "\n", 0xFE52: ".", 0x2024: "."}
