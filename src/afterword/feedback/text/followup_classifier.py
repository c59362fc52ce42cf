"""Classifies a follow-up by light, model-free detectors: its relation to the answer before it.

Owns the reading of words: thanks, continuation, change of topic, correction, complaint, a wish about form, the
request again in other words, a question about the answer. Pure functions over text; never sees a turn or a store.
The tables are in `cues.toml`; how well it reads is measured (docs/feedback.md).
"""

from __future__ import annotations

import itertools
import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from afterword.chat.words import UNSPACED
from afterword.chat.words import words as units
from afterword.feedback.text.patterns import Keys, Patterns, keys_of

Category = Literal[
    "thanks", "continuation", "off_topic", "correction", "complaint", "constraint", "rephrase", "question", "unsure"
]

_CUES: dict[str, Any] = tomllib.loads(files("afterword.feedback").joinpath("cues.toml").read_text(encoding="utf-8"))
_FILLERS = frozenset(_CUES["fillers"].split())
_STOP_WORDS = frozenset(_CUES["stop"].split())
_STOP_SIGNS = frozenset(_CUES["stop_zh"])
_FORM_WORDS = frozenset(_CUES["form"].split())
"""The vocabulary of form."""

SEEN_HEAD, SEEN_TAIL = 400, 200
"""Cues are looked for at the beginning and at the end, in characters: between them lies what the user pasted."""
WINDOW = 2400
"""Characters of request and answer in which the message's words are looked for."""
ASKED = 800
"""Characters of the request that a repetition is compared with."""
SAME_START = 6
"""Characters that two messages without spaces begin with to have the same beginning (three words of others)."""
LONG = 12
"""A message with so many topic words is a task of its own, unless it begins by finding fault."""
SURE, LIKELY, GUESS = 0.9, 0.6, 0.2
"""Confidence of a rule: about its precision on real chats (docs/feedback.md)."""

