"""POST /v1/feedback and DELETE /v1/feedback/{id}: what happened after an answer becomes rows.

Owns the status of each event. Never says what an event teaches, never changes a row.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import orjson
from aiohttp import web

from afterword.errors import ConflictError, NotFoundError, UsageError
from afterword.gateway.middleware import json_response
from afterword.gateway.state import GATEWAY, Gateway
from afterword.gateway.wire.feedback import MAX_EVENTS, parse_event
from afterword.gateway.wire.request import load_json
from afterword.records import Feedback, Json, Record, Turn, content_hash


async def post_feedback(request: web.Request) -> web.Response:
    """One event, or {"events": [...]}: on disk before the 202."""
    gateway = request.app[GATEWAY]
    data = _load(await request.read())
    if isinstance(data, dict) and "events" in data:
        events = data["events"]
        if not isinstance(events, list) or not 0 < len(events) <= MAX_EVENTS:
            size = len(events) if isinstance(events, list) else repr(events)[:80]
            raise UsageError(f"`events` must be a list of 1 to {MAX_EVENTS} events, got {size}.", param="events")
        return json_response({"results": await _take(gateway, events)}, 202)
    _records(data)
    (result,) = await _take(gateway, [data])
    if result["status"] == "rejected" and not result["why"].startswith("forgotten"):
        raise ConflictError(result["why"], param="id", code="conflict")
    return json_response(result, 202)


def _load(body: bytes) -> Any:
    """Parsed JSON. NaN and Infinity, which some clients write, are read so that the event's check can name them."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return load_json(body)


def _records(event: Any) -> list[Record]:
    """The records of one event. UsageError says what of it is wrong, or that it cannot be written to disk."""
    try:
        orjson.dumps([event])
    except TypeError as error:  # a lone surrogate, a number of 400 digits, 300 levels
        if "ecursion" not in str(error):
            parse_event(event)  # names the field where it can
        raise UsageError(f"the event cannot be stored: {error}.") from error
    return parse_event(event)


async def _take(gateway: Gateway, events: list[Any]) -> list[Json]:
    """Store the events that are usable; one result for each event, in order."""
    parsed: list[list[Record] | str] = []
    for event in events:
        try:
            parsed.append(_records(event))
        except UsageError as error:
            parsed.append(error.message)
    records = [record for found in parsed if not isinstance(found, str) for record in found]
    held = await _unknown(gateway, records)
    outcomes = iter(await gateway.capture.write(records) if records else ())
    results = []
    for found in parsed:
        if isinstance(found, str):
            results.append({"id": None, "status": "rejected", "why": found})
            gateway.metrics.feedback.labels("unknown", "rejected").inc()
        else:
            results.append(_result(gateway, found, [next(outcomes) for _ in found], held))
    return results


def _result(gateway: Gateway, records: list[Record], outcomes: list[str], held: set[str]) -> Json:
    """The status of one event; an event of several records is as new as its newest."""
    events = [record for record in records if isinstance(record, Feedback)]
    event = events[0]
    result: Json = {"id": event.id, "turn": event.turn}
    if "conflict" in outcomes:
        result["status"] = "rejected"
        result["why"] = f"conflict: an event with the id {event.id!r} but other content is stored already."
    elif "forgotten" in outcomes:
        result["status"] = "rejected"
        result["why"] = f"forgotten: {event.turn!r:.80} was erased because its user asked for it."
    elif "stored" in outcomes:
        result["status"] = "held" if event.turn in held else "stored"
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
            asked.add(record.turn)
        else:
            new.add(record.id)
    asked = {turn for turn in asked - new if not gateway.links.recent(turn)}
    if not asked:
        return asked
    rows = await asyncio.to_thread(gateway.store.among, Turn, "id", sorted(asked))
    return asked - {turn.id for _, turn in rows}


async def delete_feedback(request: web.Request) -> web.Response:
    """Take an event back by a new row."""
    gateway = request.app[GATEWAY]
    identifier = request.match_info["id"]
    event = await asyncio.to_thread(gateway.store.find, Feedback, identifier)
    if event is None:
        raise NotFoundError(f"there is no feedback {identifier!r:.200}.", param="id", code="feedback_not_found")
    if event.kind == "retraction":
        raise UsageError(f"{identifier!r:.200} is a retraction itself; send the event again instead.", param="id")
    versions = await asyncio.to_thread(gateway.store.versions, event)
    retractions = [
        Feedback(id="fb-" + content_hash("retraction", name), turn=event.turn, kind="retraction", retracts=name)
        for name in versions
    ]
    outcomes = await gateway.capture.write(retractions)
    outcome = "stored" if "stored" in outcomes else outcomes[0]
    gateway.metrics.feedback.labels("retraction", outcome).inc()
    return json_response({"id": retractions[0].id, "turn": event.turn, "retracts": event.id, "status": outcome})
