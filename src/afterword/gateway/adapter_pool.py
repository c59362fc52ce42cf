"""Loads and unloads adapters on the upstream; counts the requests in flight on each.

An upstream name does not identify an adapter: another data directory may use it. An adapter counts as ours only if it
was loaded from our folder; on a name collision ours gets a name with a hash. Never decides which adapter serves a
request.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence

from afterword.records import Json, content_hash
from afterword.sampling import Upstream


class AdapterPool:
    """Tracks the adapters that one gateway has loaded on its upstream, by version name."""

    def __init__(self, upstream: Upstream, most: int) -> None:
        """
        Args:
            upstream: The model server.
            most: Adapters on it at once; the least recently used one makes room.
        """
        self._upstream = upstream
        self._most = most
        self._used: dict[str, float] = {}
        """Version -> when it was last asked for (monotonic seconds)."""
        self._names: dict[str, str] = {}
        """Version -> its name upstream."""
        self._flying: Counter[str] = Counter()
        self._lock = asyncio.Lock()

    def __contains__(self, version: str) -> bool:
        return version in self._used

    def name(self, version: str) -> str:
        """Returns the upstream's name of a loaded version.

        Raises:
            KeyError: If the version is not loaded.
        """
        return self._names[version]

    def adopt(self, cards: Sequence[Json], folders: Mapping[str, str]) -> None:
        """Takes over adapters that the upstream has loaded already.

        Args:
            cards: The upstream's model cards.
            folders: Version -> absolute path of its adapter folder.
        """
        roots = {card["id"]: card.get("root") for card in cards}
        self._used.clear()
        for version, folder in folders.items():
            if roots.get(version) == folder:
                self._add(version, version)
            elif (own := _own_name(version, folder)) in roots:
                self._add(version, own)

    def _add(self, version: str, name: str) -> None:
        self._used[version] = time.monotonic()
        self._names[version] = name

    @property
    def full(self) -> bool:
        """True when one more adapter would need another's place."""
        return len(self._used) >= self._most

    async def load(self, version: str, folder: str, keep: Container[str | None] = ()) -> None:
        """Loads a version unless it is loaded; unloads the least recently used one where there is no room.

        Args:
            version: Version name.
            folder: Absolute path of its adapter folder.
            keep: Versions that stay in any case.

        Raises:
            UpstreamError: If the upstream rejects the adapter or is down.
        """
        async with self._lock:
            if version in self._used:
                return
            await self._make_room(keep)
            name = version
            if await self._upstream.load_adapter(name, folder) != folder:
                name = _own_name(version, folder)
                await self._upstream.load_adapter(name, folder)
            self._add(version, name)

    async def _make_room(self, keep: Container[str | None]) -> None:
        """Adapters in use stay, so there may be more for a moment."""
        for version in sorted(self._used, key=self._used.__getitem__):
            if not self.full:
                return
            if version not in keep and not self._flying[version]:
                del self._used[version]
                await self._upstream.unload_adapter(self._names[version])

    def discard(self, version: str) -> None:
        """Removes a version that the upstream no longer knows."""
        self._used.pop(version, None)

    @contextlib.contextmanager
    def using(self, version: str | None) -> Iterator[None]:
        """Counts a request on its adapter, so that the adapter stays loaded meanwhile. None: the base model."""
        if version is None:
            yield
            return
        self._flying[version] += 1
        if version in self._used:
            self._used[version] = time.monotonic()
        try:
            yield
        finally:
            self._flying[version] -= 1
            if version in self._used:
                self._used[version] = time.monotonic()

    async def unload_idle(self, before: float, keep: Container[str | None], known: Container[str]) -> None:
        """Unloads versions that are idle or no longer known.

        Args:
            before: Time (monotonic seconds) since which an idle version has had no request.
            keep: Versions to keep in any case.
            known: Versions that may still be requested.

        Raises:
            UpstreamError: If the upstream is down.
        """
        for version, used in list(self._used.items()):
            idle = used <= before or version not in known
            if idle and version not in keep and not self._flying[version]:
                del self._used[version]
                await self._upstream.unload_adapter(self._names[version])


def _own_name(version: str, folder: str) -> str:
    """A name that only this folder's adapter has; candidates' folders are never used twice."""
    return f"{version}.{content_hash(folder)[:8]}"
