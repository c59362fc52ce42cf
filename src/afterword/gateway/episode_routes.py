"""Handles /v1/episodes: begin, show, reward and end an episode."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from afterword.errors import NotFoundError, UsageError
from afterword.gateway.episodes import check_finite
from afterword.gateway.feedback_api import load_events, take_events
from afterword.gateway.middleware import json_response
from afterword.gateway.state import GATEWAY, KEY
from afterword.gateway.wire.request import episode_name, load_json
from afterword.records import Episode, EpisodeEnd, Json, new_id
from afterword.store.episodes import current, episode_view

LISTED = 100
"""Episodes of a list unless the request says otherwise."""
MOST_LISTED = 1000
_Text = Annotated[str, Field(max_length=1000)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class NewEpisode(_Body):
    """Body of `POST /v1/episodes`."""

    id: str | None = None
    task_id: _Text | None = None
    seed: Annotated[int, Field(gt=-(2**31), lt=2**31)] | None = None
    harness: _Text | None = None
    parent_id: _Text | None = None
    user: _Text | None = None
    metadata: dict[str, Any] = {}


class Ending(_Body):
    """Body of `POST /v1/episodes/{id}/end`."""

    status: Literal["finished", "failed", "truncated"] = "finished"
    reason: _Text | None = None
    value: _Number | None = None
    rubric: dict[str, _Number | None] = {}
    metrics: dict[str, _Number] = {}


B = TypeVar("B", bound=_Body)


def _checked(kind: type[B], data: Any) -> B:
    """The body; UsageError for an invalid field, NotFinite for a NaN."""
    if not isinstance(data, dict):
        raise UsageError(f"the body must be a JSON object, got {type(data).__name__}.")
    check_finite(data)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"`{where}` is invalid: {first['msg']}, got {first['input']!r:.80}.", param=where) from None


async def create_episode(request: web.Request) -> web.Response:
    """Begins an episode; answers 201, or 200 when the same one was begun before."""
    gateway = request.app[GATEWAY]
    raw = await request.read()
    asked = _checked(NewEpisode, load_json(raw) if raw.strip() else {})
    values = asked.model_dump() | {"id": episode_name(asked.id or None) or new_id("ep"), "key": request.get(KEY)}
    running, new = await gateway.episodes.create(Episode(**values))
    return json_response(
        {**running.row.to_dict(), "base_url": f"/episodes/{running.row.id}/v1"}, 201 if new else 200
    )  # fmt: skip


async def list_episodes(request: web.Request) -> web.Response:
    """Lists the newest episodes of the requester's key."""
    gateway = request.app[GATEWAY]
    given = request.query.get("limit", str(LISTED))
    if not given.isdecimal() or not 0 < int(given) <= MOST_LISTED:
        raise UsageError(f"`limit` must be a number from 1 to {MOST_LISTED}, got {given!r:.40}.", param="limit")
    task: Json = {"task_id": request.query["task_id"]} if "task_id" in request.query else {}

    def read() -> list[Json]:
        rows = (row for row in gateway.store.rows(Episode, newest=True, **task) if row.key == request.get(KEY))
        page = [row for row, _ in zip(rows, range(int(given)), strict=False)]
        return [row.to_dict() for row in current(gateway.store, page)]

    return json_response({"object": "list", "data": await asyncio.to_thread(read)})


async def get_episode(request: web.Request) -> web.Response:
    """Returns an episode as it stands now, with a line for each turn.

    Raises:
        NotFoundError: If there is none for this key.
    """
    gateway = request.app[GATEWAY]
    name = (await gateway.episodes.get(request.match_info["id"], request.get(KEY))).row.id
    view = await asyncio.to_thread(episode_view, gateway.store, name)
    return json_response(view.to_dict())


async def episode_feedback(request: web.Request) -> web.Response:
    """Rewards an episode, or with `turn` one of its turns.

    Raises:
        NotFoundError: If there is none for this key.
        NotFinite: If a reward is NaN or infinite.
    """
    gateway = request.app[GATEWAY]
    name = (await gateway.episodes.get(request.match_info["id"], request.get(KEY))).row.id
    data = load_events(await request.read())
    if not isinstance(data, dict):
        raise UsageError(f"the body must be a JSON object, got {type(data).__name__}.")
    check_finite(data)
    if data.get("turn") is not None:
        await _check_turn(request, name, str(data["turn"]))
    (result,) = await take_events(gateway, [{"kind": "outcome", **data, "episode": name}], request.get(KEY), alone=True)
    return json_response(result, 202)


async def _check_turn(request: web.Request, episode: str, turn: str) -> None:
    view = await asyncio.to_thread(episode_view, request.app[GATEWAY].store, episode)
    if all(one.turn.id != turn for one in view.turns):
        raise NotFoundError(
            f"the turn {turn!r:.80} is no part of the episode {episode!r:.80}: GET /v1/episodes/{{id}} lists "
            "its turns.",
            param="turn", code="turn_not_found",
        )  # fmt: skip


async def end_episode(request: web.Request) -> web.Response:
    """Ends an episode, with its reward if the body has one; a later end takes the place of an earlier one.

    Raises:
        NotFoundError: If there is none for this key.
        NotFinite: If a reward is NaN or infinite.
    """
    gateway = request.app[GATEWAY]
    running = await gateway.episodes.get(request.match_info["id"], request.get(KEY))
    raw = await request.read()
    data = load_events(raw) if raw.strip() else {}
    asked = _checked(Ending, data)
    name = running.row.id
    end = EpisodeEnd(
        id=new_id("end"), episode=name, status=asked.status, reason=asked.reason, metrics=asked.metrics,
        ended_at=time.time(),
    )  # fmt: skip
    await gateway.episodes.end(running, end)
    if "value" in data or asked.rubric:
        event = {"kind": "outcome", "episode": name} | {k: data[k] for k in ("value", "rubric") if k in data}
        await take_events(gateway, [event], request.get(KEY), alone=True)
    view = await asyncio.to_thread(episode_view, gateway.store, name)
    return json_response(view.to_dict())
