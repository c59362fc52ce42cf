"""What the handlers of one gateway share, and how a handler gets at it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from afterword.gateway.capture import Capture
from afterword.gateway.door import Door
from afterword.gateway.keys import KeyRing
from afterword.gateway.link import Links
from afterword.gateway.metrics import Metrics
from afterword.gateway.retries import Retries
from afterword.gateway.settings import GatewaySettings
from afterword.gateway.watcher import Adapters
from afterword.gateway.who import NameSources
from afterword.sampling import Upstream
from afterword.store import Store


@dataclass(slots=True)
class Gateway:
    """The parts of a running gateway."""

    settings: GatewaySettings
    names: NameSources
    store: Store
    upstream: Upstream
    metrics: Metrics
    keys: KeyRing
    door: Door
    links: Links
    retries: Retries
    capture: Capture
    adapters: Adapters


GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)
KEY: web.RequestKey[str | None] = web.RequestKey("key", str)
"""Where a request carries the public id of its key."""
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
"""Where a request carries its id."""
