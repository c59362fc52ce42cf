"""What must not be taught although a user said so: refusals that were right, words aimed at the trainer, rules that
one person makes for everyone.

Owns the reading of such words; the tables are in `guards.toml`. Pure functions over text.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from importlib.resources import files

from afterword.feedback.patterns import alternatives

_DATA: dict[str, list[str]] = tomllib.loads(
    files("afterword.feedback").joinpath("guards.toml").read_text(encoding="utf-8")
)
HEAD = 400
"""A refusal shows in the first characters of an answer."""
_UNSEEN = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]+"
)
"""Characters that show nothing and can part a word."""


def _any(name: str) -> re.Pattern[str]:
    """Entries that begin at a word share one test for it, so that most places of a text are passed over at once; tables
    without capitals are searched in lowered text, which takes half the time."""
    parts = [part for entry in _DATA[name] for part in alternatives(entry)]
    at_word = "|".join(f"(?:{part[2:]})" for part in parts if part.startswith(r"\b"))
    anywhere = [f"(?:{part})" for part in parts if not part.startswith(r"\b")]
    whole = "|".join([rf"\b(?:{at_word})", *anywhere] if at_word else anywhere)
    capitals = re.search(r"[A-Z]", re.sub(r"\\.", "", whole)) is not None
    return re.compile(whole, re.IGNORECASE if capitals else 0)


_REFUSAL_SIGNS = tuple(_DATA["refusal_signs"])
_REFUSAL, _DECLINED, _RISK, _PUSH = _any("refusal"), _any("declined"), _any("risk"), _any("push")
_INJECTION, _AIMED, _STANDING, _CUT = _any("injection"), _any("aimed"), _any("standing"), _any("cut")
_AXES: dict[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    name: (re.compile(low, re.IGNORECASE), re.compile(high, re.IGNORECASE))
    for name, (low, high) in tomllib.loads(
        files("afterword.feedback").joinpath("guards.toml").read_text(encoding="utf-8")
    )["axes"].items()
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
    pushed = _PUSH.search(plain(words)) is not None
    # What is short is searched first: nearly every answer has a sign, and hardly any user pushes or asks for risks.
    if not pushed and len(request) <= HEAD and not _risky(request):
        return False
    head = plain(answer[:HEAD]).lower()
    if not any(sign in head for sign in _REFUSAL_SIGNS):
        return False
    if _REFUSAL.search(head) is not None:
        return pushed or _risky(request)
    return _DECLINED.search(head) is not None and _risky(request)


def _risky(request: str) -> bool:
    return _RISK.search(plain(request).lower()) is not None


def is_injection(words: str, *, said: bool = True) -> bool:
    """Are the words aimed at the trainer or at the template rather than at the answer? `said`: a user says them to the
    assistant; in an edit or a program's output only what speaks to a model counts."""
    read = [plain(words)]
    if _UNSEEN.search(words):
        read.append(plain(words, " "))
    return any(_INJECTION.search(text) or (said and _AIMED.search(text.lower())) for text in read)


def is_standing(words: str) -> bool:
    """Do the words make a rule for the future ("from now on always ...")? Then they are that user's own."""
    return _STANDING.search(plain(words).lower()) is not None


def blames_the_cut(words: str) -> bool:
    """Do the words complain that the answer stops in the middle?"""
    return _CUT.search(plain(words).lower()) is not None


def directions(words: str) -> dict[str, int]:
    """What the words want on each axis on which users can contradict each other: name -> -1 or +1."""
    text = plain(words)
    found: dict[str, int] = {}
    for name, (low, high) in _AXES.items():
        down, up = low.search(text) is not None, high.search(text) is not None
        if down != up:
            found[name] = 1 if up else -1
    return found
