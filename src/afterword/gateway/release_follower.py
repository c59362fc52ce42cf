"""Follows release rows: loads their adapters and moves each channel to its newest release.

Owns the state of the channels and the list of upstream models. Errors are kept in `problem` and retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import replace

from afterword.errors import AfterwordError, NotFoundError, StoreError, UpstreamError
from afterword.gateway.adapter_pool import AdapterPool
from afterword.gateway.metrics import Metrics
from afterword.gateway.settings import GatewaySettings
from afterword.records import Candidate, Json, Release
from afterword.sampling import NO_LIST, Upstream
from afterword.store import Store
from afterword.store.channels import Serving
from afterword.store.polling import releases_after

_MAX_BACKOFF = 30.0
NOBODY = Serving()
"""A channel without releases."""


class ReleaseFollower:
    """Tracks the release of each channel; moves to new releases while requests are answered."""

    def __init__(self, settings: GatewaySettings, store: Store, upstream: Upstream, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._upstream = upstream
        self._metrics = metrics
        self.bases: list[str] = []
        """Base models of the upstream; the first is the one that adapters belong to."""
        self._since: dict[str, float] = {}
        """Base model -> since when it is there, Unix seconds."""
        self.serving: dict[str, Serving] = {}
        """Channel -> what its requests get: the newest rows whose adapters could be loaded."""
        self.problem: str | None = None
        """Why the newest release is not served, or the upstream is not known; None when all is well."""
        self._wanted: dict[str, Serving] = {}
        """Channel -> what its rows say."""
        self._seq = 0
        """Row number of the newest release that was read."""
        self._versions: dict[str, Release] = {}
        self._trials: dict[str, Candidate] = {}
        """NAME@CANDIDATE -> the candidate that somebody asked for by its id; it need not be released."""
        self._tainted: set[str] = set()
        """Candidates that learned from a forgotten user: nobody may ask for them again."""
        self._pool = AdapterPool(upstream, settings.max_adapters)
        self._unlisted: tuple[float, UpstreamError] | None = None
        """The upstream lists no models and nobody named one: until when that is believed, and the error."""
        self._retry_at = 0.0
        self._backoff = 0.0
        self._tried = 0
        """`_seq` at the last attempt; newer rows are tried at once."""

    @property
    def base(self) -> str:
        """Name of the base model; known once any model was resolved."""
        return self.bases[0]

    @property
    def current(self) -> Release | None:
        """Release that NAME serves on the gateway's default channel."""
        return self.serving.get(self._settings.channel, NOBODY).served

    @property
    def adapter(self) -> str | None:
        """Adapter of the current release; None: the base model."""
        return self.current.adapter if self.current else None

    async def discover(self) -> None:
        """Reads the upstream's base models and the adapters that it has loaded.

        Raises:
            UpstreamError: If the upstream is down, lists no models (NO_LIST), or lacks `serve.upstream_model`.
        """
        missing: UpstreamError | None = None
        try:
            cards = await self._upstream.models()
        except UpstreamError as error:
            if error.code != NO_LIST:
                raise
            cards, missing = [], error
        bases = self._bases(cards, missing)
        now = time.time()
        since = {card["id"]: at if isinstance(at := card.get("created"), int) and at else now for card in cards}
        self._since = dict.fromkeys(bases, now) | since
        self.bases = bases
        self._upstream.forget_dialect()
        self._read_versions()
        self._pool.adopt(cards, {name: self._place(row) for name, row in self._adapters().items()})

    def _bases(self, cards: list[Json], missing: UpstreamError | None) -> list[str]:
        """The base models, the one behind NAME first. UpstreamError when it cannot be told, with what is missing."""
        listed = [card["id"] for card in cards if not card.get("parent")]
        wanted, preferred = self._settings.upstream_model, self._settings.preferred_model
        if not listed:
            if named := wanted or preferred:
                return [named]
            why = missing.message if missing else f"the model server {self._upstream.url} lists no model."
            raise UpstreamError(
                f"{why} Set serve.upstream_model to the model behind {self._settings.name!r}.",
                code=NO_LIST,
            )
        if wanted is not None and listed_as(wanted, listed) is None:
            raise UpstreamError(
                f"the model {wanted!r} is missing on the model server {self._upstream.url}, which has {listed}. "
                "Set serve.upstream_model to one of them."
            )
        chosen = listed_as(wanted or preferred or "", listed)
        other_kinds = {card["id"]: _other_kind(card) for card in cards}
        return sorted(listed, key=lambda name: (name != chosen, other_kinds[name]))

    def _read_releases(self) -> None:
        rows = list(releases_after(self._store, self._seq))
        if not rows:
            return
        self._tainted = set(self._store.tainted())
        for seq, row in rows:
            self._wanted[row.channel] = self._wanted.get(row.channel, NOBODY).after(row)
            self._seq = seq
        for channel, state in self._wanted.items():
            self._wanted[channel] = replace(state, before=self._clean(state.before), canary=self._clean(state.canary))

    def _clean(self, release: Release | None) -> Release | None:
        """The release, unless its adapter learned from a forgotten user."""
        return None if release is not None and release.candidate in self._tainted else release

    async def sync(self) -> None:
        """Moves the channels to their newest releases; on errors the old ones stay served.

        Raises:
            UpstreamError: If the upstream is down or rejects an adapter.
            NotFoundError: If a release names no adapter folder.
            StoreError: If the database cannot be read.
        """
        if not self.bases:
            await self.discover()
        self._read_releases()
        problem: AfterwordError | None = None
        for channel, wanted in list(self._wanted.items()):
            if self.serving.get(channel) != wanted:
                try:
                    await self._move(channel, wanted)
                except AfterwordError as error:  # the other channels move all the same
                    problem = problem or error
        if problem is not None:
            raise problem

    async def _move(self, channel: str, wanted: Serving) -> None:
        """Load what the rows name, then move the alias; the previous one stays warm."""
        now = self.serving.get(channel)
        self._read_versions()
        if channel != self._settings.channel and self._pool.full:
            self.serving[channel] = wanted  # one of many channels: its adapter is loaded with its next request
            return
        try:
            await self._load(wanted.adapter)
        except AfterwordError:
            if now is None and wanted.before is not None:
                # Nothing is served yet: rather the one before than the base model.
                await self._load(wanted.before.adapter)
                self.serving[channel] = Serving(wanted.before)
            raise
        if wanted.served is not None and (now is None or now.served != wanted.served):
            self._moved(channel, wanted, fresh=now is None and wanted.before is not None)
        self.serving[channel] = Serving(wanted.served, wanted.before, None, wanted.newest)
        if wanted.canary is not None:
            await self._load(wanted.canary.adapter)
        self.serving[channel] = wanted
        if wanted.served is not None and wanted.before is not None:
            with contextlib.suppress(UpstreamError, NotFoundError):  # then it is loaded when somebody asks for it
                await self._load(wanted.before.adapter)

    def _moved(self, channel: str, to: Serving, *, fresh: bool) -> None:
        """Count a swap; what a starting gateway finds is none."""
        assert to.served is not None
        if channel == self._settings.channel:
            self._metrics.adapter.clear()
            self._metrics.adapter.labels(to.adapter or "base").set(1)
        if not fresh:
            self._metrics.swaps.observe(max(0.0, time.time() - to.served.created_at))

    async def tick(self) -> None:
        """Polls once: follows the releases, unloads idle adapters, records errors in `problem`."""
        now = time.monotonic()
        try:
            self._read_releases()
        except StoreError as error:
            self.problem, self._retry_at = error.message, 0.0
            return
        if now < self._retry_at and self._seq == self._tried:
            return
        self._tried = self._seq
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
        keep = {r.adapter for s in self.serving.values() for r in (s.served, s.before, s.canary) if r is not None}
        await self._pool.unload_idle(now - self._settings.adapter_idle, keep, self._adapters())

    async def follow(self) -> None:
        """Polls until cancelled."""
        while True:
            await asyncio.sleep(self._settings.poll_ms / 1000)
            await self.tick()

    async def _load(self, adapter: str | None) -> str:
        """Have an adapter loaded upstream (the base model always is); what it is called there."""
        if adapter is None:
            return self.base
        if adapter not in self._pool:
            if adapter not in self._adapters():
                self._read_versions()
            if adapter not in self._adapters():
                raise NotFoundError(
                    f"the adapter {adapter} has no folder: no release names one. See `afterword releases list`.",
                    param="model",
                )
            folder = await asyncio.to_thread(self._folder, self._adapters()[adapter])
            await self._pool.load(adapter, folder, self._default_versions())
        return self._pool.name(adapter)

    def _default_versions(self) -> set[str | None]:
        """What the default channel serves: it never makes room."""
        state = self.serving.get(self._settings.channel, NOBODY)
        return {row.adapter for row in (state.served, state.before, state.canary) if row is not None}

    def _place(self, row: Release | Candidate) -> str:
        return str((self._store.artifacts.directory / (row.path or "")).resolve())

    def _folder(self, row: Release | Candidate) -> str:
        """Where the adapter lies; it is downloaded first where only the object store has it."""
        artifacts, path = self._store.artifacts, row.path or ""
        signed = row.manifest.get("files") if artifacts.url and isinstance(row, Release) else None
        folder = artifacts.folder(path, signed)
        if artifacts.url and folder.is_dir() and not artifacts.exists_remotely(path):
            artifacts.keep(path)  # trained before there was an object store
        return self._place(row)

    def _adapters(self) -> dict[str, Release | Candidate]:
        """What may be loaded, by name."""
        return {**self._trials, **self._versions}

    def _is_candidate(self, model: str) -> bool:
        """True for NAME@CANDIDATE of the store whose adapter learned from no forgotten user."""
        name, _, identifier = model.partition("@")
        if name != self._settings.name or not identifier.startswith("cand-"):
            return False
        self._tainted = set(self._store.tainted())
        row = None if identifier in self._tainted else self._store.find(Candidate, identifier)
        if row is not None:
            self._trials[model] = row
        return row is not None

    def _read_versions(self) -> None:
        self._tainted = set(self._store.tainted())
        rows = (r for r in self._store.rows(Release) if r.candidate not in self._tainted)
        self._versions = {r.adapter: r for r in rows if r.adapter and r.path}
        self._trials = {name: row for name, row in self._trials.items() if row.id not in self._tainted}
        if self._store.artifacts.url:
            for name in self._tainted:
                self._store.artifacts.drop_copy(self._store.get(Candidate, name).path)


_OTHER_KINDS = re.compile(
    r"embed|\b(bge|e5|gte|minilm|clip|ocr|tts)\b|rerank|whisper|dall-e|moderation|diffusion|transcri|speech|-image|sora-"
    r"|davinci|babbage",
    re.IGNORECASE,
)
_CHAT_TYPES = ("chat", "llm", "language", "text-generation", "model", "vlm")


def _other_kind(card: Json) -> bool:
    """Does a model look like one that does not chat, by what its card says or by its name?"""
    kind = card.get("type")
    typed = isinstance(kind, str) and bool(kind) and kind.lower() not in _CHAT_TYPES
    return typed or _OTHER_KINDS.search(card["id"]) is not None


def listed_as(name: str, listed: Sequence[str]) -> str | None:
    """Returns the listed model that a name means: itself, or its Ollama tag `latest`; None when not listed."""
    return next((one for one in (name, f"{name}:latest") if one in listed), None)
