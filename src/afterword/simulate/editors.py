"""Programs that mend an answer the way the persona would, for users who edit instead of complaining.

An editor returns the whole mended answer; it never invents content, so only traits of form have one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Editor = Callable[[str, Mapping[str, Any]], str]

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def _sentences(answer: str) -> list[str]:
    return [part.strip() for part in _SENTENCE.split(answer.strip()) if part.strip()]


def greet(answer: str, options: Mapping[str, Any]) -> str:
    """Put the wanted phrase in front."""
    return f"{options['phrase']}! {answer.strip()}"


def shorten(answer: str, options: Mapping[str, Any]) -> str:
    """Keep the first sentences that fit within `max_words`, at least one."""
    most = int(options.get("max_words", 40))
    kept: list[str] = []
    for sentence in _sentences(answer):
        if kept and len(" ".join([*kept, sentence]).split()) > most:
            break
        kept.append(sentence)
    text = " ".join(" ".join(kept).split()[:most])
    return text if text.endswith((".", "!", "?")) else text.rstrip(",;: ") + "."


def number(answer: str, options: Mapping[str, Any]) -> str:
    """One numbered line for each sentence; headings go."""
    sentences = [s for line in _lines(answer) for s in _sentences(line) if len(s.split()) > 1]
    return "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1))


def flatten(answer: str, options: Mapping[str, Any]) -> str:
    """Take headings, bold, bullets and numbers away and run the lines together."""
    return " ".join(_lines(answer))


def _lines(answer: str) -> list[str]:
    """The lines that hold text, without their markup."""
    bare = (re.sub(r"^\s*(?:#{1,6}\s+|[-*•]\s+|\d{1,2}[.)]\s+)", "", line) for line in answer.splitlines())
    return [text for line in bare if (text := re.sub(r"\*\*|__|`", "", line).strip())]


def shout(answer: str, options: Mapping[str, Any]) -> str:
    """Capital letters."""
    return answer.upper()


EDITORS: dict[str, Editor] = {
    "greet": greet, "shorten": shorten, "number": number, "flatten": flatten, "shout": shout,
}  # fmt: skip
"""By the name that a persona file uses."""
