"""The native format: records as `export` writes them, and events as `POST /v1/feedback` takes them.

Only turns and feedback come in, with every field checked: all later stages read what is stored. Pure; never stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from afterword.errors import UsageError
from afterword.formats.export_filter import ExportFilter
from afterword.formats.format import Export, Format, Writer
from afterword.formats.parsing import bad, checked, shown
from afterword.kinds import KINDS
from afterword.records import (
    FEEDBACK_KINDS,
    RECORDS,
    SCHEMA_VERSION,
    SOURCES,
    Feedback,
    Interaction,
    Json,
    Record,
    Turn,
    content_hash,
)
from afterword.store.codec import TIMES


def recognise(row: Json) -> bool:
    """A record, or an event."""
    return is_record(row) or ({"turn", "kind"} <= row.keys() and isinstance(row["kind"], str))


def is_record(row: Json) -> bool:
    """Is this a record with the name of its table?"""
    return {"record", "id", "schema"} <= row.keys()


def read(row: Json) -> list[Record]:
    """The record of a row, or the feedback of an event.

    Raises:
        UsageError: A record that is derived or unknown, or an invalid field.
    """
    return [read_record(row) if is_record(row) or "record" in row else read_event(row)]


# ---- records

_TABLES: dict[str, type[Turn] | type[Feedback]] = {kind.TABLE: kind for kind in (Turn, Feedback)}
"""What was said and done. All else is derived from it here, under the checks of this directory."""
_DERIVED = {*(kind.TABLE for kind in RECORDS), "reviews", "erasures"} - _TABLES.keys()
_WHY_DERIVED = (
    "it would pass by consent, the limits of weight, the filters, redaction and the gate of this directory. Import the "
    "turns and the feedback; `afterword collect` makes interactions anew. A full backup is a copy of the data directory"
)


def read_record(row: Json) -> Record:
    """A turn or feedback as `export` writes it."""
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
    elif values.get("kind") not in FEEDBACK_KINDS:
        given = shown(values.get("kind"), 60)
        raise bad("bad_record", f"`kind` of {name} is {given}; known: {', '.join(FEEDBACK_KINDS)}")
    try:
        return kind.from_dict(values)
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

# ---- events

_STRINGS = ("id", "turn", "kind", "text", "final_text", "output", "user", "source")
_KNOWN = (*_STRINGS, "value", "exit_code", "occurred_at", "metadata")


def read_event(event: Json) -> Feedback:
    """Feedback in the form of `POST /v1/feedback`. Without an `id` the hash of the content is the id; unknown fields
    are kept in the metadata.

    Raises:
        UsageError: With `param` for the invalid field.
    """
    for name in _STRINGS:
        value = event.get(name)
        if value is not None and not isinstance(value, str):
            raise _invalid(name, f"`{name}` must be a string, got {shown(value, 80)}.")
    turn, kind, source = event.get("turn"), event.get("kind"), event.get("source", "api")
    if not turn:
        raise _invalid("turn", "`turn` is missing: the id of the answer that the event is about.")
    if kind not in KINDS:
        hint = "Retract with DELETE /v1/feedback/{id}." if kind == "retraction" else f"Known: {', '.join(KINDS)}."
        raise _invalid("kind", f"`kind` is {shown(kind, 80)}, which cannot be sent. {hint}")
    if source not in SOURCES:
        raise _invalid("source", f"`source` is {shown(source, 80)}; it must be one of {', '.join(SOURCES)}.")
    value = _finite(event.get("value"), "value")
    if kind == "rating" and value is not None and not -1 <= value <= 1:
        raise _invalid("value", f"`value` of a rating must lie in -1 .. 1, got {value:g}.")
    exit_code = event.get("exit_code")
    if exit_code is not None and (not isinstance(exit_code, int) or isinstance(exit_code, bool)):
        raise _invalid("exit_code", f"`exit_code` must be an integer, got {shown(exit_code, 80)}.")
    need = KINDS[kind].carries
    if need and event.get(need) in (None, ""):
        raise _invalid(need, f"an event of kind `{kind}` needs `{need}`.")
    metadata = event.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise _invalid("metadata", f"`metadata` must be an object, got {shown(metadata, 80)}.")
    return Feedback(
        id=event.get("id") or "fb-" + content_hash("feedback", {k: v for k, v in event.items() if k != "id"}),
        turn=turn,
        kind=kind,
        text=event.get("text"),
        final_text=event.get("final_text"),
        value=value,
        exit_code=exit_code,
        output=event.get("output"),
        user=event.get("user"),
        occurred_at=_moment(event.get("occurred_at"), "occurred_at"),
        source=source,
        metadata={**{k: v for k, v in event.items() if k not in _KNOWN}, **metadata},
    )


def _invalid(name: str, message: str) -> UsageError:
    return bad("bad_event", message, param=name)


def _finite(value: Any, name: str) -> float | None:
    """A finite number or None."""
    if value is None:
        return None
    try:
        fits = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        fits = False
    if not fits:
        raise _invalid(name, f"`{name}` must be a finite number, got {shown(value, 80)}.")
    return float(value)


def _moment(value: Any, name: str) -> float | None:
    """Unix seconds from a number or an ISO 8601 string (UTC when it names no zone)."""
    moment = _finite(value, name) if not isinstance(value, str) else _of_calendar(value, name)
    if moment is not None and not TIMES[0] <= moment < TIMES[1]:
        raise _invalid(name, f"`{name}` is {moment!r}; it must be a second of the years 1 to 9999.")
    return moment


def _of_calendar(value: str, name: str) -> float:
    try:
        when = datetime.fromisoformat(value)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise _invalid(name, f"`{name}` must be Unix seconds or an ISO 8601 time, got {value!r:.80}.") from None


# ---- writing


def _write(kind: type[Record]) -> Writer:
    """All records of a table, with its name."""

    def rows(filtered: ExportFilter) -> Iterator[Json]:
        return ({"record": kind.TABLE, **row.to_dict()} for row in filtered.store.rows(kind))

    return rows


FORMAT = Format(
    name="afterword",
    read=read,
    recognise=recognise,
    exports=tuple(Export(what=kind.TABLE, write=_write(kind)) for kind in (Turn, Feedback, Interaction)),
    events=True,
)
