"""Queries that poll for new rows: those after a row number, a few columns each.

They run again and again beside serving, so they read no token ids and no messages. Never writes, never interprets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from afterword.records import Record, Release
from afterword.store.codec import decoder, select
from afterword.store.schema import TOMBSTONE
from afterword.store.store import Store


class LiveTurn(NamedTuple):
    """A turn as far as it counts for a comparison."""

    seq: int
    id: str
    at: float
    """Unix seconds."""
    unit: str
    """Whom it belongs to: what the gateway took shares by, else the user, the conversation, the turn itself."""
    adapter: str | None
    finish_reason: str | None
    seconds: float | None
    tokens: int | None
    """Tokens of the answer."""
    user: str | None = None


class LiveFeedback(NamedTuple):
    """A feedback row; `body` is its JSON."""

    seq: int
    id: str
    turn: str
    kind: str
    retracts: str | None
    body: bytes


_ALIVE = f"NOT {TOMBSTONE.format('t')}"
_TURN = """SELECT t.seq, t.id, t.created_at, coalesce(t.unit, t.user, t.conversation, t.id), t.adapter,
    t.finish_reason, t.seconds, length(t.completion_ids) / 4, t.user FROM turns t"""


def last_seq(store: Store, kind: type[Record]) -> int:
    """Row number of the newest row of a kind, 0 when there is none."""
    return int(next(store.read(f"SELECT coalesce(max(seq), 0) FROM {kind.TABLE}"))[0])


def turns_of_canary(store: Store, canary: str, after: int, limit: int) -> list[LiveTurn]:
    """Turns that were routed under a canary, from beyond row `after`, oldest first."""
    sql = f"{_TURN} WHERE t.canary = ? AND t.seq > ? AND {_ALIVE} ORDER BY t.seq LIMIT ?"
    return [LiveTurn(*row) for row in store.read(sql, (canary, after, limit))]


def turns_of_adapter(
    store: Store, adapter: str | None, after: int, until: int, limit: int, *, newest: bool = False
) -> list[LiveTurn]:
    """Served turns of an adapter (None: the base model) with row numbers in (after, until].

    Oldest first; with `newest` the last `limit` of them, newest first.
    """
    order = "DESC" if newest else "ASC"
    sql = (
        f"{_TURN} WHERE t.adapter IS ? AND t.source = 'gateway' AND t.seq > ? AND t.seq <= ? AND {_ALIVE} "
        f"ORDER BY t.seq {order} LIMIT ?"
    )
    return [LiveTurn(*row) for row in store.read(sql, (adapter, after, until, limit))]


def feedback_after(store: Store, after: int, limit: int) -> list[LiveFeedback]:
    """Feedback from beyond row `after`, oldest first."""
    sql = "SELECT seq, id, turn, kind, retracts, body FROM feedback WHERE seq > ? ORDER BY seq LIMIT ?"
    return [LiveFeedback(*row) for row in store.read(sql, (after, limit))]


def feedback_on(store: Store, turns: Sequence[str]) -> Iterator[LiveFeedback]:
    """All feedback on these turns, in the order written within each page of 500 turns."""
    for start in range(0, len(turns), 500):
        part = turns[start : start + 500]
        marks = ", ".join("?" * len(part))
        sql = f"SELECT seq, id, turn, kind, retracts, body FROM feedback WHERE turn IN ({marks}) ORDER BY seq"
        for row in store.read(sql, part):
            yield LiveFeedback(*row)


def releases_after(store: Store, after: int) -> list[tuple[int, Release]]:
    """(row number, release) from beyond row `after`, oldest first, all channels."""
    decode = decoder("releases")
    head = select("releases").replace("SELECT ", "SELECT t.seq, ", 1)
    return [(row[0], decode(row[1:])) for row in store.read(f"{head} WHERE t.seq > ? ORDER BY t.seq", (after,))]
