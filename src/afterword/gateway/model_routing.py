"""Resolves a model name to the model of the upstream and the adapter, by requester, channel and canary share.

Serving never waits for a new release: until its adapter is loaded, the old one answers (`release_follower`).
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import NamedTuple

from afterword.errors import NotFoundError, UpstreamError
from afterword.gateway.release_follower import NOBODY, ReleaseFollower, listed_as
from afterword.gateway.requester import ANYBODY, Requester
from afterword.records import Json, Release
from afterword.sampling import NO_LIST
from afterword.store.channels import Serving, channels_of

_ASK_AGAIN = 10.0
"""Seconds after which a server without a list of models is asked for one again."""


class Route(NamedTuple):
    """Destination of a request: the upstream model name, and the adapter behind it."""

    model: str
    adapter: str | None
    canary: str | None = None
    """The canary release under which the adapter was given out."""


class Adapters(ReleaseFollower):
    """Resolves the names that one gateway serves: aliases, channels, versions and the upstream's own models."""

    def serving_for(self, requester: Requester) -> Serving:
        """Returns the adapters served to a requester.

        Args:
            requester: User, team and task of the request.

        Returns:
            The narrowest channel with a release of its own, and the canary of that channel or of a narrower one.
        """
        bottom = self.serving.get(self._settings.channel, NOBODY)
        if self.serving.keys() <= {self._settings.channel}:
            return bottom
        canary: Release | None = None
        for name in channels_of(requester.user, requester.team, requester.task):
            state = self.serving.get(name)
            if state is None:
                continue
            canary = canary or state.canary
            if state.adapter is not None:
                return Serving(state.served, state.before, canary)
        return Serving(bottom.served, bottom.before, canary or bottom.canary)

    def aliases(self, requester: Requester = ANYBODY) -> dict[str, str | None]:
        """Returns alias -> adapter for a requester (None: the base model)."""
        name, state = self._settings.name, self.serving_for(requester)
        found = {name: state.adapter, f"{name}@base": None}
        if state.canary is not None:
            found[f"{name}@canary"] = state.canary.adapter
        if state.served is not None:
            found[f"{name}@previous"] = state.before.adapter if state.before else None
        return found

    async def resolve(self, model: str, requester: Requester = ANYBODY) -> Route:
        """Resolves a model name to its route; loads the adapter.

        Args:
            model: Name in the request: an alias, a version, or a model of the upstream.
            requester: User, team and task of the request.

        Raises:
            NotFoundError: If the model does not exist.
            UpstreamError: If the upstream is down or rejects the adapter.
        """
        if not self.bases:
            try:
                await self._known()
            except UpstreamError as error:
                if error.code != NO_LIST or model.partition("@")[0] == self._settings.name:
                    raise
                return Route(model, None)  # the client names a model of a server that lists none
        if model == self._settings.name:
            return await self._shared(self.serving_for(requester), requester)
        aliases = self.aliases(requester)
        if model in aliases:
            adapter = aliases[model]
        elif (base := listed_as(model, self.bases)) is not None:
            return Route(base, None)
        elif model in self._versions or self._is_new_version(model) or self._is_candidate(model):
            adapter = model
        else:
            raise NotFoundError(self._unknown(model, aliases), param="model", code="model_not_found")
        return Route(await self._load(adapter), adapter)

    async def _known(self) -> None:
        """Have the upstream's models known. A server that lists none is not asked with every request."""
        if self._unlisted is not None and time.monotonic() < self._unlisted[0]:
            raise self._unlisted[1].with_traceback(None)  # else it would hold the frames of every request
        try:
            await self.sync()
        except UpstreamError as error:
            if error.code == NO_LIST:
                self._unlisted = (time.monotonic() + _ASK_AGAIN, error)
            raise
        self._unlisted = None

    async def _shared(self, state: Serving, requester: Requester) -> Route:
        """The route of NAME: a canary has its share of the units, and both arms are marked."""
        canary = state.canary if requester.unit else None
        adapter = canary.adapter if canary is not None and canary.gets(requester.unit) else state.adapter
        return Route(await self._load(adapter), adapter, canary.id if canary is not None else None)

    def _unknown(self, model: str, aliases: dict[str, str | None]) -> str:
        name = self._settings.name
        if model == f"{name}@canary":
            return f"the model {model!r} does not exist: no canary is running. Use {name!r}."
        if model == f"{name}@previous":
            return f"the model {model!r} does not exist: no adapter was released yet. Use {name!r}, the base model."
        known = ", ".join([*aliases, *self._versions, *self.bases])
        return f"the model {model!r:.200} does not exist: use one of {known}."

    def _is_new_version(self, model: str) -> bool:
        if model.startswith(f"{self._settings.name}@v"):
            self._read_versions()
        return model in self._versions

    def cards(self) -> list[Json]:
        """Lists the model cards of /v1/models."""
        base = self.bases[0] if self.bases else None

        def card(identifier: str, root: str | None, parent: str | None, at: float) -> Json:
            shared = {"id": identifier, "object": "model", "created": int(at), "owned_by": "afterword"}
            return {**shared, "root": root, "parent": parent}

        self._read_versions()
        cards = [card(b, b, None, self._since[b]) for b in self.bases]
        cards += [card(v, r.path, base, r.created_at) for v, r in self._versions.items()]
        for alias, adapter in self.aliases().items():
            if alias not in self.bases:
                at = self._versions[adapter].created_at if adapter in self._versions else self._since.get(base or "", 0)
                cards.append(card(alias, adapter or base, base if adapter else None, at))
        return cards

    def using(self, route: Route) -> AbstractContextManager[None]:
        """Counts a request on its adapter, so that the adapter stays loaded meanwhile."""
        return self._pool.using(route.adapter)

    async def reroute(self, route: Route, model: str, requester: Requester) -> Route:
        """Resolves a model again after the upstream answered that it does not know the route (a restart).

        Args:
            route: The failed route.
            model: Name in the request.
            requester: User, team and task of the request.

        Raises:
            NotFoundError: If the model does not exist any more.
            UpstreamError: If the upstream is down or rejects the adapter.
        """
        if route.adapter is not None:
            self._pool.discard(route.adapter)
        else:
            await self.discover()
        return await self.resolve(model, requester)
