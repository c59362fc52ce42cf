"""Scores whether a program wrote a message: a linear classifier over its words and its form.

Weights: `machine_weights.tsv`, trained by `dev/train_machine_classifier.py`; vocabulary of template signs: `[template]`
in `machine.toml`. Pure, without numpy; `machine` interprets the score.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from itertools import islice, pairwise

from afterword.chat.vocabulary import CJK, CJK_RANGES, LinePattern, Phrases

_TOKEN = re.compile(rf"[{CJK_RANGES}]|[^\W\d_]+|\d+")
STEM = 8
"""Characters of a word that are read: most endings lie behind them."""
MOST_TOKENS = 400
"""Words at the beginning and at the end of a text that are read, half of them at each."""
EDGE = 3
"""Words at the beginning and at the end that count by themselves."""
WORDS, SIGNS = 4.0, 1.0
"""Weight of all the words together, and of each sign of form."""


def tokens(low: str) -> list[str]:
    """Splits lower-case text into shortened words; a Chinese, Japanese or Korean character is one, a number is "0"."""
    found = ["0" if t.isdigit() else t[:STEM] for t in _TOKEN.findall(low)]
    return found if len(found) <= MOST_TOKENS else found[: MOST_TOKENS // 2] + found[-MOST_TOKENS // 2 :]


def features(text: str, low: str) -> dict[str, float]:
    """Computes the features of a message.

    Args:
        text: The message without quotations and fenced blocks; its start and end are enough.
        low: The same in lower case.

    Returns:
        Feature -> value.
    """
    words = tokens(low)
    grams = set(words)
    grams.update(f"{a} {b}" for a, b in pairwise(words))
    share = WORDS / math.sqrt(max(16, len(grams)))
    found = dict.fromkeys(grams, share)
    for mark, edge in (("^", words[:EDGE]), ("$", words[-EDGE:])):
        for word in edge:
            found[mark + word] = 0.5
        for a, b in pairwise(edge):
            found[f"{mark}{a} {b}"] = 0.5
    found.update(_shape(text, low, len(words)))
    return found


def _shape(text: str, low: str, words: int) -> dict[str, float]:
    lines = [line for line in text.split("\n") if line.strip()]
    shape = {f"#{name}": SIGNS * value for name, value in {**template_signs(text, low), **voice_signs(low)}.items()}
    shape[f"#words{min(7, int(math.log2(words + 1)))}"] = 1.0
    shape[f"#lines{min(4, int(math.log2(len(lines) + 1)))}"] = 0.5
    last = text.rstrip()[-1:]
    if last and not last.isalnum():
        shape[f"#end{last}"] = 0.5
    first = text.lstrip()[:1]
    if first:
        shape[
            "#begin" + ("a" if first.islower() else "A" if first.isupper() else "c" if CJK.match(first) else first)
        ] = 0.5
    return shape


@lru_cache(maxsize=1)
def weights() -> dict[str, float]:
    """Loads the weight of each feature; "" is the bias."""
    lines = files("afterword.chat").joinpath("machine_weights.tsv").read_text(encoding="utf-8").splitlines()
    return {name: float(weight) for name, _, weight in (line.rpartition("\t") for line in lines)}


def score(values: Mapping[str, float]) -> float:
    """Scores a message.

    Args:
        values: Feature -> value.

    Returns:
        Log odds that a program wrote it.
    """
    table = weights()
    return table.get("", 0.0) + sum(table.get(name, 0.0) * value for name, value in values.items())


# ---- signs of form

_DATA: dict[str, list[str]] = tomllib.loads(
    files("afterword.chat").joinpath("machine.toml").read_text(encoding="utf-8")
)["template"]


def _phrases(name: str) -> Phrases:
    return Phrases(tuple(_DATA[name]), before=r"(?<!\w)", anywhere=None)


def _first(name: str, behind: str) -> re.Pattern[str]:
    """The phrases at the beginning of a text, behind these characters."""
    return re.compile(f"{behind}(?:{'|'.join(_DATA[name])})")


_LABEL = LinePattern(
    r"(?:^|\n)[ \t>*-]{0,8}"
    r"(?:#{1,4} {1,4}[^\n]{2,60}|\*\*[^*\n]{2,50}\*\*|[A-Z][\w /'-]{1,40}:[ \t]*(?=\n|$)|<\w{3,30}>)"
)
_FIELD = LinePattern(r"(?:^|\n)[A-Z][\w /-]{2,30}: ?\S")
_CUE = re.compile(r"\n[\W_]{0,4}[^\W\d][^\n:：.!?]{1,40}[:：][*\s]{0,4}$")
_DELIMITER = LinePattern(r"(?:^|\n)[ \t]*(?:[-=_~]{4,}|\"\"\"|'''|\[[A-Z_]{4,}\])[ \t]*(?=\n|$)")
_CAPITALS = frozenset(
    [
        "MUST", "ONLY", "NOT", "NEVER", "ALWAYS", "IMPORTANT", "CRITICAL", "EXACT", "EXACTLY", "STRICTLY", "SAME",
        "ONE", "NOTE", "ALL", "ANY", "MAXIMUM", "SHORT", "NOW", "BEFORE", "ERROR", "WARNING", "REMINDER", "EXISTING",
    ]
)  # fmt: skip
_CAPITAL_WORD = re.compile(r"[A-Z](?<!\w[A-Z])[A-Z]{2,8}(?!\w)")
_STEP = LinePattern(r"(?:^|\n)[ \t]*(?:\d{1,2}[.)]|[-*•]) ")
_PLACE = re.compile(r"\{\{?\w[\w .-]{0,30}\}?\}|<[a-z]+(?: [a-z]+){1,4}>|\[[a-z]+(?: [a-z]+){1,5}\]")
_CLAUSE = r" ?(?:and |et |e |y |und |или |и )?(\w{2,8}) \w"
_FIRST_OPENER, _OPENER = re.compile(_CLAUSE), re.compile(f"[,;.、，]{_CLAUSE}")
_BANNER = re.compile(r"\[[A-Z]{3,}[ :_-][A-Z][^\]\n]{3,80}\]")
_ROLE = _first("role", r"[\W_]{0,6}")
_START = _first("start", r"[\W_]{0,6}")
_VERBS = _first("verbs", r"[\W_]{0,6}")
_PASSIVE = _phrases("passive")
_REPORT = _phrases("report")
_BRACKETED = re.compile(r"[\[(][^\n\[\]()]{40,}[\])]\W{0,3}$")
_HARNESS = _phrases("harness")
_FOLLOWING = _phrases("following")
_NOTHING = _first("nothing", "")
_LITERAL = re.compile(r"[\"'“«「『‘][^\n\"'“”«»]{1,40}[\"'”»」』’]")
_VOICE = _phrases("voice")
_REACTION = _first("reaction", r"[\W_]{0,3}")

NEAR, QUOTED = 90, 16
"""Characters before a quotation in which its condition stands, and quotations that are looked at."""
MOST = 4
"""Times that a sign counts at most."""


def template_signs(text: str, low: str) -> dict[str, float]:
    """Counts signs that are frequent in program templates and rare in messages of people.

    Args:
        text: The message without envelopes; its start and end are enough.
        low: The same in lower case.

    Returns:
        Sign -> count, at most MOST.
    """
    signs = {
        "labels": len({m.group().strip() for m in _LABEL.finditer(text)}) - 1,
        "fields": _more_than_two(_FIELD, text),
        "cue": _CUE.search(text.rstrip()) is not None,
        "delimiter": _DELIMITER.found(text),
        "capitals": _capitals(text),
        "steps": _more_than_two(_STEP, text),
        "places": _PLACE.search(text) is not None,
        "verb": _VERBS.match(low) is not None,
        "bracketed": _bracketed(text, low),
        "opener": _repeats_an_opener(low),
        "fallback": _names_a_fallback(low),
        "role": _ROLE.match(low) is not None,
        "start": _START.match(low) is not None,
        "report": _REPORT.found(low),
        "passive": _PASSIVE.found(low),
        "following": _FOLLOWING.found(low),
        "harness": len({m.group() for m in _HARNESS.finditer(low)}),
    }
    return {name: float(min(MOST, value)) for name, value in signs.items() if value > 0}


def voice_signs(low: str) -> dict[str, float]:
    """Detects signs that people speak for themselves or react to an answer."""
    signs = {
        "voice": _VOICE.found(low),
        "asks": low.rstrip().endswith(("?", "？")),
        "reaction": _REACTION.match(low) is not None,
    }
    return {name: 1.0 for name, value in signs.items() if value}


def _bracketed(text: str, low: str) -> bool:
    """All of it in brackets, or a heading in brackets and capitals."""
    return _BRACKETED.match(low) is not None or _BANNER.match(text) is not None


def _names_a_fallback(low: str) -> bool:
    """A quotation behind a condition: "if there is none, return 'nothing'"."""
    for found in islice(_LITERAL.finditer(low), QUOTED):
        line = low.rfind("\n", 0, found.start()) + 1
        if _NOTHING.search(low, max(line, found.start() - NEAR), found.start()):
            return True
    return False


def _more_than_two(pattern: LinePattern, text: str) -> bool:
    return next(islice(pattern.finditer(text), 2, None), None) is not None


def _capitals(text: str) -> int:
    found = _CAPITALS.intersection(_CAPITAL_WORD.findall(text))
    return 0 if not found or _shouted(text) else len(found)


def _shouted(text: str) -> bool:
    letters = [c for c in text[:600] if c.isalpha()]
    return sum(c.isupper() for c in letters) * 2 > len(letters)


def _repeats_an_opener(low: str) -> bool:
    """Three clauses that begin alike ("no introduction, no quotes, no markdown"), in any language with spaces."""
    seen: dict[str, int] = {}
    first = _FIRST_OPENER.match(low)
    if first:
        seen[first.group(1)] = 1
    for found in _OPENER.finditer(low, first.end() if first else 0):
        seen[found.group(1)] = seen.get(found.group(1), 0) + 1
    return max(seen.values(), default=0) > 2
