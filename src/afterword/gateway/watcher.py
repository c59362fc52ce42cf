"""Which name means which model upstream, and which adapters are loaded there.

Owns the alias and its move to a newer release, the loading and unloading of adapters, and the count of requests on
each. Serving never waits for it: until a new adapter is loaded, the old one answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from afterword.errors import AfterwordError, NotFoundError, StoreError, UpstreamError
from afterword.gateway.metrics import Metrics
from afterword.gateway.settings import GatewaySettings
from afterword.records import Json, Release
from afterword.sampling import Upstream
from afterword.store import Store

_MAX_BACKOFF = 30.0


class Route(NamedTuple):
    """Where a request goes: the name to send upstream, and the adapter behind it."""

    model: str
    adapter: str | None


class Adapters:
    """The names that one gateway serves."""

    def __init__(self, settings: GatewaySettings, store: Store, upstream: Upstream, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._upstream = upstream
        self._metrics = metrics
        self.bases: list[str] = []
        """Base models of the upstream; the first is the one that adapters belong to."""
        self.current: Release | None = None
        """The release that NAME serves."""
        self.previous: Release | None = None
        self.problem: str | None = None
        """Why the newest release is not served, or the upstream is not known; None when all is well."""
        self._versions: dict[str, Release] = {}
        self._loaded: dict[str, float] = {}
        """Adapters that are loaded upstream, and when they were last asked for (monotonic seconds)."""
        self._flying: Counter[str] = Counter()
        self._lock = asyncio.Lock()
        self._retry_at = 0.0
        self._backoff = 0.0
        self._tried: str | None = None
        """Release of the last attempt; a newer one is tried at once."""

    # ---- names

    @property
    def base(self) -> str:
        """The base model; known as soon as anything was resolved."""
        return self.bases[0]

    @property
    def adapter(self) -> str | None:
        """The adapter that NAME serves now."""
        return self.current.adapter if self.current else None

    def aliases(self) -> dict[str, str | None]:
        """Alias -> adapter (None: the base model)."""
        name = self._settings.name
        found = {name: self.adapter, f"{name}@base": None}
        if self.current is not None:
            found[f"{name}@previous"] = self.previous.adapter if self.previous else None
        return found

    async def resolve(self, model: str) -> Route:
        """The route of a model name. NotFoundError when nobody knows it, UpstreamError when the upstream is down."""
        if not self.bases:
            await self.sync()
        aliases = self.aliases()
        if model in aliases:
            adapter = aliases[model]
        elif model in self.bases:
            return Route(model, None)
        elif model in self._versions or self._is_new_version(model):
            adapter = model
        else:
            known = ", ".join([*aliases, *self._versions, *self.bases])
            raise NotFoundError(
                f"the model {model!r:.200} does not exist here; known are {known}.",
                param="model",
                code="model_not_found",
            )
        await self._load(adapter)
        return Route(self.base, None) if adapter is None else Route(adapter, adapter)

    def _is_new_version(self, model: str) -> bool:
        if model.startswith(f"{self._settings.name}@v"):
            self._read_versions()
        return model in self._versions

    def _read_versions(self) -> None:
        self._versions = {r.adapter: r for r in self._store.rows(Release) if r.adapter and r.path}

    def cards(self) -> list[Json]:
        """The models of /v1/models."""
        base = self.bases[0] if self.bases else None

        def card(identifier: str, root: str | None, parent: str | None, at: float = 0.0) -> Json:
            shared = {"id": identifier, "object": "model", "created": int(at), "owned_by": "afterword"}
            return {**shared, "root": root, "parent": parent}

        self._read_versions()
        cards = [card(b, b, None) for b in self.bases]
        cards += [card(v, r.path, base, r.created_at) for v, r in self._versions.items()]
        for alias, adapter in self.aliases().items():
            if alias not in self.bases:
                cards.append(card(alias, adapter or base, base if adapter else None))
        return cards

    # ---- use

    @contextlib.contextmanager
    def using(self, route: Route) -> Iterator[None]:
        """Count a request on its adapter, so that it is not unloaded meanwhile."""
        if route.adapter is None:
            yield
            return
        self._flying[route.adapter] += 1
        try:
            yield
        finally:
            self._flying[route.adapter] -= 1
            if route.adapter in self._loaded:
                self._loaded[route.adapter] = time.monotonic()

    async def lost(self, route: Route, model: str) -> Route:
        """The upstream does not know this route (it was restarted): ask what it has, load what is missing.

        Returns the route of `model` as it is now.
        """
        if route.adapter is not None:
            self._loaded.pop(route.adapter, None)
        else:
            await self.discover()
        return await self.resolve(model)

    async def _load(self, adapter: str | None) -> None:
        """Have an adapter loaded upstream (the base model always is)."""
        if adapter is None or adapter in self._loaded:
            return
        if adapter not in self._versions:
            self._read_versions()
        release = self._versions.get(adapter)
        if release is None or release.path is None:
            raise NotFoundError(f"no release names a folder for the adapter {adapter}.", param="model")
        async with self._lock:
            if adapter not in self._loaded:
                await self._upstream.load_adapter(adapter, str((self._settings.dir / release.path).resolve()))
                self._loaded[adapter] = time.monotonic()

    # ---- following the releases

    async def discover(self) -> None:
        """Learn the upstream's base models and which adapters it has loaded."""
        cards = await self._upstream.models()
        bases = [card["id"] for card in cards if not card.get("parent")]
        wanted = self._settings.upstream_model
        if wanted is not None:
            if wanted not in bases:
                raise UpstreamError(f"the model server {self._upstream.url} has no model {wanted!r}; it has {bases}.")
            bases.sort(key=lambda name: name != wanted)
        if not bases:
            raise UpstreamError(f"the model server {self._upstream.url} lists no model.")
        self.bases = bases
        self._read_versions()
        self._loaded = {c["id"]: time.monotonic() for c in cards if c["id"] in self._versions}

    async def sync(self) -> None:
        """Bring the alias to the newest release. Raises what hinders it; the old one is served on."""
        if not self.bases:
            await self.discover()
        newest = self._store.release(self._settings.channel)
        if newest is not None and (self.current is None or newest.id != self.current.id):
            await self._move(newest)

    async def _move(self, release: Release) -> None:
        """Load what `release` names, then move the alias; the previous one stays warm."""
        started = self.current is None
        self._read_versions()
        before = self._store.find(Release, release.previous) if release.previous else None
        try:
            await self._load(release.adapter)
        except AfterwordError:
            if started and before is not None:
                # Nothing is served yet: rather the one before than the base model.
                await self._load(before.adapter)
                self.current = before
            raise
        self.current, self.previous = release, before
        self._metrics.adapter.clear()
        self._metrics.adapter.labels(release.adapter or "base").set(1)
        if not started or before is None:
            self._metrics.swaps.observe(max(0.0, time.time() - release.created_at))
        if before is not None:
            with contextlib.suppress(UpstreamError, NotFoundError):  # then it is loaded when somebody asks for it
                await self._load(before.adapter)

    async def tick(self) -> None:
        """One look: follow the releases, unload what is idle. Problems are kept in `problem` and tried again later."""
        now = time.monotonic()
        try:
            newest = self._store.release(self._settings.channel)
        except StoreError as error:
            self.problem, self._retry_at = error.message, 0.0
            return
        wanted = newest.id if newest else None
        if now < self._retry_at and wanted == self._tried:
            return
        self._tried = wanted
        try:
            await self.sync()
            await self._unload_idle(now)
        except AfterwordError as error:
            self._backoff = min(_MAX_BACKOFF, max(0.5, 2 * self._backoff))
            self._retry_at = now + self._backoff
            self.problem = error.message
        else:
            self.problem, self._backoff, self._retry_at = None, 0.0, 0.0

    async def _unload_idle(self, now: float) -> None:
        keep = {self.adapter, self.previous.adapter if self.previous else None}
        for adapter, used in list(self._loaded.items()):
            idle = now - used >= self._settings.adapter_idle
            if idle and adapter not in keep and not self._flying[adapter]:
                del self._loaded[adapter]
                await self._upstream.unload_adapter(adapter)

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.poll_ms / 1000)
            await self.tick()
