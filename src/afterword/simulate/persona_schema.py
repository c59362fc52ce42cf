"""Validates a persona file: every fault as a sentence, before the first conversation.

Owns the allowed keys, the types of their values, the options that each checker and editor needs, and when a wish holds.
Reads no file and makes no persona; `personas` does both.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from afterword.simulate.checkers import CHECKERS, LANGUAGES, PASS, check
from afterword.simulate.editors import EDITORS
from afterword.simulate.traits import WORD

PHRASES = ("thanks", "silence", "wrong", "off_topic")
"""What every user says, of their own or of the common words."""
WISH_KEYS = frozenset(
    ("wants", "checker", "options", "editor", "complaints", "requests", "good", "bad", "after", "until", "every")
)
_TOP_KEYS = frozenset(("wants", "habits", "say", "questions"))
WISH_PHRASES = ("complaints", "requests")
"""What is said about one wish."""
COUNTS = ("patience", "flood")
"""Habits that are numbers and no rates."""

_TEXT = {"phrase": "phrase"}
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "opening": _TEXT, "closing": _TEXT, "recap": _TEXT, "mentions": _TEXT, "language": {"language": "language"},
    "brief": {"min_words": "count", "max_words": "count"}, "detailed": {"min_words": "count"},
    "emojis": {"least": "count"}, "bullets": {"least": "count"}, "lively": {"least": "count"},
    "simple": {"letters": "count", "words": "count"}, "avoids": {"words": "list"},
}  # fmt: skip
"""The options of each checker that has some, and of what kind they are; `_KINDS` says which must be there."""
_EDITOR_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "greet": _TEXT, "address": _TEXT, "sign": _TEXT, "conclude": _TEXT, "drop": {"words": "list"},
    "shorten": {"max_words": "count"}, "decorate": {"least": "count"},
}  # fmt: skip
_BRIEF = {"min_words": 5, "max_words": 40}
"""What the checker `brief` takes for an option that is not given."""


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
    known = _TOP_KEYS | ({"wishes"} if several else WISH_KEYS)
    found = [_unknown("key", key, known) for key in sorted(set(data) - known)]
    if several and (problem := _sentence("wants", data.get("wants"))):
        found.append(problem)
    if not _texts(data.get("questions", [])):
        found.append(f"questions is {data['questions']!r}, not a list of texts")
    broken = [f"{key} is {data[key]!r}, not a table" for key in ("say", "habits") if not _table(data.get(key, {}))]
    if several and not (isinstance(data["wishes"], list) and data["wishes"] and all(map(_table, data["wishes"]))):
        broken.append(f"wishes is {data['wishes']!r}, not one [[wishes]] table or more")
    if broken:
        return found + broken  # the rest is in these tables, and cannot be looked at
    wishes = written_wishes(data)
    found += _phrase_problems(data.get("say", {}), several)
    found += _habit_problems(data.get("habits", {}), habits)
    for number, wish in enumerate(wishes, 1):
        wants = wish.get("wants")
        which = f"wish {number} ({wants!r}): " if isinstance(wants, str) else f"wish {number}: "
        found += [f"{which if several else ''}{problem}" for problem in _wish_problems(wish, "" if several else "say.")]
    return found + _silence(wishes)


def written_wishes(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The wishes as written; a file with one wish has its keys at the top and its words under `say`."""
    if "wishes" in data:
        return list(data["wishes"])
    one = {key: value for key, value in data.items() if key in WISH_KEYS}
    return [one | {key: v for key, v in data.get("say", {}).items() if key in WISH_PHRASES}]


def held(conversation: int, after: int = 0, until: int | None = None, every: Iterable[int] = (0, 1)) -> bool:
    """Does a wish with these times hold in this conversation?"""
    k, n = every
    return after <= conversation and (until is None or conversation < until) and conversation % n == k


