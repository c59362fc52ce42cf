"""Edits an answer as the persona would, for users who edit instead of complaining.

An editor returns the whole mended answer; it never invents content, so only traits of form have one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from afterword.simulate.traits import CONTRACTION, SLANG, SLANG_PATTERN

Editor = Callable[[str, Mapping[str, Any]], str]

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def _sentences(answer: str) -> list[str]:
    return [part.strip() for part in _SENTENCE.split(answer.strip()) if part.strip()]


def greet(answer: str, options: Mapping[str, Any]) -> str:
    """Put the wanted phrase in front."""
    return f"{options['phrase']}! {answer.strip()}"


def address(answer: str, options: Mapping[str, Any]) -> str:
    """Put the wanted phrase in front as the opening of a letter."""
    return f"{options['phrase']}, {answer.strip()}"


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


def sign(answer: str, options: Mapping[str, Any]) -> str:
    """Append the wanted closing on a separate line."""
    return f"{_finished(answer)}\n{options['phrase']}"


def conclude(answer: str, options: Mapping[str, Any]) -> str:
    """Close with the wanted words and the first full sentence again, which usually holds the point."""
    parts = [s.rstrip(".!?,; ") for line in _lines(answer) for s in _sentences(line) if not s.endswith(":")]
    full = [part for part in parts if len(part.split()) >= 5]
    point = " ".join((full or sorted(parts, key=len, reverse=True) or [""])[0].split()[:16])
    begun = point if re.match(r"I\b", point) else f"{point[:1].lower()}{point[1:]}"
    return f"{_finished(answer)}\n{options['phrase']}: {begun}."


def bullet(answer: str, options: Mapping[str, Any]) -> str:
    """One line with a bullet for each sentence, an announcement ("Here is how:") left above them; a single sentence is
    parted at its commas."""
    lines = _lines(answer)
    head = lines.pop(0) if len(lines) > 2 and lines[0].endswith(":") else None
    parts = [s for line in lines for s in _sentences(line)]
    if len(parts) == 1:
        parts = [p.strip() for p in re.split(r",\s+|\s+(?=and\b|but\b|so\b)", parts[0], maxsplit=1)]
    return "\n".join([*([head] if head else []), *(f"- {part}" for part in parts)])


def enliven(answer: str, options: Mapping[str, Any]) -> str:
    """Sentences end with an exclamation mark, and a cheer goes in front."""
    ended = re.sub(r"(?m)(^\s*\d+\.)|(?<=\w)\.(?=\s|$)", lambda m: m[1] or "!", _finished(answer))
    return f"What a nice question! {ended}"


_LONG_FORMS = {
    **SLANG, "can't": "cannot", "won't": "will not", "shan't": "shall not", "ain't": "is not", "let's": "let us",
    "y'all": "you all",
}  # fmt: skip
_ENDINGS = {"n't": " not", "'re": " are", "'ve": " have", "'ll": " will", "'d": " would", "'m": " am", "'s": " is"}
_HAS = re.compile(r"\b(\w+)['’]s(?=\s+(?:been|had|got|become|gone)\b)", re.IGNORECASE)
_HAD = re.compile(r"\b(\w+)['’]d(?=\s+(?:better|been|had|gone)\b)", re.IGNORECASE)
_LEFT_OUT = re.compile(rf",?\s*\b(?:{'|'.join(word for word, long in SLANG.items() if not long)})\b", re.IGNORECASE)


def expand(answer: str, options: Mapping[str, Any]) -> str:
    """Expand contractions and slang, and remove words without a formal counterpart."""

    def written(match: re.Match[str]) -> str:
        word = match.group().replace("’", "'")
        long = _LONG_FORMS.get(word.casefold())
        ending = next((end for end in _ENDINGS if word.casefold().endswith(end)), None)
        if long is None:
            return word if ending is None else word[: -len(ending)] + _ENDINGS[ending]
        return long[:1].upper() + long[1:] if word[0].isupper() else long

    text = _HAD.sub(r"\1 had", _HAS.sub(r"\1 has", _LEFT_OUT.sub("", answer)))
    text = CONTRACTION.sub(written, SLANG_PATTERN.sub(written, text)).lstrip(",;:!. ")
    return text[:1].upper() + text[1:]


def wrap_json(answer: str, options: Mapping[str, Any]) -> str:
    """The answer as the one field of a JSON object."""
    return json.dumps({"answer": " ".join(_lines(answer))}, ensure_ascii=False)


def drop(answer: str, options: Mapping[str, Any]) -> str:
    """Say it without the unwanted words: "It is important to wait" becomes "Wait", and sentences that still have one
    go. Where too little would be left the answer stays as it is: no program can mend it."""
    any_of = "|".join(map(re.escape, options["words"]))
    lecture = re.compile(
        rf"\b(?:and |but )?(?:it|that|this)(?:['’]s| is) (?:also |very |always |really )?(?:{any_of})"
        rf"(?: for you)?(?: to| that)\b\s*|\b(?:most |very |more )?(?:{any_of}),\s*"
        rf"|,\s+(?:and|which) is (?:{any_of})\b[^.!?,\n]*",
        re.IGNORECASE,
    )
    said = lecture.sub(lambda m: "make sure that " if m[0].casefold().rstrip().endswith("that") else "", answer)
    text = re.sub(r"(?m)(^\s*|[.!?]\s+)([a-z])", lambda m: m[1] + m[2].upper(), said)
    unwanted = re.compile(rf"\b(?:{any_of})\b", re.IGNORECASE)
    lines = [[s for s in _sentences(line) if not unwanted.search(s)] for line in text.splitlines()]
    kept = "\n".join(" ".join(line) for line in lines if line)
    return kept if len(kept.split()) >= 8 else answer


def ask_back(answer: str, options: Mapping[str, Any]) -> str:
    """A question to the reader at the end."""
    return f"{_finished(answer)} What would you like to try first?"


def decorate(answer: str, options: Mapping[str, Any]) -> str:
    """An emoji after each of the first sentences or lines, and at the end as many as are still wanted."""
    marks, placed = "😀🎉🌟👍", 0

    def with_mark(match: re.Match[str]) -> str:
        nonlocal placed
        placed += 1
        return f"{match.group()} {marks[placed - 1]}"

    done = re.sub(r"(?<!^\d)(?<!\n\d)(?:[.!?]+(?=\s|$)|(?<=\w)(?=\n))", with_mark, answer.strip(), count=len(marks))
    return done + "".join(f" {mark}" for mark in marks[placed : int(options.get("least", 3))])


def buccaneer(answer: str, options: Mapping[str, Any]) -> str:
    """A pirate's words around it."""
    return f"Ahoy, matey! {answer.strip()} Arrr, aye!"


def _finished(answer: str) -> str:
    """The answer with an end to its last sentence."""
    text = answer.rstrip()
    return text if text.endswith((".", "!", "?", ":", '"')) else f"{text.rstrip(',; ')}."


EDITORS: dict[str, Editor] = {
    "greet": greet, "address": address, "shorten": shorten, "number": number, "flatten": flatten, "shout": shout,
    "sign": sign, "conclude": conclude, "bullet": bullet, "enliven": enliven, "expand": expand, "wrap_json": wrap_json,
    "drop": drop, "ask_back": ask_back, "decorate": decorate, "buccaneer": buccaneer,
}  # fmt: skip
"""By the name that a persona file uses."""
