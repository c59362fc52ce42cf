"""Handles POST /v1/feedback and DELETE /v1/feedback/{id}: stores events after an answer.

Owns the status of each event. Never interprets an event, never changes a row.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import orjson
from aiohttp import web

from afterword.errors import ConflictError, NotFoundError, UsageError
from afterword.formats.langfuse import trace_of
from afterword.formats.naming import RowNames, Traces
from afterword.formats.parsing import Hashed
from afterword.gateway.episodes import check_finite
from afterword.gateway.middleware import json_response
from afterword.gateway.state import GATEWAY, KEY, Gateway
from afterword.gateway.wire.feedback import MAX_EVENTS, parse_event
from afterword.gateway.wire.request import load_json
from afterword.records import Feedback, Json, Record, Turn, content_hash, new_id


async def post_feedback(request: web.Request) -> web.Response:
    """Stores one event or {"events": [...]}; answers 202 once they are on disk.

    Raises:
        UsageError: If a single event, or the list itself, is invalid.
        ConflictError: If a single event conflicts with a stored one.
        StoreError: If the database cannot be written.
    """
    gateway = request.app[GATEWAY]
    data = load_events(await request.read())
    if isinstance(data, dict) and "events" in data:
        events = data["events"]
        if not isinstance(events, list) or not 0 < len(events) <= MAX_EVENTS:
            size = len(events) if isinstance(events, list) else repr(events)[:80]
            raise UsageError(f"`events` must be a list of 1 to {MAX_EVENTS} events, got {size}.", param="events")
        return json_response({"results": await take_events(gateway, events, request.get(KEY))}, 202)
    (result,) = await take_events(gateway, [data], request.get(KEY), alone=True)
    return json_response(result, 202)


def load_events(body: bytes) -> Any:
    """Parsed JSON. NaN and Infinity, which some clients write, are read so that the event's check can name them."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return load_json(body)


def _parsed(event: Any) -> list[Record] | Hashed:
    """The content of one event. UsageError says what of it is wrong, or that it cannot be written to disk."""
    try:
        orjson.dumps([event])
    except TypeError as error:  # a lone surrogate, a number of 400 digits, 300 levels
        if "ecursion" not in str(error):
            parse_event(event)  # names the field where it can
        raise UsageError(f"the event cannot be stored: {error}. Correct or remove that value.") from error
    return parse_event(event)


async def take_events(gateway: Gateway, events: list[Any], key: str | None, *, alone: bool = False) -> list[Json]:
    """Stores the events that are usable.

    Args:
        gateway: The gateway.
        events: As their client sent them.
        key: Public id of the API key.
        alone: The only event of its request: an event that cannot be stored is an error.

    Returns:
        One result for each event, in order.

    Raises:
        UsageError: With `alone`, if the event is invalid.
        NotFoundError: With `alone`, if its episode is unknown.
        ConflictError: With `alone`, if it conflicts with a stored one.
        StoreError: If the database cannot be written.
    """
    results = await _stored(gateway, [_named_reward(event) for event in events], key, alone)
    why = results[0].get("why", "")
    if alone and results[0]["status"] == "rejected" and not why.startswith("forgotten"):
        raise ConflictError(why, param="id", code="conflict")
    return results


def _named_reward(event: Any) -> Any:
    """A reward without an id gets one of its own: the same value may be given again after another one."""
    if isinstance(event, dict) and event.get("kind") == "outcome" and not event.get("id"):
        return {**event, "id": new_id("fb")}
    return event


async def _stored(gateway: Gateway, events: list[Any], key: str | None, alone: bool) -> list[Json]:
    found: list[list[Record] | Hashed | str] = []
    for event in events:
        try:
            if isinstance(event, dict) and event.get("kind") == "outcome":
                check_finite(event)
            one = _parsed(event)
            if isinstance(event, dict) and event.get("kind") == "outcome" and event.get("episode") is not None:
                await gateway.episodes.get(event["episode"], key)
            found.append(one)
        except (UsageError, NotFoundError) as error:
            if alone:
                raise
            found.append(error.message)
    parsed = await _named(gateway, events, found)
    records = [record for one in parsed if not isinstance(one, str) for record in one]
    held = await _unknown(gateway, records)
    outcomes = iter(await gateway.capture.write(records) if records else ())
    results = []
    for each in parsed:
        if isinstance(each, str):
            results.append({"id": None, "status": "rejected", "why": each})
            gateway.metrics.feedback.labels("unknown", "rejected").inc()
        else:
            results.append(_result(gateway, each, [next(outcomes) for _ in each], held))
    return results