POLARITY: dict[Category, int] = {
    "thanks": 1, "continuation": 0, "off_topic": 0, "correction": -1, "complaint": -1, "constraint": -1,
    "rephrase": -1, "question": 0, "unsure": 0,
}  # fmt: skip
RELEVANCE: dict[Category, float] = {
    "thanks": 1.0, "continuation": 0.0, "off_topic": 0.0, "correction": 1.0, "complaint": 1.0, "constraint": 1.0,
    "rephrase": 0.8, "question": 0.5, "unsure": 0.3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FollowUpReading:
    """What a follow-up is, how much it is about the answer (0 .. 1), whether the user is content (-1, 0, +1), and
    how sure that is (0 .. 1)."""

    category: Category
    relevance: float
    polarity: int
    confidence: float


def read_follow_up(request: str, answer: str, text: str) -> FollowUpReading:
    """The reading of `text`, which the user wrote after `answer` to `request`."""
    category, confidence = _decide(request, answer, text)
    return FollowUpReading(category, RELEVANCE[category], POLARITY[category], confidence)


@dataclass(frozen=True, slots=True)
class Signs:
    """Signs that the detectors find in a follow-up, beside their decision."""

    category: Category
    confidence: float
    flags: dict[str, bool]
    """Cue -> whether it is there."""
    own: int
    """Topic words of the message."""
    shared: int
    """Those of them that stand in request or answer, too."""


def signs_of(request: str, answer: str, text: str) -> Signs:
    """All findings of the detectors, whichever of them decides."""
    seen = _seen(text)
    words = _WORDS.findall(seen)
    keys = keys_of(words)
    clean = _EMPTY_IT.sub(" ", seen)
    own = content_words(_unquoted(seen), _FORM)
    again = _again(request, seen, words)
    category, confidence = _decide(request, answer, text)
    flags = {
        "correction": _CORRECTION.search(seen, keys) or _FAULTS.search(seen) is not None,
        "correction at once": _CORRECTION.search(seen[:60], keys),
        "complaint": _COMPLAINT.search(seen, keys),
        "constraint": _CONSTRAINT.search(seen, keys),
        "thanks": _THANKS.search(seen, keys),
        "acknowledged": _ACK.search(seen, keys),
        "continue": _CONTINUE.fullmatch(seen.strip(" .!?。！？…~")) is not None,
        "about": _ABOUT.search(clean, keys),
        "about weakly": _ABOUT_WEAKLY.search(clean, keys),
        "switch": _SWITCH.search(seen, keys),
        "new task": _NEW_TASK.match(seen) is not None,
        "asks": _asks(seen),
        "wishes": _WISHES.match(seen) is not None,
        "same request": again == "same",
        "other request": again == "other",
    }
    return Signs(category, confidence, flags, len(own), _shared(own, request, answer))


def categorise(request: str, answer: str, text: str) -> Category:
    """The category of a follow-up; the first rule that applies decides."""
    return _decide(request, answer, text)[0]


Decided = tuple[Category, float]


def _decide(request: str, answer: str, text: str) -> Decided:
    seen = _seen(text)
    words = _WORDS.findall(seen)
    if not words and not _UNSPACED.search(seen):
        return "unsure", GUESS
    if _CONTINUE.fullmatch(seen.strip(" .!?。！？…~")):
        return "continuation", SURE
    keys = keys_of(words)
    rest = _after_thanks(seen, keys)
    if rest == "":
        return "thanks", SURE
    cue = _cue(seen, keys)
    if (again := _again(request, seen, words)) is not None:
        other = again == "other" and cue != "correction"
        return ("off_topic", LIKELY) if other else (cue or "rephrase", LIKELY)
    own = content_words(_unquoted(rest or seen), _FORM)
    shared = _shared(own, request, answer)
    found = _of_its_own(seen, keys, own, shared, cue)
    if rest is not None and (found is None or found[0] in {"off_topic", "question", "unsure"}):
        return "thanks", LIKELY
    return found or (cue and (cue, SURE)) or _without_cue(seen, keys, own, shared)


def _cue(seen: str, keys: Keys) -> Category | None:
    if _CORRECTION.search(seen, keys) or _FAULTS.search(seen):
        return "correction"
    if _COMPLAINT.search(seen, keys):
        return "complaint"
    return "constraint" if _CONSTRAINT.search(seen, keys) else None


def _of_its_own(seen: str, keys: Keys, own: frozenset[str], shared: int, cue: Category | None) -> Decided | None:
    """Is it a task of its own, whatever its cues? None: the cue decides."""
    if _SWITCH.search(seen, keys):
        return "off_topic", SURE
    clean = _EMPTY_IT.sub(" ", seen)
    strong = _ABOUT.search(clean, keys)
    at_once = cue == "correction" and _cue(seen[:60], keys) == "correction"
    new_task = _NEW_TASK.match(seen) is not None
    if len(own) >= LONG:
        kept = at_once or (strong and not new_task and _cue(seen[:80], keys))
        return (cue, LIKELY) if cue and kept else ("off_topic", LIKELY)
    if at_once:
        return None
    asks = _asks(seen)
    points = strong or _ABOUT_WEAKLY.search(clean, keys)
    if points and (strong or len(own) < 5 or shared):
        if not new_task or not own or cue in {"correction", "complaint"}:
            return None
        return ("question", LIKELY) if asks else ("constraint", LIKELY)
    if new_task and own:
        if asks and shared * 2 >= len(own):
            return "question", LIKELY
        if shared * 3 >= len(own) * 2:
            return None
        return ("off_topic", LIKELY) if len(own) >= 2 or not cue else None
    if own and not shared and cue is None and not points:
        return ("off_topic", LIKELY) if len(own) >= 2 else None
    return None


def _without_cue(seen: str, keys: Keys, own: frozenset[str], shared: int) -> Decided:
    asks = _asks(seen)
    if not own and not asks:
        return "constraint", LIKELY  # nothing but the vocabulary of form
    if asks and (shared * 2 >= len(own) or _ABOUT_WEAKLY.search(_EMPTY_IT.sub(" ", seen), keys)):
        return "question", LIKELY
    return "unsure", GUESS


def _asks(seen: str) -> bool:
    """Does it want to know something? "Can you shorten it?" is a wish, not a question."""
    if _WISHES.match(seen):
        return False
    return seen.endswith(("?", "？")) or _ASKS.match(seen) is not None


def _again(request: str, seen: str, words: list[str]) -> Literal["same", "other"] | None:
    """Is it the request again ("same"), or one of the same pattern about something else ("other")?"""
    head = request.strip()[:ASKED].lower()
    unspaced = _UNSPACED.search(seen)
    if not head or not (words or unspaced):
        return None
    has = _stems(words, _STOP_WORDS)
    if not unspaced and sum([stem in head for stem in has]) < 2 and not all([word in head for word in words[:3]]):
        return None  # neither two words in common nor the same beginning: no need to take the request apart
    asked = _WORDS.findall(head)
    same_start = len(words) >= 5 and len(asked) >= 5 and words[:3] == asked[:3]
    if unspaced and not words:
        same_start = seen[:SAME_START] == head[:SAME_START] and min(len(seen), len(head)) > 2 * SAME_START
    had = _stems(asked, _STOP_WORDS)
    if unspaced:
        had, has = had | _pairs(head), has | _pairs(seen)
    common = len(had & has)
    if not same_start and (common < 2 or common * 2 < len(had | has)):
        return None
    gone, new = _topics(had - has), _topics(has - had)
    if (gone and new) or _NUMBERS.findall(head) != _NUMBERS.findall(seen[:ASKED]):
        return "other" if same_start or len(words) >= 6 else None
    return "same" if common >= 2 else None


def _unquoted(text: str) -> str:
    return _QUOTED.sub(" ", text) if _QUOTE.search(text) else text


def _topics(stems: frozenset[str]) -> frozenset[str]:
    return frozenset(s for s in stems if s not in _FORM_STEMS)


def _after_thanks(seen: str, keys: Keys) -> str | None:
    """What a message says beyond its thanks: "" when it only thanks, None when it does not thank."""
    thanks = _THANKS.search(seen, keys)
    if not thanks and not _ACK.search(seen, keys):
        return None
    if _NEGATION.search(seen) or _DOUBT.search(seen):
        return None
    rest, said = _THANKS_ALL.subn(" ", seen)
    rest, _ = _ACK_ALL.subn(" ", rest)
    left = [word for word in _TOKENS.findall(rest) if word not in _FILLERS]
    if not left:
        return ""
    short = len(left) <= 3 and not seen.endswith(("?", "？"))
    return rest if said and (short or _THANKS_ALL.match(seen)) else None


def content_words(text: str, without: frozenset[str] = _STOP_WORDS) -> frozenset[str]:
    """Stems of the words that carry a topic; pairs of characters of scripts without spaces."""
    lowered = text.lower()
    stems = _stems(_WORDS.findall(lowered), without)
    return stems | _pairs(lowered) if _UNSPACED.search(lowered) else stems


def _stems(words: list[str], without: frozenset[str]) -> frozenset[str]:
    return frozenset([w[:6] for w in words if len(w) > 2 and w not in without])


def _pairs(text: str) -> frozenset[str]:
    found: set[str] = set()
    for run in _UNSPACED.findall(text):
        kept = [unit for unit in units(run) if unit not in _STOP_SIGNS]
        found.update(a + b for a, b in itertools.pairwise(kept))
    return frozenset(found)


def _shared(own: frozenset[str], request: str, answer: str) -> int:
    """How many of the message's topic words occur in the exchange."""
    if not own:
        return 0
    exchange = f" {_window(request)} {_window(answer)} ".lower().translate(_SPACES)
    return sum((stem if len(stem) > 4 or _UNSPACED.match(stem) else " " + stem) in exchange for stem in own)


def _seen(text: str) -> str:
    text = text.strip()
    if len(text) > SEEN_HEAD + SEEN_TAIL:
        text = text[:SEEN_HEAD] + "\n" + text[-SEEN_TAIL:]
    return " ".join(text.replace("’", "'").lower().split())


def _window(text: str) -> str:
    return text if len(text) <= WINDOW else text[: WINDOW * 2 // 3] + " " + text[-WINDOW // 3 :]


def _all(table: dict[str, list[str]]) -> list[str]:
    return [pattern for patterns in table.values() for pattern in patterns]


def _anywhere(entries: list[str]) -> re.Pattern[str]:
    """One pattern that can take the words out of a text."""
    unspaced = [e for e in entries if _UNSPACED.search(e)]
    rest = [e for e in entries if not _UNSPACED.search(e)]
    return re.compile("|".join([rf"(?<![\w'])(?:{'|'.join(rest)})(?![\w'])", *unspaced]))


_WORDS = re.compile(rf"[^\W\d_{UNSPACED}][\w'\u00c0-\u024f-]*")
_UNSPACED = re.compile(rf"[{UNSPACED}]+")
_TOKENS = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}][^\W_{UNSPACED}']*(?:'[^\W_]+)?")
_QUOTE = re.compile("[\"“«'`「]")
_QUOTED = re.compile(
    r"\"[^\"]{1,200}\"|“[^”]{1,200}”|«[^»]{1,200}»|(?<!\w)'[^']{1,200}'(?!\w)|`[^`]{1,200}`|「[^」]{1,200}」"
)
_SPACES = str.maketrans(dict.fromkeys("\n\t.,;:!?()[]{}<>\"'`*_/\\-=|#", " "))
_THANKS, _ACK = Patterns(_all(_CUES["thanks"])), Patterns(_all(_CUES["ack"]))
_THANKS_ALL, _ACK_ALL = _anywhere(_all(_CUES["thanks"])), _anywhere(_all(_CUES["ack"]))
_CORRECTION = Patterns(_all(_CUES["correction"]))
_FAULTS = re.compile(r"(?:error|exception):|traceback \(most")
_COMPLAINT = Patterns(_all(_CUES["complaint"]))
_CONSTRAINT = Patterns(_all(_CUES["constraint"]))
_CONTINUE = re.compile("|".join(_CUES["continue"]))
_ABOUT = Patterns(_CUES["about"])
_ABOUT_WEAKLY = Patterns(_CUES["about_weakly"])
_EMPTY_IT = _anywhere(_CUES["empty_it"])
_NEW_TASK = re.compile("|".join(_CUES["new_task"]))
_SWITCH = Patterns(_CUES["switch"])
_ASKS = re.compile(_CUES["asks"])
_NUMBERS = re.compile(r"[0-9]+")
_WISHES = re.compile(_CUES["wishes"])
_NEGATION = re.compile(
    r"\bnot\b|n't\b|\bno\b|\bnicht\b|\bpas\b|\bkein\w*|\bnão\b|\bnon\b|\bне\b|不(?!错)|没|ない|ません"
)
_DOUBT = re.compile(
    r"(?<!\w)(?:but|however|except|although|though|pero|mais|aber|sauf|jedoch|mas|porém|ma|però|но|однако)(?!\w)|但|不过|でも|けど"
)
_FORM = _STOP_WORDS | _FORM_WORDS
_FORM_STEMS = frozenset(word[:6] for word in _FORM)
