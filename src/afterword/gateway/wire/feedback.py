"""Feedback JSON of several dialects to `Feedback` records (and, for the mission's `events`, an imported Turn).

Owns what a usable event is and how other products' events read; never stores, never decides what an event teaches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from afterword.errors import UsageError
from afterword.records import FEEDBACK_KINDS, SOURCES, Feedback, Json, Record, Turn, content_hash
from afterword.store.codec import TIMES

MAX_EVENTS = 1000
_STRINGS = ("id", "turn", "kind", "text", "final_text", "output", "user", "source")
_FIELDS = (*_STRINGS, "value", "exit_code", "occurred_at", "metadata")
_KINDS = tuple(kind for kind in FEEDBACK_KINDS if kind != "retraction")
_NEEDS = {
    "edited": "final_text",
    "rating": "value",
    "follow_up": "text",
    "comment": "text",
    "demonstration": "text",
    "executed": "exit_code",
    "tests": "exit_code",
}
_ACTIONS = ("accepted", "edited", "retried", "abandoned")


def parse_event(event: Any) -> list[Record]:
    """The records of one event in any accepted dialect. UsageError says which field is wrong and why."""
    if not isinstance(event, dict):
        raise UsageError(f"an event must be an object, got {event!r:.80}.")
    for mark, read in _DIALECTS:
        if mark in event and "kind" not in event:
            return read(event)
    return [_own(event)]


def _own(event: Json) -> Feedback:
    for name in _STRINGS:
        value = event.get(name)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"`{name}` must be a string, got {value!r:.80}.", param=name)
    turn, kind, source = event.get("turn"), event.get("kind"), event.get("source", "api")
    if not turn:
        raise UsageError("`turn` is missing: the id of the answer that the event is about.", param="turn")
    if kind not in _KINDS:
        hint = "Retract with DELETE /v1/feedback/{id}." if kind == "retraction" else f"Known: {', '.join(_KINDS)}."
        raise UsageError(f"`kind` is {kind!r:.80}, which cannot be sent. {hint}", param="kind")
    if source not in SOURCES:
        raise UsageError(f"`source` is {source!r:.80}; it must be one of {', '.join(SOURCES)}.", param="source")
    value = number(event.get("value"), "value")
    if kind == "rating" and value is not None and not -1 <= value <= 1:
        raise UsageError(f"`value` of a rating must lie in -1 .. 1, got {value:g}.", param="value")
    exit_code = event.get("exit_code")
    if exit_code is not None and (not isinstance(exit_code, int) or isinstance(exit_code, bool)):
        raise UsageError(f"`exit_code` must be an integer, got {exit_code!r:.80}.", param="exit_code")
    _check_needs(kind, event)
    metadata = event.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UsageError(f"`metadata` must be an object, got {metadata!r:.80}.", param="metadata")
    # Whatever else was sent is kept, not interpreted.
    metadata = {**{k: v for k, v in event.items() if k not in _FIELDS}, **metadata}
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
        occurred_at=moment(event.get("occurred_at"), "occurred_at"),
        source=source,
        metadata=metadata,
    )


def _check_needs(kind: str, event: Json) -> None:
    need = _NEEDS.get(kind)
    if need is not None and event.get(need) in (None, ""):
        raise UsageError(f"an event of kind `{kind}` needs `{need}`.", param=need)


def number(value: Any, name: str) -> float | None:
    """A finite number or None."""
    if value is None:
        return None
    try:
        fits = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        fits = False
    if not fits:
        raise UsageError(f"`{name}` must be a finite number, got {value!r:.80}.", param=name)
    return float(value)


def moment(value: Any, name: str) -> float | None:
    """Unix seconds from a number or an ISO 8601 string (UTC when it names no zone)."""
    found = number(value, name) if not isinstance(value, str) else _of_calendar(value, name)
    if found is not None and not TIMES[0] <= found < TIMES[1]:
        raise UsageError(f"`{name}` is {found!r}: no second of the years 1 to 9999.", param=name)
    return found


def _of_calendar(value: str, name: str) -> float:
    try:
        when = datetime.fromisoformat(value)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(f"`{name}` must be Unix seconds or an ISO 8601 time, got {value!r:.80}.", param=name) from None


def _scored(event: Json, turn: Any, name: str, value: Any, comment: Any) -> list[Record]:
    """A named score of another product: true/false and -1 .. 1 are ratings, words are comments."""
    metadata = {k: v for k, v in event.items() if k not in ("id", "value", "comment", "user")}
    own: Json = {"turn": turn, "kind": "rating", "metadata": metadata, "user": event.get("user")}
    if event.get("id") is not None:
        own["id"] = event["id"]
    own["occurred_at"] = _stamp(event)
    if comment is not None:
        own["text"] = comment
    if isinstance(value, bool):
        own["value"] = 1.0 if value else -1.0
    elif isinstance(value, str):
        own |= {"kind": "demonstration" if name == "demonstration" else "comment", "text": value}
    elif value is None and comment:
        own["kind"] = "comment"
    else:
        own["value"] = value
    return [_own(own)]


def _stamp(event: Json) -> float | None:
    """When the score was given, if the event says so in a form that is understood; the event keeps its own field."""
    for name in ("occurred_at", "timestamp", "updatedAt", "createdAt"):
        if event.get(name) is not None:
            try:
                return moment(event[name], name)
            except UsageError:
                return None
    return None


def _tensorzero(event: Json) -> list[Record]:
    tags = event.get("tags")
    named = tags.get("user_id") or tags.get("user") if isinstance(tags, dict) else None
    said = {**event, "user": named} if isinstance(named, str) and "user" not in event else event
    return _scored(said, event["inference_id"], event.get("metric_name", ""), event.get("value"), None)


def _langfuse(event: Json) -> list[Record]:
    value = event.get("value")
    if event.get("dataType") == "BOOLEAN" and value in (0, 1):
        value = bool(value)
    turn = event.get("observationId") or event.get("traceId")
    return _scored(event, turn, event.get("name", ""), value, event.get("comment"))


def _mission(event: Json) -> list[Record]:
    """One `{model_version, task, prompt, draft, user_action, user_edit, follow_up, ...}`: a turn and what followed."""
    for name in ("prompt", "draft"):
        if not isinstance(event.get(name), str) or not event[name]:
            raise UsageError(f"`{name}` must be a text, got {event.get(name)!r:.80}.", param=name)
    for name in ("model_version", "task", "user_edit", "follow_up", "user", "conversation"):
        if event.get(name) is not None and not isinstance(event[name], str):
            raise UsageError(f"`{name}` must be a string, got {event[name]!r:.80}.", param=name)
    action = event["user_action"]
    if action not in _ACTIONS:
        raise UsageError(f"`user_action` is {action!r:.80}; known: {', '.join(_ACTIONS)}.", param="user_action")
    known = content_hash("events", event)
    when = moment(event.get("created_at"), "created_at")
    turn = Turn(
        id=f"turn-{known}",
        messages=({"role": "user", "content": event["prompt"]},),
        answer={"role": "assistant", "content": event["draft"]},
        model=event.get("model_version") or "",
        finish_reason="stop",
        task=event.get("task"),
        user=event.get("user") or None,
        conversation=event.get("conversation") or None,
        source="import:events",
        missing_ids="imported",
        created_at=time.time() if when is None else when,
    )
    weight = number(event.get("signal_weight"), "signal_weight")
    if weight is not None and not 0.0 <= weight <= 1.0:
        raise UsageError(f"`signal_weight` is {weight}; it lies between 0 and 1.", param="signal_weight")
    metadata = {"signal_weight": weight}
    shared: Json = {"turn": turn.id, "user": turn.user, "occurred_at": when, "metadata": metadata, "source": "api"}
    found: list[Record] = [
        turn,
        _own({**shared, "id": f"fb-{known}", "kind": action, "final_text": event.get("user_edit") or None}),
    ]
    if event.get("follow_up"):
        found.append(_own({**shared, "id": f"fb-{known}-f", "kind": "follow_up", "text": event["follow_up"]}))
    return found


_DIALECTS: tuple[tuple[str, Callable[[Json], list[Record]]], ...] = (
    ("inference_id", _tensorzero),
    ("traceId", _langfuse),
    ("observationId", _langfuse),
    ("user_action", _mission),
)
"""The key that tells a dialect, and its reader."""
