"""Several model servers as one: health, choice by load and prompt, adapters on all of them.

A server gets requests while it answers its health probe, lists the base models of the others and has every adapter that
was loaded. One that comes late or back is brought up to that first. A request goes to another server only while no
byte of its answer has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from afterword.errors import UpstreamError
from afterword.records import Json
from afterword.sampling.stream import ChatStream, Timeouts, UpstreamRejected
from afterword.sampling.upstream import Upstream

log = logging.getLogger("afterword.sampling")

PROBE = 1.0
"""Seconds between two looks at the servers."""
_PROBE_LIMIT = 3.0
_ELSEWHERE = (429, 502, 503, 504)
"""Answers of a server that is full or about to end: another one may take the request."""
_AWAY = ("down", "timeout", "cut")
_SLACK = 4
"""Requests that the server with a conversation's keys may have more than the least busy one."""


@dataclass(eq=False)
class Replica:
    """One server and what is known of it."""

    server: Upstream
    ready: bool = False
    problem: str | None = "not asked yet"
    """Why it gets no requests."""
    in_flight: int = 0

    def lost(self, why: str) -> None:
        """It gets no requests until it is brought up again."""
        if self.ready:
            log.warning("the model server %s gets no requests: %s", self.server.url, why)
        self.ready, self.problem = False, why


class Replicas(Upstream):
    """Model servers of one base model behind the interface of one. Use it within one event loop.

    Args:
        urls: Two or more, each as for `Upstream`.
        api_key: Sent to all as a bearer token.
        timeouts: Time limits of each.
        remedy: Last sentence of the error when all are down.
    """

    def __init__(
        self,
        urls: Sequence[str],
        api_key: str | None = None,
        timeouts: Timeouts | None = None,
        *,
        remedy: str = "Check that they are running.",
    ) -> None:
        super().__init__(urls[0], api_key, timeouts, remedy=remedy)
        self._replicas = [Replica(Upstream(url, api_key, timeouts, remedy=remedy)) for url in urls]
        for replica in self._replicas:
            replica.server._dialects = self._dialects  # servers of one kind: what one rejects, the others do
        self.url = ", ".join(replica.server.url for replica in self._replicas)
        self._bases: frozenset[str] | None = None
        """Base models that all must have; those of the first server that answered."""
        self._loaded: dict[str, str] = {}
        """Adapter's name -> its folder, on every ready server."""
        self._loading = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Ends the probes and closes the connections."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        for replica in self._replicas:
            await replica.server.close()
        await super().close()

    def replicas(self) -> list[Json]:
        """Each server with its state, for /health and /metrics."""
        return [
            {
                "url": one.server.url, "status": "ok" if one.ready else "down", "in_flight": one.in_flight,
                **({} if one.problem is None else {"problem": one.problem}),
            }
            for one in self._replicas
        ]  # fmt: skip

    def forget_dialect(self) -> None:
        """Forgets which fields are accepted: the servers may be others by now."""
        self._dialects.clear()

    # ---- requests

    async def open_chat(self, body: Json, more: Json | None = None) -> ChatStream:
        """Starts one chat completion on the server that suits it, or on the next one; as `Upstream.open_chat`."""
        error: UpstreamError | None = None
        for replica in self._in_order(body):
            replica.in_flight += 1
            try:
                stream = await replica.server.open_chat(body, more)
            except UpstreamError as failed:
                replica.in_flight -= 1
                self._note(replica, failed)
                if not _may_go_elsewhere(failed):
                    raise
                error = error or failed
                continue
            except BaseException:
                replica.in_flight -= 1
                raise
            stream.on_close = lambda replica=replica: self._over(replica)
            return stream
        raise error or self._none_ready()

    async def forward(self, path: str, data: bytes, content_type: str) -> aiohttp.ClientResponse:
        """Posts a body to another route of one of the servers; as `Upstream.forward`."""
        error: UpstreamError | None = None
        for replica in self._in_order({}):
            try:
                return await replica.server.forward(path, data, content_type)
            except UpstreamError as failed:
                self._note(replica, failed)
                if not _may_go_elsewhere(failed):
                    raise
                error = error or failed
        raise error or self._none_ready()

    def _in_order(self, body: Json) -> list[Replica]:
        """The servers to ask, the best first: the one that read this conversation's beginning unless it is busier."""
        ready = [one for one in self._replicas if one.ready]
        if not ready:
            return []
        start = orjson.dumps([body.get("model"), _beginning(body.get("messages"))], default=str)
        # The highest hash of server and beginning: when a server goes or comes, few conversations move.
        ready.sort(key=lambda one: zlib.crc32(one.server.url.encode(), zlib.crc32(start)), reverse=True)
        least = min(one.in_flight for one in ready)
        if ready[0].in_flight > least + _SLACK:
            ready.sort(key=lambda one: one.in_flight)
        return ready

    def _note(self, replica: Replica, error: UpstreamError) -> None:
        if error.code in _AWAY and not isinstance(error, UpstreamRejected):
            replica.lost(error.message)

    def _over(self, replica: Replica) -> None:
        replica.in_flight -= 1

    def _none_ready(self) -> UpstreamError:
        said = "; ".join(f"{one.server.url}: {one.problem}" for one in self._replicas)
        return UpstreamError(f"no model server is ready: {said} {self._remedy}", code="down")

    # ---- models, adapters, health

    async def models(self) -> list[Json]:
        """Model cards that every ready server has; adapters only where all have them from one folder.

        Raises:
            UpstreamError: If no server answers.
        """
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        found = await asyncio.gather(*(one.server.models() for one in self._replicas), return_exceptions=True)
        self._bases = None
        lists: list[list[Json]] = []
        error: UpstreamError | None = None
        for replica, cards in zip(self._replicas, found, strict=True):
            if isinstance(cards, UpstreamError):
                error = error or cards
                replica.lost(cards.message)
            elif isinstance(cards, BaseException):
                raise cards
            elif self._agrees(replica, cards):
                replica.ready, replica.problem = True, None
                lists.append(cards)
        if not lists:
            raise error or self._none_ready()
        common = set.intersection(*({(card["id"], card.get("root")) for card in cards} for cards in lists))
        cards = [card for card in lists[0] if not card.get("parent") or (card["id"], card.get("root")) in common]
        self._loaded = {card["id"]: card["root"] for card in cards if card.get("parent") and card.get("root")}
        return cards

    def _agrees(self, replica: Replica, cards: Iterable[Json]) -> bool:
        bases = frozenset(card["id"] for card in cards if not card.get("parent"))
        if self._bases is None:
            self._bases = bases
        if bases == self._bases:
            return True
        replica.lost(
            f"it serves {sorted(bases)}, the others {sorted(self._bases)}: start it with the same model and name, or "
            "take it out of serve.upstream."
        )
        return False

    async def load_adapter(self, name: str, path: str) -> str | None:
        """Loads an adapter folder on all ready servers.

        Returns:
            As `Upstream.load_adapter`; of the first server that has another folder by this name, if any has.

        Raises:
            UpstreamError: If a server that is up cannot load it, or none is up: then it is not served by any.
        """
        async with self._loading:
            ready = [one for one in self._replicas if one.ready]
            if not ready:
                raise self._none_ready()
            found = await asyncio.gather(
                *(one.server.load_adapter(name, path) for one in ready), return_exceptions=True
            )
            roots: list[str | None] = []
            error: UpstreamError | None = None
            for replica, root in zip(ready, found, strict=True):
                if isinstance(root, UpstreamError):
                    error = root
                    self._note(replica, root)
                    if replica.ready:  # it is up and says no
                        raise root
                elif isinstance(root, BaseException):
                    raise root
                else:
                    roots.append(root)
            if not roots:
                assert error is not None
                raise error
            if all(root == path for root in roots):
                self._loaded[name] = path
            return next((root for root in roots if root != path), path)

    async def unload_adapter(self, name: str) -> None:
        """Unloads an adapter from all servers; one that is down has none when it comes back."""
        self._loaded.pop(name, None)
        ready = [one for one in self._replicas if one.ready]
        found = await asyncio.gather(*(one.server.unload_adapter(name) for one in ready), return_exceptions=True)
        for replica, error in zip(ready, found, strict=True):
            if isinstance(error, UpstreamError):
                self._note(replica, error)
                if replica.ready:
                    raise error
            elif isinstance(error, BaseException):
                raise error

    async def health(self, limit: float = _PROBE_LIMIT) -> None:
        """Checks that a server is well; looks at all of them.

        Raises:
            UpstreamError: If none is.
        """
        await asyncio.gather(*(self._probe(one, limit) for one in self._replicas))
        if not any(one.ready for one in self._replicas):
            raise self._none_ready()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PROBE)
            await asyncio.gather(*(self._probe(one, _PROBE_LIMIT) for one in self._replicas))

    async def _probe(self, replica: Replica, limit: float) -> None:
        """Take a server out that does not answer; bring one up that does again."""
        try:
            await replica.server.health(limit)
            if not replica.ready:
                await self._bring_up(replica)
        except UpstreamError as error:
            replica.lost(error.message)

    async def _bring_up(self, replica: Replica) -> None:
        async with self._loading:
            if replica.ready or self._bases is None or not self._agrees(replica, await replica.server.models()):
                return
            for name, path in self._loaded.items():
                if (root := await replica.server.load_adapter(name, path)) != path:
                    replica.lost(f"its adapter {name} comes from {root}, on the others from {path}: start it anew.")
                    return
            log.info("the model server %s gets requests", replica.server.url)
            replica.ready, replica.problem = True, None


