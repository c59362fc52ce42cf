"""Detects answers that decline, in the languages of `refusals.toml`.

Pure functions over the start of an answer; never reads the request.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from importlib.resources import files

_DATA: dict[str, list[str]] = tomllib.loads(
    unicodedata.normalize("NFKC", files("afterword.chat").joinpath("refusals.toml").read_text(encoding="utf-8"))
)
OPENING = 240
"""Characters of an answer in which a refusal stands."""
_SIGNS = tuple(_DATA["refusal_signs"])
_REFUSAL = re.compile("|".join(f"(?:{entry})" for entry in _DATA["refusal"]))
_NO = re.compile("|".join(f"(?:{entry})" for entry in _DATA["no"]))
_DECLINED = re.compile("|".join(f"(?:{entry})" for entry in _DATA["declined"]))


def refuses(head: str) -> bool:
    """True when `head`, the start of an answer, declines explicitly."""
    head = _read(head)
    return any(sign in head for sign in _SIGNS) and _REFUSAL.search(head) is not None


def does_not_comply(head: str) -> bool:
    """True when `head` declines explicitly, or starts as an answer to a dangerous request does that does not comply."""
    head = _read(head)
    return (any(sign in head for sign in _SIGNS) and _declined(head)) or _NO.search(head) is not None


def declines(answer: str) -> bool:
    """True when an answer declines, or only apologises, in its first OPENING characters."""
    head = _read(answer[:OPENING])
    return any(sign in head for sign in _SIGNS) and _declined(head)


def _declined(head: str) -> bool:
    return (_REFUSAL.search(head) or _DECLINED.search(head)) is not None


def _read(head: str) -> str:
    head = head.lower().replace("\u2019", "'")
    return head if head.isascii() else unicodedata.normalize("NFKC", head)
