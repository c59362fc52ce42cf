"""Defines the parts that all handlers of a gateway share, and the keys under which a request carries them."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from afterword.gateway.capture import Capture
from afterword.gateway.episodes import Episodes
from afterword.gateway.keys import KeyRing
from afterword.gateway.link import Links
from afterword.gateway.metrics import Metrics
from afterword.gateway.model_routing import Adapters
from afterword.gateway.origin_policy import OriginPolicy
from afterword.gateway.requester import NameSources
from afterword.gateway.retries import Retries
from afterword.gateway.settings import GatewaySettings
from afterword.gateway.tracing import Tracing
from afterword.records import Json
from afterword.sampling import Upstream
from afterword.store import Store

MANY_FAILURES = 3
"""Failed requests one after the other, with no answer between them, of which `/health` speaks."""


@dataclass(slots=True)
class Outcomes:
    """Tracks recent upstream failures: a server may pass its health check and fail every request."""

    failed_in_a_row: int = 0
    last_failure: str | None = None
    """What the newest failure said, also when answers came since. It may quote a request or an answer."""
    last_reason: str | None = None
    """Its kind, without anybody's words: the upstream's status or a code of ours."""

    def failed(self, message: str, reason: str) -> None:
        """Counts a request that failed upstream.

        Args:
            message: Error message; may quote a user.
            reason: Its status or code; never quotes anybody.
        """
        self.failed_in_a_row += 1
        self.last_failure, self.last_reason = message[:500], reason

    def answered(self) -> None:
        """Counts a request that succeeded."""
        self.failed_in_a_row = 0

    def problem(self, *, quoted: bool) -> str | None:
        """Describes a streak of MANY_FAILURES failures or more; None for less.

        Args:
            quoted: Include the message, which may quote a user; otherwise its code.
        """
        if self.failed_in_a_row < MANY_FAILURES:
            return None
        return f"the last {self.failed_in_a_row} requests failed: {self._last(quoted)}"

    def to_dict(self, *, quoted: bool) -> Json:
        """Returns the fields for /health.

        Args:
            quoted: Include the message, which may quote a user; otherwise its code.
        """
        return {"failed_in_a_row": self.failed_in_a_row, "last_failure": self._last(quoted)}

    def _last(self, quoted: bool) -> str | None:
        return self.last_failure if quoted else self.last_reason


@dataclass(slots=True)
class Gateway:
    """The parts of a running gateway."""

    settings: GatewaySettings
    names: NameSources
    store: Store
    upstream: Upstream
    metrics: Metrics
    keys: KeyRing
    origin_policy: OriginPolicy
    links: Links
    retries: Retries
    capture: Capture
    adapters: Adapters
    outcomes: Outcomes
    episodes: Episodes
    tracing: Tracing | None = None


GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)
KEY: web.RequestKey[str | None] = web.RequestKey("key", str)
"""Where a request carries the public id of its key."""
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
"""Where a request carries its id."""
