"""Defines the settings of one gateway process; fixed at its start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from afterword.config import CONVERSATION_FROM, USER_FROM
from afterword.records import Json

REMEDY = "Start it, or point --upstream at another one."
"""What to do when an upstream that somebody else runs is down."""

MIN_ROOM = 64
"""Tokens that the engine must have left for an answer; with fewer the context counts as full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Addresses, limits and names of one gateway process."""

    dir: Path
    """Data directory: the database, adapters, `keys.json`."""
    upstream: str
    """URL of the model server, with or without `/v1`."""
    upstream_key: str | None = None
    """API key for the upstream."""
    upstream_remedy: str = REMEDY
    """What to do when the upstream is down."""
    artifacts: str | None = None
    """Object store that has the adapters too."""
    engine: Callable[[], Json] | None = None
    """State of the embedded engine (`restarts`, `last_reason`), for `/health`; None with somebody else's upstream."""
    upstream_model: str | None = None
    """Base model behind NAME, the one that adapters belong to; None takes the first that looks like a chat model.
    Needed where the upstream does not list its models."""
    preferred_model: str | None = None
    """The same, but only where the upstream lists it or lists nothing."""
    embedded: bool = False
    """The upstream is our own engine."""
    sampling_defaults: Json = field(default_factory=dict)
    """What the upstream uses for sampling fields that a request leaves unset, as far as it is known; recorded with each
    turn (`chat.sampling_fields`)."""
    max_tokens: int | None = None
    """Bound of an answer whose request names none; None sets none."""
    on_full_context: Literal["drop_oldest", "error"] = "error"
    """What to do when the messages are longer than the model's context: leave out the oldest turns, or answer with the
    upstream's error and what to do."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than loopback needs an API key."""
    port: int = 8400
    """Port; 0 takes a free one."""
    name: str = "afterword"
    """Model name that users address; versions are NAME@v000001 and so on."""
    allow_origins: tuple[str, ...] = ()
    """Origins beside this machine's whose pages may use the gateway; their names are answered without keys, too."""
    user_from: tuple[str, ...] = USER_FROM
    """Where a request names its user, besides `x-afterword-user` and the body's `user`; see `requester`."""
    conversation_from: tuple[str, ...] = CONVERSATION_FROM
    """The same for the conversation."""
    train: bool = True
    """May turns be trained on whose request does not say?"""
    channel: str = "default"
    """Channel whose newest release NAME serves."""
    capture_wait_ms: float = 20.0
    """The last chunk of an answer waits so long for its turn to be on disk, then leaves anyway."""
    max_pending: int = 10_000
    """Turns that may wait for a commit; beyond that they are dropped and counted."""
    redact: str = "off"
    """Private data that is taken out of turns and feedback before they are stored: "off", "rules", "presidio"."""
    max_body: int = 16 * 2**20
    """Bytes of a request body; larger ones get a 413."""
    connect_timeout: float = 5.0
    """Seconds until the connection to the upstream stands."""
    upstream_timeout: float = 600.0
    """Seconds without a byte from the upstream before the answer is given up (504)."""
    poll_ms: float = 100.0
    """How often the store is asked for a new release."""
    adapter_idle: float = 60.0
    """Seconds without a request after which an adapter that is neither current nor previous is unloaded."""
    traces: str | None = None
    """URL of an OpenTelemetry collector."""
    max_adapters: int = 64
    """Adapters on the upstream at once; beyond it the least recently used one is unloaded."""
    stop_patience: float = 5.0
    """Seconds that answers in flight get to finish when the server stops."""

    episode_turns: int = 1000
    """Requests of one episode; further ones are rejected."""
    episode_tokens: int = 1_000_000
    """Tokens of all answers of one episode, as above."""
    episode_seconds: float = 86_400.0
    """Age of an episode, as above."""

    def extras(self) -> Json:
        """Fields added to every upstream request, unless the client sets them or the upstream rejects them."""
        more: Json = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return {**more, "stop_repetition": True, "min_room": MIN_ROOM} if self.embedded else more

    @property
    def database(self) -> Path:
        """Path of the database file."""
        return self.dir / "afterword.db"
