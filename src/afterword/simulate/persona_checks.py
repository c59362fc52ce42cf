"""What can be wrong with a persona file: every fault as a sentence, before anybody talks.

Owns the allowed keys, the types of their values and the options that each checker and editor needs. Reads no file and
makes no persona; `personas` does both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from afterword.simulate.checkers import CHECKERS, LANGUAGES
from afterword.simulate.editors import EDITORS
from afterword.simulate.traits import WORD

PHRASES = ("thanks", "silence", "wrong", "off_topic")
"""What every user says, of their own or of the common words."""
WISH_KEYS = frozenset(
    ("wants", "checker", "options", "editor", "complaints", "requests", "good", "bad", "after", "until", "every")
)
COUNTS = ("patience", "flood")
"""Habits that are numbers and no rates."""

_TEXT = {"phrase": "phrase"}
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "opening": _TEXT, "closing": _TEXT, "recap": _TEXT, "mentions": _TEXT, "language": {"language": "language"},
    "brief": {"min_words": "count", "max_words": "count"}, "detailed": {"min_words": "count"},
    "emojis": {"least": "count"}, "bullets": {"least": "count"}, "lively": {"least": "count"},
    "simple": {"letters": "count", "words": "count"}, "avoids": {"words": "list"},
}  # fmt: skip
_EDITOR_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "greet": _TEXT, "address": _TEXT, "sign": _TEXT, "conclude": _TEXT, "drop": {"words": "list"},
    "shorten": {"max_words": "count"}, "decorate": {"least": "count"},
}  # fmt: skip


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)


_KINDS: Mapping[str, tuple[str, bool, Callable[[Any], bool]]] = {
    "phrase": ("a text with a word in it", True, lambda v: isinstance(v, str) and WORD.search(v) is not None),
    "language": (f"one of {', '.join(sorted(LANGUAGES))}", True, lambda v: isinstance(v, str) and v in LANGUAGES),
    "list": ("a list of words", True, lambda v: _texts(v) and bool(v)),
    "count": ("a whole number from 1", False, lambda v: _whole(v, 1)),
}
"""What an option is, whether it must be there, and its test."""


def persona_problems(data: Mapping[str, Any], habits: Collection[str]) -> list[str]:
    """Everything that is wrong with a file as read, as sentences without an end; `habits` are the known ones."""
    several = "wishes" in data
    found = [f"unknown key {key!r}" for key in _unknown(data, several)]
    found += [f"{key} is {data[key]!r}, not a table" for key in ("say", "habits") if not _table(data.get(key, {}))]
    if several and not (isinstance(data["wishes"], list) and data["wishes"] and all(map(_table, data["wishes"]))):
        return [*found, f"wishes is {data['wishes']!r}, not one [[wishes]] table or more"]
    if several and (problem := _sentence("wants", data.get("wants"))):
        found.append(problem)
    if not _texts(data.get("questions", [])):
        found.append(f"questions is {data['questions']!r}, not a list of texts")
    if found:
        return found
    said = data.get("say", {})
    found += _phrase_problems(said, several)
    found += _habit_problems(data.get("habits", {}), habits)
    return [*found, *(problem for wish in written_wishes(data) for problem in _wish_problems(wish))]


def written_wishes(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The wishes as written; a file with one wish has its keys at the top and its words under `say`."""
    if "wishes" in data:
        return list(data["wishes"])
    one = {key: value for key, value in data.items() if key in WISH_KEYS}
    return [one | {key: v for key, v in data.get("say", {}).items() if key in ("complaints", "requests")}]


def _unknown(data: Mapping[str, Any], several: bool) -> list[str]:
    known = {"wants", "wishes", "habits", "say", "questions"} | (set() if several else WISH_KEYS)
    return sorted(set(data) - known)


def _table(value: object) -> bool:
    return isinstance(value, dict)


def _sentence(key: str, value: object) -> str | None:
    if isinstance(value, str) and value.strip():
        return None
    return f"{key!r} is missing" if value is None else f"{key!r} is {value!r}, not a text"


def _phrase_problems(said: Mapping[str, Any], several: bool) -> list[str]:
    spoken = {*PHRASES, *(() if several else ("complaints", "requests"))}
    found = [f"unknown phrases say.{key}" for key in sorted(set(said) - spoken)]
    return found + [
        f"say.{k} is {said[k]!r}, not a list of texts" for k in PHRASES if k in said and not _texts(said[k])
    ]


def _habit_problems(habits: Mapping[str, Any], known: Collection[str]) -> Iterable[str]:
    for key, value in habits.items():
        if key not in known:
            yield f"unknown habit {key!r} (habits are {', '.join(sorted(known))})"
        elif key in COUNTS and not _whole(value, 0):
            yield f"habit {key} is {value!r}, not a whole number from 0"
        elif key not in COUNTS and (not isinstance(value, int | float) or value is True or not 0 <= value <= 1):
            yield f"habit {key} is {value!r}, not a rate from 0 to 1"


def _wish_problems(data: Mapping[str, Any]) -> list[str]:
    found = [f"unknown key {key!r} in a wish" for key in sorted(set(data) - WISH_KEYS)]
    if problem := _sentence("wants", data.get("wants")):
        found.append(problem)
    checker, editor = data.get("checker"), data.get("editor")
    if not isinstance(checker, str) or checker not in CHECKERS:
        found.append(f"checker is {checker!r}, not one of {', '.join(sorted(CHECKERS))}")
    if editor is not None and (not isinstance(editor, str) or editor not in EDITORS):
        found.append(f"editor is {editor!r}, not one of {', '.join(sorted(EDITORS))}")
    found += [
        f"{key} is {data[key]!r}, not a text" for key in ("good", "bad") if not isinstance(data.get(key, ""), str)
    ]
    if not data.get("complaints"):
        found.append("no phrases under say.complaints")
    for key in ("complaints", "requests"):
        if not _texts(data.get(key, [])):
            found.append(f"{key} is {data[key]!r}, not a list of texts")
    return found + _time_problems(data) + _option_problems(data.get("options", {}), str(checker), str(editor))


def _time_problems(data: Mapping[str, Any]) -> list[str]:
    found = [
        f"{key} is {data[key]!r}, not the number of a conversation"
        for key in ("after", "until")
        if key in data and not _whole(data[key], 0)
    ]
    every = data.get("every", [0, 1])
    if not (isinstance(every, list) and len(every) == 2 and all(_whole(n, 0) for n in every) and every[0] < every[1]):
        found.append(f"every is {every!r}, not [k, n] with k below n")
    return found


def _option_problems(options: object, checker: str, editor: str) -> list[str]:
    if not isinstance(options, dict):
        return [f"options is {options!r}, not a table"]
    wanted = {**_EDITOR_OPTIONS.get(editor, {}), **_OPTIONS.get(checker, {})}
    found = [
        f"unknown option {key!r} of {checker!r} (it knows {', '.join(sorted(wanted)) or 'none'})"
        for key in sorted(set(options) - set(wanted))
    ]
    for key, kind in wanted.items():
        what, needed, fits = _KINDS[kind]
        if key not in options and needed:
            found.append(f"option {key!r} of {checker!r} is missing: {what}")
        elif key in options and not fits(options[key]):
            found.append(f"option {key!r} of {checker!r} is {options[key]!r}, not {what}")
    return found
