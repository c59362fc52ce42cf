"""Langfuse: traces and observations are turns, scores are feedback; camel or snake case.

The id of a trace or an observation becomes the id of the turn, so that a score finds it, also from another file or
over HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from afterword.formats.export_filter import ExportFilter
from afterword.formats.format import Export, Format
from afterword.formats.parsing import (
    bad,
    checked,
    dumps,
    extra_fields,
    feedback_of,
    iso_time,
    mapping,
    parsed,
    rating,
    shown,
    text,
    turn_of,
    unix_time,
    words,
)
from afterword.records import Feedback, Json, Record, Turn

_ROLES = {"human": "user", "ai": "assistant", "model": "assistant"}


def recognise(row: Json) -> bool:
    """A trace, an observation, or a score."""
    keys = row.keys()
    if "trace" in keys or {"input", "output"} <= keys:
        return bool(
            keys & {"trace", "traceId", "trace_id", "sessionId", "session_id", "observations", "userId", "user_id"}
        )
    return bool(keys & {"name", "value"} and keys & {"traceId", "trace_id", "observationId", "observation_id"})


def read(row: Json) -> list[Record]:
    """A trace with its observations and scores, one observation, or one score; camel or snake case."""
    if isinstance(row.get("trace"), dict):
        row = {**row["trace"], **{k: v for k, v in row.items() if k != "trace"}}
    if "input" not in row and row.keys() & {"name", "value"}:
        if not _get(row, "traceId", "observationId"):
            raise bad("no_trace", "the score names no trace or observation; scores on sessions and runs teach nothing")
        return [_score(row, {})]
    if row.get("type") is not None or _get(row, "traceId"):
        return [_observation(row, row)]
    return _trace(row)


def trace_of(row: Json) -> str | None:
    """The trace to which a row of a generation or of a score belongs; None for a whole trace, and for a score that
    names the observation it is about."""
    whole = isinstance(row.get("trace"), dict) or isinstance(row.get("observations"), list)
    return None if whole or _get(row, "observationId") else text(_get(row, "traceId"))


def _get(row: Json, *names: str) -> Any:
    """The first of these fields that is there, in camel or snake case."""
    for name in names:
        snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
        for key in (name, snake):
            if row.get(key) not in (None, ""):
                return row[key]
    return None


def _trace(row: Json) -> list[Record]:
    """The last generation is the turn that has the trace's id; scores on the trace are about it."""
    observations = [o for o in _objects(row.get("observations")) if o.get("type") == "GENERATION"]
    observations.sort(key=lambda o: unix_time(_get(o, "startTime")) or 0.0)
    aliases: dict[str, str] = {}
    found: list[Record] = [_observation(o, row) for o in observations[:-1]]
    last = {**row, "id": _get(row, "id"), "type": "GENERATION"}
    if observations:
        last |= {k: v for k, v in observations[-1].items() if k != "id" and v is not None}
        aliases[str(observations[-1].get("id"))] = str(_get(row, "id"))
    found.append(_observation(last, row))
    return [*found, *(_score({"traceId": row.get("id"), **s}, aliases) for s in _objects(row.get("scores")))]


def _observation(row: Json, trace: Json) -> Turn:
    if row.get("type") not in (None, "GENERATION"):
        raise bad("no_generation", f"an observation of type {shown(row['type'], 40)} is no answer of a model")
    answer = _answer(parsed(row.get("output")))
    params = mapping(_get(row, "modelParameters"))
    about: Json = {
        "user": text(_get(trace, "userId")), "conversation": text(_get(trace, "sessionId")),
        "task": text(_get(trace, "traceName")) or text(trace.get("name")),
        "model": text(_get(row, "model", "providedModelName")) or "", "sampling": params,
    }  # fmt: skip
    usage = mapping(_get(row, "usageDetails"))
    if usage:
        about["usage"] = usage
    moment = unix_time(_get(row, "startTime", "timestamp"))
    return turn_of("langfuse", row.get("id"), _messages(parsed(row.get("input"))), answer, moment, about)


def _messages(value: Any) -> list[Json]:
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, str) and value:
        return [{"role": "user", "content": value}]
    if isinstance(value, dict):
        value = [value] if "role" in value else [{"role": "user", "content": dumps(value)}]
    if not isinstance(value, list) or not value:
        raise bad("no_messages", f"`input` is neither text nor messages: {shown(value, 120)}")
    return [checked(_known_role(m)) for m in value]


def _known_role(message: Any) -> Any:
    role = message.get("role", message.get("type")) if isinstance(message, dict) else None
    return {**message, "role": _ROLES.get(role, role)} if isinstance(role, str) else message