async def _named(
    gateway: Gateway, events: list[Any], found: list[list[Record] | Hashed | str]
) -> list[list[Record] | str]:
    """The records of each event under the ids that an import of the same row would give them."""

    def named(event: Json, one: list[Record] | Hashed | str) -> list[Record] | str:
        if isinstance(one, str):
            return one
        return names.records(one) if isinstance(one, Hashed) else traces.link(event, one)

    names, traces = RowNames(gateway.store), Traces(gateway.store)
    if not any(isinstance(one, Hashed) or _is_score(event) for event, one in zip(events, found, strict=True)):
        return [named(event, one) for event, one in zip(events, found, strict=True)]  # nothing to look up
    return await asyncio.to_thread(lambda: [named(event, one) for event, one in zip(events, found, strict=True)])


def _is_score(event: Any) -> bool:
    """Does this event name a trace?"""
    return isinstance(event, dict) and trace_of(event) is not None


def _result(gateway: Gateway, records: list[Record], outcomes: list[str], held: set[str]) -> Json:
    """The status of one event; an event of several records is as new as its newest."""
    events = [record for record in records if isinstance(record, Feedback)]
    first = events[0] if events else records[0]  # a record without any action is a turn alone
    turn = first.turn if isinstance(first, Feedback) else first.id
    result: Json = {"id": first.id, "turn": turn}
    if "conflict" in outcomes:
        result["status"] = "rejected"
        result["why"] = f"conflict: an event with the id {first.id!r} but other content is stored already."
    elif "forgotten" in outcomes:
        result["status"] = "rejected"
        result["why"] = f"forgotten: {turn!r:.80} was erased because its user asked for it."
    elif "stored" in outcomes:
        result["status"] = "held" if turn in held else "stored"
    else:
        result["status"] = "duplicate"
    for each in events:
        gateway.metrics.feedback.labels(each.kind, result["status"]).inc()
    return result


async def _unknown(gateway: Gateway, records: Iterable[Record]) -> set[str]:
    """Turns of these events that nobody knows yet."""
    asked, new = set(), set()
    for record in records:
        if isinstance(record, Feedback):
            if record.metadata.get("episode") != record.turn:  # which was looked for before
                asked.add(record.turn)
        else:
            new.add(record.id)
    asked = {turn for turn in asked - new if not gateway.links.recent(turn)}
    if not asked:
        return asked
    rows = await asyncio.to_thread(gateway.store.among, Turn, "id", sorted(asked))
    return asked - {turn.id for _, turn in rows}


async def delete_feedback(request: web.Request) -> web.Response:
    """Retracts an event by storing a retraction.

    Raises:
        NotFoundError: If no event has this id.
        UsageError: If the event is a retraction itself.
        StoreError: If the database cannot be written.
    """
    gateway = request.app[GATEWAY]
    identifier = request.match_info["id"]
    event = await asyncio.to_thread(gateway.store.find, Feedback, identifier)
    if event is None:
        raise NotFoundError(
            f"the feedback {identifier!r:.200} does not exist: use the id that POST /v1/feedback returned.",
            param="id",
            code="feedback_not_found",
        )
    if event.kind == "retraction":
        raise UsageError(f"{identifier!r:.200} is a retraction: to undo it, send the original event again.", param="id")
    versions = await asyncio.to_thread(gateway.store.versions, event)
    retractions = [
        Feedback(id="fb-" + content_hash("retraction", name), turn=event.turn, kind="retraction", retracts=name)
        for name in versions
    ]
    outcomes = await gateway.capture.write(retractions)
    outcome = "stored" if "stored" in outcomes else outcomes[0]
    gateway.metrics.feedback.labels("retraction", outcome).inc()
    return json_response({"id": retractions[0].id, "turn": event.turn, "retracts": event.id, "status": outcome})
