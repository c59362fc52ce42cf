"""Forecasts when enough interactions are held out for the gate: how many are missing, of which slice, by when.

Reads rows, never writes. The statistics of the last report say how many its effect needs; the gate's limits say the
least.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from afterword.metrics import current
from afterword.records import Interaction, Json, Report, Turn
from afterword.release.gate import GateThresholds, undecided
from afterword.store import Store
from afterword.store.attribution import ConversationRoots
from afterword.store.channels import covers

DAYS = 14.0
"""Days whose arrivals give the present rate."""
NEWEST = 512
"""Held-out interactions that are read."""
MOST = 10_000
"""A report that needs more asks for a better candidate, not for more interactions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutForecast:
    """How much is held out to judge a candidate by, of one slice or of all."""

    task: str | None
    """Slice of work; None for interactions without one, and for all together in `total`."""
    interactions: int
    """With words of the user."""
    conversations: int
    needed: int
    """Interactions that a decision needs: the gate's least, or what the last report says its effect needs."""
    missing: int
    per_day: float
    """Interactions a day in the last `DAYS` days."""
    ready_at: float | None
    """Unix seconds at which none is missing at that rate; None when nothing is missing or nothing arrives."""

    def to_dict(self) -> Json:
        """JSON-compatible."""
        return asdict(self)


def held_out_forecast(
    store: Store, limits: GateThresholds, channel: str = "default", now: float | None = None
) -> tuple[HeldOutForecast, list[HeldOutForecast]]:
    """The forecast for a candidate of `channel`, and for each slice of work as if it were judged alone, the one that
    lacks most first."""
    now = time.time() if now is None else now
    rows = [
        row for row in store.usable("holdout")
        if row.hindsight.strip() and covers(channel, user=row.user, team=row.team, task=row.task)
    ][-NEWEST:]  # fmt: skip
    turns = {turn.id: turn for _, turn in store.among(Turn, "id", [row.turn for row in rows])}
    roots = ConversationRoots(store)
    least = int(limits.min_interactions)
    every = _forecast(None, rows, turns, roots, max(least, _measured(store, limits, channel)), limits, now)
    tasks = dict.fromkeys(row.task for row in (*rows, *_waiting(store, channel)))
    slices = [
        _forecast(task, [row for row in rows if row.task == task], turns, roots, least, limits, now) for task in tasks
    ]
    return every, sorted(slices, key=lambda one: (-one.missing, one.task or ""))


def _waiting(store: Store, channel: str) -> list[Interaction]:
    """Training interactions that no released adapter has learned: their slices are judged next."""
    spent = store.spent(channel)
    return [
        row for row in store.usable("train")
        if row.id not in spent and covers(channel, user=row.user, team=row.team, task=row.task)
    ]  # fmt: skip


def _measured(store: Store, limits: GateThresholds, channel: str) -> int:
    """What the last report says that its effect needs, if that was why the gate said no; else 0."""
    report, release = store.newest(Report), store.release(channel)
    if report is None or report.against != (release.candidate if release else None) or not undecided(report, limits):
        return 0
    shown = current(report.suites.get("holdout", {})).get("needed")
    needed = float(shown["value"]) if isinstance(shown, dict) else 0.0
    return int(needed) if needed <= MOST else 0


def _forecast(
    task: str | None,
    rows: Sequence[Interaction],
    turns: dict[str, Turn],
    roots: ConversationRoots,
    needed: int,
    limits: GateThresholds,
    now: float,
) -> HeldOutForecast:
    asked = [turns[row.turn] for row in rows if row.turn in turns]
    conversations = len({roots.of(turn) for turn in asked})
    short = max(0, math.ceil(limits.min_conversations) - conversations)
    missing = max(needed - len(rows), short)
    recent = [turn.created_at for turn in asked if now - turn.created_at <= DAYS * 86400]
    days = max(1.0, min(DAYS, (now - min((turn.created_at for turn in asked), default=now)) / 86400))
    per_day = len(recent) / days
    return HeldOutForecast(
        task=task,
        interactions=len(rows),
        conversations=conversations,
        needed=needed,
        missing=missing,
        per_day=per_day,
        ready_at=now + missing / per_day * 86400 if missing and per_day else None,
    )
