"""Programs that mend an answer the way the persona would, for users who edit instead of complaining.

An editor returns the whole mended answer; it never invents content, so only traits of form have one.
"""

from __future__ import annotations

import json
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


def sign(answer: str, options: Mapping[str, Any]) -> str:
    """Put the wanted closing at the end, on a line of its own."""
    return f"{_finished(answer)}\n{options['phrase']}"


def conclude(answer: str, options: Mapping[str, Any]) -> str:
    """Close with the wanted words and the first sentence again, which usually holds the point."""
    parts = _sentences(flatten(answer, options))
    point = " ".join(parts[0].split()[:16]).rstrip(".!?,;: ") if parts else ""
    return f"{_finished(answer)}\n{options['phrase']}: {point[:1].lower()}{point[1:]}."


def bullet(answer: str, options: Mapping[str, Any]) -> str:
    """One line with a bullet for each sentence; a single sentence is parted at its commas."""
    parts = [s for line in _lines(answer) for s in _sentences(line) if len(s.split()) > 1]
    if len(parts) == 1:
        parts = [p.strip() for p in re.split(r",\s+|\s+(?=and\b|but\b|so\b)", parts[0], maxsplit=1)]
    return "\n".join(f"- {part}" for part in parts)


def enliven(answer: str, options: Mapping[str, Any]) -> str:
    """Sentences end with an exclamation mark, and a cheer goes in front."""
    return "What a nice question! " + re.sub(r"(?<=\w)\.(?=\s|$)", "!", answer.strip())


_LONG_FORMS = {
    "can't": "cannot", "won't": "will not", "shan't": "shall not", "it's": "it is", "that's": "that is",
    "there's": "there is", "what's": "what is", "who's": "who is", "let's": "let us", "here's": "here is",
    "he's": "he is", "she's": "she is", "yeah": "yes", "yep": "yes", "nope": "no", "okay": "all right",
    "ok": "all right", "gonna": "going to", "wanna": "want to", "gotta": "have to", "kinda": "rather",
    "sorta": "rather", "guys": "people", "stuff": "things", "awesome": "excellent",
    "hey": "good day", "lots": "many", "tons": "many",
}  # fmt: skip
_ENDINGS = {"n't": " not", "'re": " are", "'ve": " have", "'ll": " will", "'d": " would", "'m": " am"}


def expand(answer: str, options: Mapping[str, Any]) -> str:
    """Write contractions and slang out."""

    def written(match: re.Match[str]) -> str:
        word = match.group().replace("’", "'")
        long = _LONG_FORMS.get(word.casefold())
        ending = next((end for end in _ENDINGS if word.casefold().endswith(end)), None)
        if long is None:
            return word if ending is None else word[: -len(ending)] + _ENDINGS[ending]
        return long[:1].upper() + long[1:] if word[0].isupper() else long

    return re.sub(r"[A-Za-z]+(?:['’][A-Za-z]+)?", written, answer)


def wrap_json(answer: str, options: Mapping[str, Any]) -> str:
    """The answer as the one field of a JSON object."""
    return json.dumps({"answer": " ".join(_lines(answer))}, ensure_ascii=False)


def drop(answer: str, options: Mapping[str, Any]) -> str:
    """Leave out the sentences with unwanted words; where all have some, the words alone."""
    unwanted = re.compile(rf"\b(?:{'|'.join(map(re.escape, options['words']))})\b", re.IGNORECASE)
    kept = [sentence for sentence in _sentences(answer) if not unwanted.search(sentence)]
    if sum(len(sentence.split()) for sentence in kept) >= 8:
        return " ".join(kept)
    return re.sub(r"\s{2,}", " ", unwanted.sub("", answer)).strip()


def ask_back(answer: str, options: Mapping[str, Any]) -> str:
    """A question to the reader at the end."""
    return f"{_finished(answer)} What would you like to try first?"


def decorate(answer: str, options: Mapping[str, Any]) -> str:
    """An emoji after each of the first sentences, at least as many as wanted."""
    marks, parts = "😀🎉❤️🌟👍", _sentences(answer)
    least = max(0, int(options.get("least", 3)) - len(parts))
    done = [f"{part} {'😀🎉🌟👍😺'[i % 5]}" if i < 4 else part for i, part in enumerate(parts)]
    return " ".join(done) + marks[:least]


def buccaneer(answer: str, options: Mapping[str, Any]) -> str:
    """A pirate's words around it."""
    return f"Ahoy, matey! {answer.strip()} Arrr, aye!"


def _finished(answer: str) -> str:
    """The answer with an end to its last sentence."""
    text = answer.rstrip()
    return text if text.endswith((".", "!", "?", ":", '"')) else f"{text.rstrip(',; ')}."


EDITORS: dict[str, Editor] = {
    "greet": greet, "shorten": shorten, "number": number, "flatten": flatten, "shout": shout, "sign": sign,
    "conclude": conclude, "bullet": bullet, "enliven": enliven, "expand": expand, "wrap_json": wrap_json, "drop": drop,
    "ask_back": ask_back, "decorate": decorate, "buccaneer": buccaneer,
}  # fmt: skip
"""By the name that a persona file uses."""
