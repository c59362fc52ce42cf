"""Keeps the running episodes of one gateway: their start, limits and end.

An episode begins with `POST /v1/episodes` or with the first request that names it. Owns the counts that limits need;
rows go through `Capture`. Never interprets an episode.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from afterword.errors import ConflictError, NotFoundError, UsageError
from afterword.gateway.capture import Capture
from afterword.gateway.metrics import Metrics
from afterword.gateway.settings import GatewaySettings
from afterword.gateway.wire.request import ChatRequest
from afterword.records import Episode, EpisodeEnd, Json, Turn, new_id
from afterword.store import Store
from afterword.store.episodes import completion_tokens, episode_view

REMEMBERED = 10_000
"""Episodes in memory; others are read from the store."""
HEADER = "x-afterword-episode"


class EpisodeOver(UsageError):
    """A request belongs to an episode that reached a limit."""


class NotFinite(UsageError):
    """A reward is NaN or infinite."""

    status = 400


def headers_of(request: web.Request) -> Mapping[str, str]:
    """Returns the headers of a request; an episode in its path takes the place of the header."""
    name = request.match_info.get("episode")
    if name is None:
        return request.headers
    headers = CIMultiDict(request.headers)
    headers[HEADER] = name
    return headers


def check_finite(data: Json) -> None:
    """Checks the rewards of a body.

    Raises:
        NotFinite: If the value, a rubric item or a metric is NaN or infinite.
    """
    named = {"value": data.get("value")}
    for group in ("rubric", "metrics"):
        if isinstance(data.get(group), dict):
            named |= {f"{group}.{name}": number for name, number in data[group].items()}
    for name, number in named.items():
        if isinstance(number, float) and not math.isfinite(number):
            raise NotFinite(
                f"`{name}` is {number}: send a finite number, or null for a reward that cannot be scored.",
                param=name, code="not_finite",
            )  # fmt: skip


@dataclass(slots=True)
class RunningEpisode:
    """An episode with the counts for its limits."""

    row: Episode
    requests: int = 0
    """Requests so far; the next one gets this index."""
    tokens: int = 0
    """Tokens of its answers."""
    limit: str | None = None
    """The limit that ended it."""

    def count(self, turn: Turn) -> None:
        """Counts the tokens of an answer."""
        self.tokens += completion_tokens(turn)


class Episodes:
    """The episodes of one gateway."""

    def __init__(self, store: Store, capture: Capture, metrics: Metrics, settings: GatewaySettings) -> None:
        self._store, self._capture, self._metrics, self._settings = store, capture, metrics, settings
        self._known: OrderedDict[str, RunningEpisode] = OrderedDict()
        self._lock = asyncio.Lock()

    async def find(self, identifier: str, key: str | None) -> RunningEpisode | None:
        """The episode, None when there is none for this key."""
        async with self._lock:
            running = self._known.get(identifier) or await asyncio.to_thread(self._stored, identifier)
        if running is None or running.row.key != key:
            return None
        return self._remember(running)

    async def get(self, identifier: str, key: str | None) -> RunningEpisode:
        """The episode.

        Raises:
            NotFoundError: If there is none for this key.
        """
        running = await self.find(identifier, key)
        if running is None:
            raise NotFoundError(
                f"the episode {identifier!r:.80} does not exist: begin it with POST /v1/episodes, or name it in a "
                "request.", param="episode", code="episode_not_found",
            )  # fmt: skip
        return running

    async def create(self, row: Episode) -> tuple[RunningEpisode, bool]:
        """Starts an episode and waits until it is on disk.

        Returns:
            The episode; True when it is new, False when the same one was started before.

        Raises:
            ConflictError: If the id is in use for another task or key.
            StoreError: If the database cannot be written.
        """
        async with self._lock:
            known = self._known.get(row.id) or await asyncio.to_thread(self._stored, row.id)
            if known is None:
                if "forgotten" in await self._capture.write([row]):
                    raise ConflictError(f"the episode {row.id!r:.80} was erased: use another id.", code="forgotten")
                return self._started(row), True
        same = ("task_id", "seed", "harness", "parent_id", "user", "key", "metadata")
        if any(getattr(known.row, name) != getattr(row, name) for name in same):
            raise ConflictError(
                f"the episode {row.id!r:.80} was started with another task, seed, harness or metadata: use a new id.",
                param="id", code="episode_exists",
            )  # fmt: skip
        return self._remember(known), False

    async def begin(self, chat: ChatRequest) -> RunningEpisode | None:
        """Counts a request of an episode; the first one starts it.

        Returns:
            The episode; None when the request names none or is not to be kept.

        Raises:
            NotFoundError: If the episode belongs to another key.
            EpisodeOver: If it reached a limit.
        """
        name = chat.episode_id
        if name is None or not chat.keep:
            return None
        async with self._lock:
            running = self._known.get(name) or await asyncio.to_thread(self._stored, name)
            if running is None:
                row = Episode(id=name, key=chat.key, user=chat.user, harness=chat.harness)
                self._capture.note([row])
                running = self._started(row)
        if running.row.key != chat.key:
            raise NotFoundError(
                f"the episode {name!r:.80} does not exist for this API key: use an id of your own.",
                param="episode_id", code="episode_not_found",
            )  # fmt: skip
        self._check(self._remember(running))
        running.requests += 1
        return running

    async def end(self, running: RunningEpisode, end: EpisodeEnd) -> None:
        """Ends an episode and waits until that is on disk; a later end takes the place of an earlier one.

        Raises:
            StoreError: If the database cannot be written.
        """
        await self._capture.write([end])
        self._metrics.episodes_ended.labels(end.status, end.reason if end.reason in _LIMITS else "").inc()

    def _check(self, running: RunningEpisode) -> None:
        """Raises EpisodeOver at a limit, and ends the episode at the first such request."""
        settings = self._settings
        values = {
            "turns": (running.requests, settings.episode_turns),
            "tokens": (running.tokens, settings.episode_tokens),
            "age": (time.time() - running.row.started_at, settings.episode_seconds),
        }
        reason = running.limit or next((name for name, (value, most) in values.items() if value >= most), None)
        if reason is None:
            return
        self._metrics.episode_rejections.labels(reason).inc()
        if running.limit is None:
            running.limit = reason
            end = EpisodeEnd(
                id=new_id("end"), episode=running.row.id, status="truncated", reason=reason, ended_at=time.time()
            )
            self._capture.note([end])
            self._metrics.episodes_ended.labels("truncated", reason).inc()
        raise EpisodeOver(
            f"the episode {running.row.id!r:.80} reached its limit of {_LIMITS[reason]} "
            f"({values[reason][1]:g}): begin another one, or raise serve.episode_{_SETTINGS[reason]}.",
            param="episode_id", code="episode_limit",
        )  # fmt: skip

    def _stored(self, identifier: str) -> RunningEpisode | None:
        row = self._store.find(Episode, identifier)
        if row is None:
            return None
        view = episode_view(self._store, identifier)
        end = view.episode
        limit = end.reason if end.status == "truncated" and end.reason in _LIMITS else None
        indices = [one.index + 1 for one in view.turns]
        return RunningEpisode(
            row, max(indices, default=0), sum(completion_tokens(one.turn) for one in view.turns), limit
        )

    def _started(self, row: Episode) -> RunningEpisode:
        self._metrics.episodes_started.inc()
        return self._remember(RunningEpisode(row))

    def _remember(self, running: RunningEpisode) -> RunningEpisode:
        running = self._known.setdefault(running.row.id, running)
        self._known.move_to_end(running.row.id)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return running


_LIMITS = {"turns": "requests", "tokens": "answer tokens", "age": "seconds"}
_SETTINGS = {"turns": "turns", "tokens": "tokens", "age": "seconds"}
