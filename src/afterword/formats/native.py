"""Reads and writes the native format: records of `export`, and events of `POST /v1/feedback`.

Only turns, episodes and feedback come in, with every field checked: all later stages read what is
stored. Pure; never stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from afterword.errors import UsageError
from afterword.formats.export_filter import ExportFilter
from afterword.formats.format import Export, Format, Writer
from afterword.formats.parsing import bad, checked, shown
from afterword.kinds import KINDS
from afterword.records import (
    EPISODE_STATUS,
    FEEDBACK_KINDS,
    RECORDS,
    SCHEMA_VERSION,
    SOURCES,
    Episode,
    EpisodeEnd,
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

_TABLES: dict[str, type[Record]] = {kind.TABLE: kind for kind in (Turn, Episode, Feedback, EpisodeEnd)}
"""What was said and done. All else is derived from it here, under the checks of this directory."""
_DERIVED = {*(kind.TABLE for kind in RECORDS), "reviews", "erasures"} - _TABLES.keys()
_WHY_DERIVED = (
    "it would pass by consent, the limits of weight, the filters, redaction and the gate of this directory. Import the "
    "turns and the feedback; `afterword collect` makes interactions anew. A full backup is a copy of the data directory"
)


def read_record(row: Json) -> Record:
    """A turn, an episode or feedback as `export` writes it."""
    name = str(row.get("record"))
    if name in _DERIVED:
        raise bad(f"derived_{name}", f"records of {name} cannot be imported: {_WHY_DERIVED}")
    kind = _TABLES.get(name)
    if kind is None:
        raise bad("unknown_record", f"`record` is {shown(row.get('record'), 60)}; known: {', '.join(_TABLES)}")
    values = {name: value for name, value in row.items() if name != "record"}
    if (invalid := _invalid_field(values, _FIELDS)) is not None:
        field, words = invalid
        raise bad("bad_record", f"`{field}` of {name} must be {words}, got {shown(values[field], 60)}")
    if kind is Turn:
        _check_messages(values)
    elif kind is Feedback and values.get("kind") not in FEEDBACK_KINDS:
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


def _one_of(kind: Any, words: str, *names: str) -> dict[str, tuple[TypeAdapter[Any], str]]:
    return dict.fromkeys(names, (TypeAdapter(kind, config=ConfigDict(strict=True)), words))


Number = Annotated[float, Field(gt=-1e15, lt=1e15, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=TIMES[0], le=TIMES[1])]
Integer = Annotated[int, Field(gt=-(2**31), lt=2**31)]
_FIELDS = {
    **_one_of(list[Integer] | None, "a list of token ids", "prompt_ids", "completion_ids"),
    **_one_of(str | None, "a string", "adapter", "finish_reason", "user", "key", "conversation", "previous", "task",
              "team", "thread", "missing_ids", "unit", "canary", "text", "final_text", "output", "next_turn",
              "retracts", "episode_id", "task_id", "harness", "parent_id", "reason"),
    **_one_of(str, "a string", "model", "source", "turn", "kind", "episode"),
    **_one_of(dict[str, Any], "an object", "sampling", "usage", "metadata", "rubric", "metrics"),
    **_one_of(Moment | None, "Unix seconds in the years 1 to 9999", "created_at", "occurred_at", "started_at",
              "ended_at"),
    **_one_of(Literal[*EPISODE_STATUS], f"one of {', '.join(EPISODE_STATUS)}", "status"),
    **_one_of(Number | None, "a number", "seconds", "value", "outcome"),
    **_one_of(list[Number | None] | None, "a list of numbers", "logprobs", "sampled_logprobs"),
    **_one_of(list[dict[str, Any]] | None, "a list of objects", "tools"),
    **_one_of(Integer | None, "an integer", "exit_code", "episode_index", "seed"),
    **_one_of(bool, "true or false", "consent"),
    **_one_of(Annotated[int, Field(ge=1, le=SCHEMA_VERSION)], "a known version", "schema"),
}  # fmt: skip
"""Field of a record -> valid values, and the same in words. `store.codec` checks ids."""
_EVENT_FIELDS = {
    **_one_of(
        str | None, "a string", "id", "turn", "kind", "text", "final_text", "output", "user", "source", "episode"
    ),
    **_one_of(Annotated[float, Field(allow_inf_nan=False)] | None, "a finite number", "value"),
    **_one_of(int | None, "an integer", "exit_code"),
    **_one_of(dict[str, Any] | None, "an object", "metadata"),
    **_one_of(Moment | str | None, "Unix seconds or an ISO 8601 time in the years 1 to 9999", "occurred_at"),
}
"""The same for an event."""


def _invalid_field(row: Json, fields: dict[str, tuple[TypeAdapter[Any], str]]) -> tuple[str, str] | None:
    """(name, valid values) of the first invalid field."""
    for name in filter(fields.__contains__, row):
        adapter, words = fields[name]
        try:
            adapter.validate_python(row[name])
        except ValidationError:
            return name, words
    return None


# ---- events


def read_event(event: Json) -> Feedback:
    """Feedback in the form of `POST /v1/feedback`. Without an `id` the hash of the content is the id; unknown fields
    are kept in the metadata.

    Raises:
        UsageError: With `param` for the invalid field.
    """
    if (invalid := _invalid_field(event, _EVENT_FIELDS)) is not None:
        name, words = invalid
        raise _invalid(name, f"`{name}` must be {words}, got {shown(event[name], 80)}.")
    turn, kind, source = event.get("turn"), event.get("kind"), event.get("source", "api")
    if kind == "outcome" and not turn:
        turn = event.get("episode")
    if not turn:
        raise _invalid("turn", "`turn` is missing: give the id of an answer.")
    if kind not in KINDS:
        hint = "Retract with DELETE /v1/feedback/{id}." if kind == "retraction" else f"Known: {', '.join(KINDS)}."
        raise _invalid("kind", f"`kind` has the invalid value {shown(kind, 80)}. {hint}")
    if source not in SOURCES:
        raise _invalid("source", f"`source` must be one of {', '.join(SOURCES)}, got {shown(source, 80)}.")
    value = event.get("value")
    if kind == "rating" and value is not None and not -1 <= value <= 1:
        raise _invalid("value", f"`value` of a rating must lie in -1 .. 1, got {value:g}.")
    need = KINDS[kind].carries
    if need and event.get(need) in (None, ""):
        raise _invalid(need, f"an event of kind `{kind}` needs `{need}`.")
    return Feedback(
        id=event.get("id") or "fb-" + content_hash("feedback", {k: v for k, v in event.items() if k != "id"}),
        turn=turn,
        kind=kind,
        text=event.get("text"),
        final_text=event.get("final_text"),
        value=None if value is None else float(value),
        exit_code=event.get("exit_code"),
        output=event.get("output"),
        user=event.get("user"),
        occurred_at=_moment(event.get("occurred_at")),
        source=source,
        metadata=_metadata(event, kind),
    )


def _metadata(event: Json, kind: str) -> Json:
    """The unknown fields; of a reward its episode, rubric items and metrics, checked."""
    rest = {k: v for k, v in event.items() if k not in _EVENT_FIELDS} | (event.get("metadata") or {})
    if event.get("episode") is not None:
        rest["episode"] = event["episode"]
    if kind == "outcome" and "value" not in event:
        rest["unset"] = ["value"]  # None is a reward that cannot be scored
    for name in ("rubric", "metrics") if kind == "outcome" else ():
        if not isinstance(given := rest.get(name, {}), dict):
            raise _invalid(name, f"`{name}` must be an object of numbers by name, got {shown(given, 80)}.")
        for item, number in given.items():
            unscored = number is None and name == "rubric"
            if not unscored and (isinstance(number, bool) or not isinstance(number, int | float) or number - number):
                raise _invalid(name, f"`{name}.{item}` must be a finite number, got {shown(number, 80)}.")
    return rest


def _invalid(name: str, message: str) -> UsageError:
    return bad("bad_event", message, param=name)


def _moment(value: float | str | None) -> float | None:
    """Unix seconds from a number or an ISO 8601 string (UTC when it names no zone)."""
    if not isinstance(value, str):
        return None if value is None else float(value)
    try:
        when = datetime.fromisoformat(value)
        moment = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        if TIMES[0] <= moment < TIMES[1]:
            return moment
    except (ValueError, OverflowError):
        pass
    _, words = _EVENT_FIELDS["occurred_at"]
    raise _invalid("occurred_at", f"`occurred_at` must be {words}, got {value!r:.80}.")


# ---- writing


def _write(*kinds: type[Record]) -> Writer:
    """All records of these tables, with the name of their table."""

    def rows(filtered: ExportFilter) -> Iterator[Json]:
        return ({"record": kind.TABLE, **row.to_dict()} for kind in kinds for row in filtered.store.rows(kind))

    return rows


FORMAT = Format(
    name="afterword",
    read=read,
    recognise=recognise,
    exports=(
        *(Export(what=kind.TABLE, write=_write(kind)) for kind in (Turn, Feedback, Interaction)),
        Export(what=Episode.TABLE, write=_write(Episode, EpisodeEnd)),
    ),
    events=True,
)