def _beginning(messages: Any) -> list[Any]:
    """What every request of a conversation has in common: all up to its first question."""
    if not isinstance(messages, list):
        return []
    asked = (i for i, one in enumerate(messages) if isinstance(one, dict) and one.get("role") == "user")
    return messages[: next(asked, 0) + 1]


def _may_go_elsewhere(error: UpstreamError) -> bool:
    """No byte of an answer has come: may another server answer?"""
    if isinstance(error, UpstreamRejected):
        return error.answered in _ELSEWHERE
    return error.code in _AWAY


def upstream_of(
    urls: str,
    api_key: str | None = None,
    timeouts: Timeouts | None = None,
    *,
    remedy: str = "Check that it is running.",
) -> Upstream:
    """The model server, or the servers, of `serve.upstream`.

    Args:
        urls: One URL, or several with commas between them.
        api_key: Sent as a bearer token.
        timeouts: Time limits.
        remedy: Last sentence of the error when it is down.
    """
    named = split_urls(urls)
    if len(named) < 2:
        return Upstream(urls, api_key, timeouts, remedy=remedy)
    return Replicas(named, api_key, timeouts, remedy=remedy)


def split_urls(urls: str) -> list[str]:
    """The URLs of `serve.upstream`, each once."""
    return list(dict.fromkeys(url for part in urls.split(",") if (url := part.strip())))