def _answer(value: Any) -> Json:
    choices = value.get("choices") if isinstance(value, dict) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        value = choices[0].get("message")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value:
        return {"role": "assistant", "content": value}
    if isinstance(value, dict) and ("content" in value or "tool_calls" in value):
        return checked({**value, "role": "assistant"})
    if isinstance(value, dict) and value:
        return {"role": "assistant", "content": dumps(value)}
    raise bad("no_answer", f"`output` is no answer: {shown(value, 120)}")


_SOURCES = {"ANNOTATION": "reviewer", "EVAL": "detector"}
_COLUMNS = frozenset((
    "id", "name", "value", "stringValue", "dataType", "comment", "source", "traceId", "observationId", "sessionId",
    "datasetRunId", "executionTraceId", "timestamp", "createdAt", "updatedAt", "eventTs", "isDeleted", "projectId",
    "environment", "authorUserId", "configId", "queueId", "longStringValue", "metadata", "user",
))  # fmt: skip
"""Fields of a score. Whatever else a row has is kept in the metadata."""


def _score(row: Json, aliases: dict[str, str]) -> Feedback:
    value, label = row.get("value"), _get(row, "stringValue")
    kind, comment = str(_get(row, "dataType") or ""), text(row.get("comment"))
    if kind == "BOOLEAN" and value in (0, 1):
        value = bool(value)
    if kind == "CORRECTION":
        fields: Json = {"kind": "edited", "final_text": words(label or value)}
    elif kind in ("TEXT", "CATEGORICAL") or isinstance(value, str):
        said = comment if kind == "CATEGORICAL" else words(label or value)
        if said is None:
            raise bad(
                "categorical", f"the category {shown(label or value, 60)} has no meaning here; it has no comment either"
            )
        fields = {"kind": "demonstration" if row.get("name") == "demonstration" else "comment", "text": said}
    elif value is None and comment:
        fields = {"kind": "comment", "text": comment}
    else:
        fields = {**rating(value), "text": comment}
    target = _get(row, "observationId") or _get(row, "traceId")
    user = text(row.get("user")) or text(_get(row, "authorUserId"))
    return feedback_of(
        row.get("id"), aliases.get(str(target), target), fields, unix_time(_get(row, "timestamp", "createdAt")),
        source=_SOURCES.get(str(row.get("source")), "api"), user=user,
        metadata={**extra_fields(row, _COLUMNS), "name": row.get("name")},
    )  # fmt: skip


def _objects(value: Any) -> list[Json]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def write_turns(rows: ExportFilter) -> Iterator[Json]:
    """One generation a row, with the fields of its trace."""
    for turn in rows.turns():
        moment = iso_time(turn.created_at)
        yield {
            "id": turn.id, "trace_id": turn.id, "type": "GENERATION", "name": turn.task, "trace_name": turn.task,
            "start_time": moment, "end_time": moment, "user_id": turn.user, "session_id": turn.conversation,
            "provided_model_name": turn.adapter or turn.model, "model_parameters": dumps(turn.sampling),
            "input": dumps(list(turn.messages)), "output": dumps(turn.answer), "usage_details": turn.usage,
        }  # fmt: skip


def write_scores(rows: ExportFilter) -> Iterator[Json]:
    """Scores: ratings as numbers, words as text, edits as corrections."""
    for row, _ in rows.feedback():
        score = _written_score(row)
        if score is not None:
            yield {
                "id": row.id, "trace_id": row.turn, "observation_id": row.turn, "comment": None,
                "timestamp": iso_time(row.occurred_at or row.created_at), "author_user_id": row.user,
                "source": {"reviewer": "ANNOTATION", "detector": "EVAL"}.get(row.source, "API"), **score,
            }  # fmt: skip


def _written_score(row: Feedback) -> Json | None:
    name = str(row.metadata.get("name") or row.kind)
    if row.kind == "rating" and row.value is not None:
        return {"name": name, "data_type": "NUMERIC", "value": row.value, "string_value": None, "comment": row.text}
    said = row.final_text if row.kind == "edited" else row.text
    if not said:
        return None
    kind = "CORRECTION" if row.kind == "edited" else "TEXT"
    return {"name": name, "data_type": kind, "value": 0, "string_value": said}


FORMAT = Format(
    name="langfuse",
    read=read,
    recognise=recognise,
    exports=(Export(what="turns", write=write_turns), Export(what="feedback", write=write_scores)),
    linked=True,
    events=True,
)
