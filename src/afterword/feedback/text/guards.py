"""Excludes harmful lessons: correct refusals, words aimed at the trainer, one user's rules for everyone.

Owns the reading of such words; the tables are in `guards.toml`. Pure functions over text.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from functools import lru_cache
from importlib.resources import files
from typing import Any

from afterword.chat.refusals import does_not_comply, refuses
from afterword.feedback.text.patterns import KEY, alternatives, expanded

_DATA: dict[str, Any] = tomllib.loads(
    unicodedata.normalize("NFKC", files("afterword.feedback").joinpath("guards.toml").read_text(encoding="utf-8"))
)
"""The tables in the form in which `plain` gives a text."""
HEAD = 400
"""A refusal shows in the first characters of an answer."""
_UNSEEN = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]+"
)
"""Characters that show nothing and can part a word."""


def _any(name: str) -> re.Pattern[str]:
    """Entries that begin at a word share one test for it, so that most places of a text are passed over at once; tables
    without capitals are searched in lowered text, which takes half the time."""
    parts = _parts(name)
    at_word = "|".join(f"(?:{part[2:]})" for part in parts if part.startswith(r"\b"))
    anywhere = [f"(?:{part})" for part in parts if not part.startswith(r"\b")]
    whole = "|".join([rf"\b(?:{at_word})", *anywhere] if at_word else anywhere)
    return re.compile(whole, re.IGNORECASE if _has_capitals(whole) else 0)


def _parts(name: str) -> list[str]:
    return [part for entry in _DATA[name] for part in alternatives(entry)]


def _has_capitals(pattern: str) -> bool:
    return re.search(r"[A-Z]", re.sub(r"\\.", "", pattern)) is not None


_BEGINNING = re.compile(rf"[^\W\d_]{{{KEY}}}(?![?*{{])|[^\W\d_]{{1,{KEY - 1}}}(?=[ ',:](?![?*{{])|\\b|$)|[<\[]|\\[<\[]")
"""How an entry begins: the letters of its first word, or a sign that hardly any text has."""
_ANCHOR = re.compile(r"^(\^\\s\*|\\b)")
_APART = str.maketrans({chr(code): " " for code in range(128) if not re.match(r"\w", chr(code))})


@lru_cache(maxsize=2)
def _read(text: str) -> tuple[str, str, frozenset[str] | None]:
    """`text` as `plain` gives it, the same in small letters, and how its words begin (None for other than ASCII).
    Several tables are asked about the same words."""
    read = plain(text)
    low = read.lower()
    return read, low, frozenset([w[:KEY] for w in low.translate(_APART).split()]) if read.isascii() else None


class _Table:
    """A table of patterns. An ASCII text is searched only when one of its words begins as one of the patterns does, or
    when it has one of their signs: a bracket, or a word that may also stand inside of another ("Rohrbombe")."""

    def __init__(self, name: str) -> None:
        self.pattern = _any(name)
        self._low = not self.pattern.flags & re.IGNORECASE
        begins: set[str] = set()
        signs: set[str] = set()
        for part in _parts(name):
            bare = _ANCHOR.sub("", part)
            for one in expanded(bare):
                begin = _begins(one)
                if not begin.isascii():
                    continue
                if begin in ("<", "["):
                    signs.add(begin)
                elif bare != part:
                    begins.add(begin)
                else:
                    assert one.isalpha(), f"the pattern {one!r} begins anywhere and is no word: begin it with \\b"
                    signs.add(one.lower())
        self._begins, self._signs = frozenset(begins), tuple(signs)

    def search(self, text: str) -> bool:
        """Does any pattern occur in `text`, read as `plain` gives it?"""
        read, low, begins = _read(text)
        if begins is not None and self._begins.isdisjoint(begins) and not any([sign in low for sign in self._signs]):
            return False
        return self.pattern.search(low if self._low else read) is not None


def _begins(entry: str) -> str:
    found = _BEGINNING.match(entry)
    assert found or not entry[0].isascii(), f"the pattern {entry!r} has no fixed beginning"
    return found.group().removeprefix("\\").lower() if found else entry[0]


_RISK, _PUSH, _STANDING, _CUT = _Table("risk"), _Table("push"), _Table("standing"), _Table("cut")
_INJECTION, _AIMED = _Table("injection"), _Table("aimed")
_AXES: dict[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    name: (re.compile(low, re.IGNORECASE), re.compile(high, re.IGNORECASE))
    for name, (low, high) in _DATA["axes"].items()
}


def plain(text: str, unseen: str = "") -> str:
    """`text` as it is read: one form of each letter (NFKC), `unseen` for characters that do not show, straight
    apostrophes, single blanks. Linear in its length."""
    if not text.isascii():
        text = _UNSEEN.sub(unseen, unicodedata.normalize("NFKC", text)).replace("’", "'")
    return " ".join(text.split())


def is_right_refusal(request: str, answer: str, words: str) -> bool:
    """Does the answer decline what it should: a dangerous request that it does not clearly comply with, or one where
    the user's `words` push against the refusal itself?"""
    pushed = _PUSH.search(words)
    # What is short is searched first: nearly every answer has a sign, and hardly any user pushes or asks for risks.
    if not pushed and len(request) <= HEAD and not _RISK.search(request):
        return False
    head = plain(answer[:HEAD])
    if not does_not_comply(head):
        return False
    return _RISK.search(request) or (pushed and refuses(head))


def is_injection(words: str, *, said: bool = True) -> bool:
    """Are the words aimed at the trainer or at the template rather than at the answer? `said`: a user says them to the
    assistant; in an edit or a program's output only what speaks to a model counts."""
    if _INJECTION.search(words) or (said and _AIMED.search(words)):
        return True
    if words.isascii() or not _UNSEEN.search(words):
        return False
    apart = plain(words, " ")
    return bool(_INJECTION.pattern.search(apart) or (said and _AIMED.pattern.search(apart.lower())))


def is_standing(words: str) -> bool:
    """Do the words make a rule for the future ("from now on always ...")? Then they are that user's own."""
    return _STANDING.search(words)


def blames_the_cut(words: str) -> bool:
    """Do the words complain that the answer stops in the middle?"""
    return _CUT.search(words)


def directions(words: str) -> dict[str, int]:
    """Direction of the words on each axis of possible contradiction: name -> -1 or +1."""
    text = plain(words)
    found: dict[str, int] = {}
    for name, (low, high) in _AXES.items():
        down, up = low.search(text) is not None, high.search(text) is not None
        if down != up:
            found[name] = 1 if up else -1
    return found