def _silence(wishes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The first conversation in which nothing is wished. Between two boundaries the same wishes are on, so that each
    stretch, the endless last one too, repeats itself after the least common multiple of their cycles."""
    times = [{key: wish[key] for key in ("after", "until", "every") if key in wish} for wish in wishes]
    if any(problem for time in times for problem in _time_problems(time)):
        return []  # said already
    starts = sorted({0, *(time[key] for time in times for key in ("after", "until") if key in time)})
    for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
        on = [time for time in times if held(start, **{**time, "every": (0, 1)})]
        cycle = math.lcm(*(time.get("every", (0, 1))[1] for time in on))
        # n cycles that fill 2**n conversations in a row fill all of them (Crittenden and Vanden Eynden, 1970).
        for conversation in range(start, int(min(end, start + min(cycle, 2 ** len(on))))):
            if not any(held(conversation, **time) for time in on):
                return [f"it wants nothing in conversation {conversation}: let a wish hold there (after, until, every)"]
    return []


def _unknown(what: str, key: str, known: Iterable[str]) -> str:
    return f"unknown {what} {key!r} ({what}s are {', '.join(sorted(known))})"


def _table(value: object) -> bool:
    return isinstance(value, dict)


def _sentence(key: str, value: object) -> str | None:
    if isinstance(value, str) and value.strip():
        return None
    return f"{key!r} is missing" if value is None else f"{key!r} is {value!r}, not a text"


def _phrase_problems(said: Mapping[str, Any], several: bool) -> Iterable[str]:
    known = PHRASES if several else (*PHRASES, *WISH_PHRASES)
    for key, value in said.items():
        if key in WISH_PHRASES and several:
            yield f"{key} stands under [say], but each [[wishes]] has its own: move it there"
        elif key not in known:
            yield f"unknown phrases say.{key} (phrases are {', '.join(sorted(known))})"
        elif key in PHRASES and not _texts(value):
            yield f"say.{key} is {value!r}, not a list of texts"


def _habit_problems(habits: Mapping[str, Any], known: Collection[str]) -> Iterable[str]:
    for key, value in habits.items():
        if key not in known:
            yield _unknown("habit", key, known)
        elif key in COUNTS and not _whole(value, 0):
            yield f"habit {key} is {value!r}, not a whole number from 0"
        elif key not in COUNTS and (
            not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1
        ):
            yield f"habit {key} is {value!r}, not a rate from 0 to 1"


def _wish_problems(data: Mapping[str, Any], say: str) -> list[str]:
    """`say` is what stands before the phrases' keys where the file has one wish."""
    found = [_unknown("key", key, WISH_KEYS) for key in sorted(set(data) - WISH_KEYS)] if not say else []
    if problem := _sentence("wants", data.get("wants")):
        found.append(problem)
    if data.get("complaints", []) == []:
        found.append(f"no phrases under {say}complaints" if say else "no complaints: write a list of them under it")
    found += [
        f"{say}{key} is {data[key]!r}, not a list of texts" for key in WISH_PHRASES if not _texts(data.get(key, []))
    ]
    found += _time_problems(data)
    checker, editor = data.get("checker"), data.get("editor")
    known = isinstance(checker, str) and checker in CHECKERS
    if not known:
        found.append(f"checker is {checker!r}, not one of {', '.join(sorted(CHECKERS))}")
    if editor is not None and (not isinstance(editor, str) or editor not in EDITORS):
        found.append(f"editor is {editor!r}, not one of {', '.join(sorted(EDITORS))}")
    given = data.get("options", {})
    options = _option_problems(given, str(checker), str(editor)) if known or not _table(given) else []
    return [*found, *options, *_example_problems(data, decidable=known and not options)]


def _example_problems(data: Mapping[str, Any], decidable: bool) -> Iterable[str]:
    """What is wrong with `good` and `bad`: a wish that its own good answer does not grant would never be granted."""
    for key in ("good", "bad"):
        if problem := _sentence(key, data.get(key)):
            yield f"{problem}: write an answer that {'grants' if key == 'good' else 'does not grant'} the wish"
        elif decidable:
            checker, text = data["checker"], data[key]
            mark = check(checker, text, options=data.get("options", {}))
            if mark.passed != (key == "good"):
                yield (
                    f"{key} is {reprlib.repr(text)}, which {checker!r} grades {mark.grade} and "
                    f"{'grants' if mark.passed else 'does not grant'} (it grants from {PASS} on): "
                    f"write {'a better' if key == 'good' else 'a worse'} answer or change the options"
                )


def _time_problems(data: Mapping[str, Any]) -> list[str]:
    found = [
        f"{key} is {data[key]!r}, not the number of a conversation"
        for key in ("after", "until")
        if key in data and not _whole(data[key], 0)
    ]
    every = data.get("every", [0, 1])
    if not (isinstance(every, list) and len(every) == 2 and all(_whole(n, 0) for n in every) and every[0] < every[1]):
        found.append(f"every is {every!r}, not [k, n] with k below n")
    if not found and "until" in data and data["until"] <= (after := data.get("after", 0)):
        found.append(
            f"until is {data['until']}, not above {after} where the wish begins: raise it, or it is never wished"
        )
    return found


def _option_problems(options: object, checker: str, editor: str) -> list[str]:
    if not isinstance(options, dict):
        return [f"options is {options!r}, not a table"]
    wanted = {**_EDITOR_OPTIONS.get(editor, {}), **OPTIONS.get(checker, {})}
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
    if checker == "brief" and not found:
        least, most = (options.get(key, default) for key, default in _BRIEF.items())
        if least > most:
            usual = " and ".join(map(str, _BRIEF.values()))
            found.append(
                f"min_words is {least} and max_words {most} (where not given, {usual}): no answer can have both, "
                "lower the one or raise the other"
            )
    return found
