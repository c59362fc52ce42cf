"""Our own form on the way in: turns and feedback as `export` writes them, checked field by field.

Owns which records a file may bring, and what each of their fields may hold: a file is nobody's promise, and what is
stored is read by every later stage. Pure; never stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from afterword.formats.parsing import bad, checked, shown
from afterword.records import RECORDS, SCHEMA_VERSION, Feedback, Json, Record, Turn
from afterword.store.codec import TIMES

_TABLES: dict[str, type[Turn] | type[Feedback]] = {kind.TABLE: kind for kind in (Turn, Feedback)}
"""What was said and done. All else is derived from it here, under the checks of this directory."""
_DERIVED = {*(kind.TABLE for kind in RECORDS), "reviews", "erasures"} - _TABLES.keys()
_WHY_DERIVED = (
    "it would pass by consent, the limits of weight, the filters, redaction and the gate of this directory. Import the "
    "turns and the feedback; `afterword collect` makes interactions anew. A full backup is a copy of the data directory"
)


def afterword(row: Json) -> list[Record]:
    """The record of a row. UsageError for one that is derived, unknown, or holds what its fields cannot."""
    name = str(row.get("record"))
    if name in _DERIVED:
        raise bad(f"derived_{name}", f"a record of {name} from a file is not taken in: {_WHY_DERIVED}")
    kind = _TABLES.get(name)
    if kind is None:
        raise bad("unknown_record", f"`record` is {shown(row.get('record'), 60)}; known: {', '.join(_TABLES)}")
    values = {name: value for name, value in row.items() if name != "record"}
    for field, value in values.items():
        fits, what = _FIELDS.get(field, (None, ""))
        if fits is not None and not fits(value):
            raise bad("bad_record", f"`{field}` of {name} is {shown(value, 60)}; it must be {what}")
    if kind is Turn:
        _check_messages(values)
    try:
        return [kind.from_dict(values)]
    except TypeError as error:
        raise bad("bad_record", f"not a record of {kind.TABLE}: {error}") from error


def _check_messages(values: Json) -> None:
    messages, answer = values.get("messages"), values.get("answer")
    if not isinstance(messages, list) or not isinstance(answer, dict):
        raise bad("bad_record", "a turn needs `messages`, a list, and `answer`, a message")
    for message in (*messages, {"role": "assistant", **answer}):
        checked(message)


def _text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value is None
    return abs(value) < 1e15 and math.isfinite(value)


def _whole(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _list_of(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, list) and all(map(one, value)))


_FIELDS: dict[str, tuple[Callable[[Any], bool] | None, str]] = {
    **dict.fromkeys(("prompt_ids", "completion_ids"),
                    (_list_of(lambda one: one is not None and _whole(one)), "a list of token ids")),
    **dict.fromkeys(("adapter", "finish_reason", "user", "key", "conversation", "previous", "task", "team", "thread",
                     "missing_ids", "unit", "canary", "text", "final_text", "output", "next_turn", "retracts"),
                    (_text, "a text")),
    **dict.fromkeys(("model", "source", "turn", "kind"), (lambda value: isinstance(value, str), "a text")),
    **dict.fromkeys(("sampling", "usage", "metadata"), (_object, "an object")),
    **dict.fromkeys(("created_at", "occurred_at"),
                    (lambda value: _number(value) and TIMES[0] <= (value or 0) <= TIMES[1], "a time of the calendar")),
    **dict.fromkeys(("seconds", "value"), (_number, "a number")),
    "logprobs": (_list_of(_number), "a list of numbers"),
    "tools": (_list_of(_object), "a list of objects"),
    "exit_code": (_whole, "a whole number"),
    "consent": (lambda value: isinstance(value, bool), "true or false"),
    "schema": (lambda value: value is not True and value in range(1, SCHEMA_VERSION + 1), "a version that is known"),
}  # fmt: skip
"""Field -> what it may hold, and that in words. An id is checked where it is stored."""
