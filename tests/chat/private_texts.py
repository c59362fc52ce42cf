"""Texts with and without private data, and how much of it redaction finds.

`data/private_texts.txt` and `data/clean_texts.txt` hold one text a line, its language before "|"; `\\n` is a line end,
«kind» a made-up value (`private_values.py`). Those at even places are for developing rules, the others for reporting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from afterword.chat.redact import redact
from tests.chat.private_values import Values

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Text:
    """A text, its language or format, and the private values in it."""

    language: str
    text: str
    private: tuple[str, ...] = ()


def texts(name: str, seed: int = 0) -> list[Text]:
    """The texts of a file with values of that seed."""
    values = Values(seed)
    return [_text(line, values) for line in (DATA / name).read_text(encoding="utf-8").splitlines() if line]


def _text(line: str, values: Values) -> Text:
    language, _, template = line.partition("| ")
    private: list[str] = []

    def made(found: re.Match[str]) -> str:
        value = values.make(found[1])
        private.append(value)
        return value

    # A backslash that is written twice stands for itself: JSON has its own escapes.
    plain = re.sub(r"\\(\\|n)", lambda m: "\n" if m[1] == "n" else "\\", template)
    return Text(language, re.sub(r"«([\w.]+)»", made, plain), tuple(private))


def half(rows: list[Text], report: bool) -> list[Text]:
    """The half to develop with, or the other."""
    return rows[report::2]


def missed(row: Text) -> list[str]:
    """The private values of which more than a part of punctuation is left."""
    left = redact(row.text).text
    return [value for value in row.private if value in left or _half_left(value, left)]


def _half_left(value: str, left: str) -> bool:
    size = max(6, len(value) // 2)
    return any(value[n : n + size] in left for n in range(len(value) - size + 1))


def spoiled(row: Text) -> bool:
    """Was anything taken out of a text in which nothing is private?"""
    return redact(row.text).text != row.text
