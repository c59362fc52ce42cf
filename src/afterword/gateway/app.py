"""Composes one gateway application: creates its parts at start, closes them at stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from afterword.gateway.capture import Capture
from afterword.gateway.episodes import Episodes
from afterword.gateway.keys import KeyRing
from afterword.gateway.link import Links
from afterword.gateway.metrics import Metrics
from afterword.gateway.middleware import boundary, guard
from afterword.gateway.model_routing import Adapters
from afterword.gateway.origin_policy import OriginPolicy
from afterword.gateway.requester import NameSources
from afterword.gateway.retries import Retries
from afterword.gateway.routes import ROUTES
from afterword.gateway.settings import GatewaySettings
from afterword.gateway.state import GATEWAY, Gateway, Outcomes
from afterword.gateway.tracing import Tracing
from afterword.sampling import Timeouts, upstream_of
from afterword.sampling.urls import is_loopback
from afterword.store import Store

Extend = Callable[[web.Application, Store], None]
"""Adds routes of other rooms to the application: (application, store)."""


def make_app(settings: GatewaySettings, store: Store, extend: Extend | None = None) -> web.Application:
    """Builds the application.

    Args:
        settings: Settings of the gateway.
        store: Owned and closed by the caller; closing writes all pending records.
        extend: Adds routes, for example the console's.

    Returns:
        The application with all routes of `routes.ROUTES`.
    """
    app = web.Application(middlewares=[boundary], client_max_size=settings.max_body)
    origin_policy = OriginPolicy(settings.allow_origins)
    app.on_response_prepare.append(origin_policy.on_prepare)
    app.cleanup_ctx.append(_parts(settings, store, origin_policy))
    for route in ROUTES:
        path = route.path.replace("{id}", "{id:.+}")  # model ids may contain slashes
        handler = guard(route.handler, route.scope)
        app.router.add_route(route.method, path, handler)
        if route.method == "GET":
            app.router.add_route("HEAD", path, handler)
    if extend is not None:
        extend(app, store)
    return app


def _parts(
    settings: GatewaySettings, store: Store, origin_policy: OriginPolicy
) -> Callable[[web.Application], AsyncIterator[None]]:
    async def run(app: web.Application) -> AsyncIterator[None]:
        metrics = Metrics()
        links = Links(store)
        upstream = upstream_of(
            settings.upstream,
            settings.upstream_key,
            Timeouts(connect=settings.connect_timeout, silence=settings.upstream_timeout),
            remedy=settings.upstream_remedy,
        )
        capture = Capture(store, links, metrics, settings.capture_wait_ms, settings.max_pending)
        gateway = app[GATEWAY] = Gateway(
            settings=settings,
            names=NameSources(settings.user_from, settings.conversation_from),
            store=store,
            upstream=upstream,
            metrics=metrics,
            keys=KeyRing(settings.dir, needed=not is_loopback(settings.host)),
            origin_policy=origin_policy,
            links=links,
            retries=Retries(),
            capture=capture,
            adapters=Adapters(settings, store, upstream, metrics),
            outcomes=Outcomes(),
            episodes=Episodes(store, capture, metrics, settings),
            tracing=Tracing(settings.traces) if settings.traces else None,
        )
        await gateway.adapters.tick()
        follower = asyncio.create_task(gateway.adapters.follow())
        yield
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
        await upstream.close()
        if gateway.tracing is not None:
            await gateway.tracing.close()

    return run
