"""Exports of Langfuse: traces and observations become turns, scores feedback.

Owns the field names of this product, in its tables, its HTTP answers and its downloads. The id of a trace or an
observation becomes the id of the turn, so that feedback finds it, also when it comes in another file or over HTTP.
Pure; never stores.
"""

from __future__ import annotations

from typing import Any

from afterword.formats.parsing import (
    bad,
    checked,
    dumps,
    feedback_of,
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


def is_langfuse(row: Json) -> bool:
    """A trace, an observation, or a score."""
    keys = row.keys()
    if "trace" in keys or {"input", "output"} <= keys:
        return bool(
            keys & {"trace", "traceId", "trace_id", "sessionId", "session_id", "observations", "userId", "user_id"}
        )
    return "name" in keys and bool(keys & {"traceId", "trace_id", "observationId", "observation_id"})


def langfuse(row: Json) -> list[Record]:
    """A trace with its observations and scores, one observation, or one score; camel or snake case."""
    if isinstance(row.get("trace"), dict):
        row = {**row["trace"], **{k: v for k, v in row.items() if k != "trace"}}
    if "input" not in row and "name" in row:
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
        fields = {"kind": "comment", "text": said}
    else:
        fields = {**rating(value), "text": comment}
    target = _get(row, "observationId") or _get(row, "traceId")
    return feedback_of(
        row.get("id"), aliases.get(str(target), target), fields, unix_time(_get(row, "timestamp", "createdAt")),
        source=_SOURCES.get(str(row.get("source")), "api"), user=text(_get(row, "authorUserId")),
        metadata={"name": row.get("name")},
    )  # fmt: skip


def _objects(value: Any) -> list[Json]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []
