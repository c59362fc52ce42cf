"""What must not be taught although a user said so: refusals that were right, words aimed at the trainer, rules that
one person makes for everyone.

Owns the reading of such words; the tables are in `guards.toml`. Pure functions over text.
"""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files

_DATA: dict[str, list[str]] = tomllib.loads(
    files("afterword.feedback").joinpath("guards.toml").read_text(encoding="utf-8")
)
HEAD = 400
"""A refusal shows in the first characters of an answer."""
WINDOW = 2000
"""Characters of request and hindsight that are looked at."""


def _any(name: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{entry})" for entry in _DATA[name]), re.IGNORECASE)


_REFUSAL_SIGNS = tuple(_DATA["refusal_signs"])
_REFUSAL, _RISK, _PUSH = _any("refusal"), _any("risk"), _any("push")
_INJECTION, _STANDING, _CUT = _any("injection"), _any("standing"), _any("cut")
_AXES: dict[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    name: (re.compile(low, re.IGNORECASE), re.compile(high, re.IGNORECASE))
    for name, (low, high) in tomllib.loads(
        files("afterword.feedback").joinpath("guards.toml").read_text(encoding="utf-8")
    )["axes"].items()
}


def is_refusal(answer: str) -> bool:
    """Does the answer decline?"""
    head = answer[:HEAD].lower().replace("’", "'")
    return any(sign in head for sign in _REFUSAL_SIGNS) and _REFUSAL.search(head) is not None


def refusal_was_right(request: str, words: str) -> bool:
    """Was there something to decline: a dangerous request, or a user who pushes against the refusal itself?"""
    return _RISK.search(request[:WINDOW]) is not None or _PUSH.search(words[:WINDOW]) is not None


def is_injection(words: str) -> bool:
    """Are the words aimed at the trainer or at the template rather than at the answer?"""
    return _INJECTION.search(words[:WINDOW]) is not None


def is_standing(words: str) -> bool:
    """Do the words make a rule for the future ("from now on always ...")? Then they are that user's own."""
    return _STANDING.search(words[:WINDOW]) is not None


def blames_the_cut(words: str) -> bool:
    """Do the words complain that the answer stops in the middle?"""
    return _CUT.search(words[:WINDOW]) is not None


def directions(words: str) -> dict[str, int]:
    """What the words want on each axis on which users can contradict each other: name -> -1 or +1."""
    text = words[:WINDOW]
    found: dict[str, int] = {}
    for name, (low, high) in _AXES.items():
        down, up = low.search(text) is not None, high.search(text) is not None
        if down != up:
            found[name] = 1 if up else -1
    return found
