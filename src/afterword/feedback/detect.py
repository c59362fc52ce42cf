"""What a follow-up says about the answer before it: light, model-free detectors.

Owns the reading of words: thanks, continuation, change of topic, correction, complaint, a wish about form, the
request again in other words, a question about the answer. Pure functions over text; never sees a turn or a store.
The tables are in `cues`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from afterword.feedback import cues

Category = Literal[
    "thanks", "continuation", "off_topic", "correction", "complaint", "constraint", "rephrase", "question", "unsure"
]

SEEN_HEAD, SEEN_TAIL = 400, 200
"""Cues are looked for at the beginning and at the end, in characters: between them lies what the user pasted."""
WINDOW = 3000
"""Characters of request and answer whose words are compared."""
OWN_TOPIC = 12
"""A message with so many content words, few of them from the exchange, is a task of its own in spite of a cue."""

POLARITY: dict[Category, int] = {
    "thanks": 1, "continuation": 0, "off_topic": 0, "correction": -1, "complaint": -1, "constraint": -1,
    "rephrase": -1, "question": 0, "unsure": 0,
}  # fmt: skip
RELEVANCE: dict[Category, float] = {
    "thanks": 1.0, "continuation": 0.0, "off_topic": 0.0, "correction": 1.0, "complaint": 1.0, "constraint": 1.0,
    "rephrase": 0.8, "question": 0.5, "unsure": 0.3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """What a follow-up is, how much it is about the answer (0 .. 1), and whether the user is content (-1, 0, +1)."""

    category: Category
    relevance: float
    polarity: int


def read_follow_up(request: str, answer: str, text: str) -> Reading:
    """The reading of `text`, which the user wrote after `answer` to `request`."""
    category = categorise(request, answer, text)
    return Reading(category, RELEVANCE[category], POLARITY[category])


def categorise(request: str, answer: str, text: str) -> Category:
    """The category of a follow-up; the first rule that applies decides."""
    seen = _seen(text)
    if not _WORDS.search(seen) and not _HAN.search(seen):
        return "unsure"
    bare = seen.strip(" \t\n.!?。！？…~")
    if _CONTINUE.fullmatch(bare):
        return "continuation"
    rest = _after_thanks(seen)
    if rest == "":
        return "thanks"
    words = content_words(rest or seen)
    own = content_words(_QUOTED.sub(" ", rest or seen), without=_FORM)
    about = content_words(_window(request)) | content_words(_window(answer)) if own else frozenset()
    cue = _cue(seen)
    if cue != "correction" and len(own) >= OWN_TOPIC and len(own & about) * 4 < len(own):
        cue = None
    if _topic_changed(seen, own, content_words(seen, without=_FORM) & about, cue):
        return "thanks" if rest is not None else "off_topic"
    if cue is not None:
        return cue
    if _is_again(words, request):
        return "rephrase"
    if rest is not None:
        return "thanks"
    return _without_cue(seen, words, own, about)


def _cue(seen: str) -> Category | None:
    if _CORRECTION.search(seen):
        return "correction"
    if _COMPLAINT.search(seen):
        return "complaint"
    return "constraint" if _CONSTRAINT.search(seen) else None


def _topic_changed(seen: str, own: frozenset[str], shared: frozenset[str], cue: Category | None) -> bool:
    """A message with a topic of its own: it shares nothing with the exchange and does not point back at it."""
    if _SWITCH.search(seen):
        return True
    if not own or shared or _ABOUT.search(_EMPTY_IT.sub(" ", seen)):
        return False
    starts_anew = _NEW_TASK.match(seen) is not None
    if len(own) < 3 and _points_back(seen):
        return False
    if cue == "correction":
        return False
    if cue == "complaint":
        return starts_anew and len(own) >= 4
    if cue == "constraint":
        return starts_anew
    return starts_anew or len(own) >= 2


def _without_cue(seen: str, words: frozenset[str], own: frozenset[str], about: frozenset[str]) -> Category:
    if words and not own and not seen.endswith(("?", "？")):
        return "constraint"  # nothing but the vocabulary of form
    if _points_back(seen) or (own and len(own & about) * 2 >= len(own)):
        return "question"
    return "unsure"


def _points_back(seen: str) -> bool:
    clean = _EMPTY_IT.sub(" ", seen)
    return _ABOUT.search(clean) is not None or _ABOUT_WEAKLY.search(clean) is not None


def _is_again(words: frozenset[str], request: str) -> bool:
    """The request in other words: most of its content words, and little else."""
    asked = content_words(_window(request))
    if not words or not asked:
        return False
    common = len(words & asked)
    return common >= 2 and common / len(words | asked) >= 0.5


def _after_thanks(seen: str) -> str | None:
    """What a message says beyond its thanks: "" when it only thanks, None when it does not thank."""
    if _NEGATION.search(seen) or _DOUBT.search(seen):
        return None
    rest, thanks = _THANKS.subn(" ", seen)
    rest, acknowledged = _ACK.subn(" ", rest)
    if not thanks and not acknowledged:
        return None
    left = [word for word in _TOKENS.findall(rest) if word not in cues.FILLERS]
    if not left:
        return ""
    short = len(left) <= 3 and not seen.endswith(("?", "？"))
    return rest if thanks and (short or _THANKS.match(seen)) else None


def content_words(text: str, without: frozenset[str] = cues.STOP) -> frozenset[str]:
    """Stems of the words that carry a topic; pairs of characters for Chinese."""
    lowered = text.lower()
    words = {w[:6] for w in _WORDS.findall(lowered) if w not in without and len(w) > 2}
    for run in _HAN.findall(lowered):
        kept = [c for c in run if c not in cues.STOP_ZH]
        words.update(a + b for a, b in itertools.pairwise(kept))
    return frozenset(words)


def _seen(text: str) -> str:
    text = text.strip()
    if len(text) > SEEN_HEAD + SEEN_TAIL:
        text = text[:SEEN_HEAD] + "\n" + text[-SEEN_TAIL:]
    return " ".join(text.replace("’", "'").lower().split())


def _window(text: str) -> str:
    return text if len(text) <= WINDOW else text[: WINDOW * 2 // 3] + " " + text[-WINDOW // 3 :]


def _any_of(patterns: Iterable[str]) -> str:
    """One pattern: Latin entries between word boundaries, anchored ones as they are, Chinese ones anywhere."""
    every = list(patterns)
    free = [p for p in every if not p.startswith("^") and not _HAN.search(p)]
    other = [p for p in every if p.startswith("^") or _HAN.search(p)]
    bounded = [rf"(?<![\w'])(?:{'|'.join(free)})(?![\w'])"] if free else []
    return "|".join(bounded + other)


def _by_language(table: cues.ByLanguage) -> re.Pattern[str]:
    return re.compile(_any_of(pattern for patterns in table.values() for pattern in patterns))


_WORDS = re.compile(r"[^\W\d_\u4e00-\u9fff][\w'\u00c0-\u024f-]*")
_HAN = re.compile(r"[\u4e00-\u9fff]+")
_TOKENS = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff][^\W_\u4e00-\u9fff']*(?:'[^\W_]+)?")
_QUOTED = re.compile(
    r"\"[^\"]{1,200}\"|“[^”]{1,200}”|«[^»]{1,200}»|(?<!\w)'[^']{1,200}'(?!\w)|`[^`]{1,200}`|「[^」]{1,200}」"
)
_THANKS = _by_language(cues.THANKS)
_ACK = _by_language(cues.ACK)
_CORRECTION = _by_language(cues.CORRECTION)
_COMPLAINT = _by_language(cues.COMPLAINT)
_CONSTRAINT = _by_language(cues.CONSTRAINT)
_CONTINUE = re.compile("|".join(cues.CONTINUE))
_ABOUT = re.compile(_any_of(cues.ABOUT))
_ABOUT_WEAKLY = re.compile(_any_of(cues.ABOUT_WEAKLY))
_EMPTY_IT = re.compile(_any_of(cues.EMPTY_IT))
_NEW_TASK = re.compile("|".join(cues.NEW_TASK))
_SWITCH = re.compile(_any_of(cues.SWITCH))
_NEGATION = re.compile(r"\bnot\b|n't\b|\bno\b|\bnicht\b|\bpas\b|\bkein\w*|不(?!错)|没")
_DOUBT = re.compile(r"(?<!\w)(?:but|however|except|although|though|pero|mais|aber|sauf|jedoch)(?!\w)|但|不过")
_FORM = cues.STOP | cues.FORM
