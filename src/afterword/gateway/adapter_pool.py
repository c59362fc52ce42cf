"""Which adapters the upstream holds for this gateway, under which names, and how many requests are on each.

Owns loading and unloading. A name upstream says nothing about what is behind it: another data directory's release
may have the same one. So an adapter counts as ours only when it came from our folder; where another has the name, or
the upstream does not say, ours is loaded beside it under a name of its own. Never decides which adapter serves whom.
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
    """The adapters of one gateway upstream, by version name."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._used: dict[str, float] = {}
        """Version -> when it was last asked for (monotonic seconds)."""
        self._names: dict[str, str] = {}
        """Version -> its name upstream."""
        self._flying: Counter[str] = Counter()
        self._lock = asyncio.Lock()

    def __contains__(self, version: str) -> bool:
        return version in self._used

    def name(self, version: str) -> str:
        """What the upstream calls a version that is loaded."""
        return self._names[version]

    def adopt(self, cards: Sequence[Json], folders: Mapping[str, str]) -> None:
        """Take over what the upstream has already. `folders`: version -> its folder."""
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

    async def load(self, version: str, folder: str) -> None:
        """Have a version loaded. UpstreamError when the upstream does not take it."""
        async with self._lock:
            if version in self._used:
                return
            name = version
            if await self._upstream.load_adapter(name, folder) != folder:
                name = _own_name(version, folder)
                await self._upstream.load_adapter(name, folder)
            self._add(version, name)

    def discard(self, version: str) -> None:
        """The upstream does not know it any more."""
        self._used.pop(version, None)

    @contextlib.contextmanager
    def using(self, version: str | None) -> Iterator[None]:
        """Count a request on its adapter, so that it is not unloaded meanwhile."""
        if version is None:
            yield
            return
        self._flying[version] += 1
        try:
            yield
        finally:
            self._flying[version] -= 1
            if version in self._used:
                self._used[version] = time.monotonic()

    async def unload_idle(self, before: float, keep: Container[str | None], known: Container[str]) -> None:
        """Unload what nobody asked for since `before` or that is not `known` any more, but for what is in `keep`."""
        for version, used in list(self._used.items()):
            idle = used <= before or version not in known
            if idle and version not in keep and not self._flying[version]:
                del self._used[version]
                await self._upstream.unload_adapter(self._names[version])


def _own_name(version: str, folder: str) -> str:
    """A name that only this folder's adapter has; candidates' folders are never used twice."""
    return f"{version}.{content_hash(folder)[:8]}"
