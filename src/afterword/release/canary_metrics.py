"""Counts users' reactions to the turns of two arms, metric by metric, event by event.

Owns the denominator of each metric; the table of kinds says which reaction a feedback row counts as. Never decides,
never writes. The caller brings the function that reads words (a follow-up, a comment, an edit).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

import orjson

from afterword.kinds import KINDS, Reaction, disproved, reaction_of
from afterword.records import Feedback, Json, Turn
from afterword.release.always_valid import ArmSums, Interval
from afterword.store import Store
from afterword.store.polling import LiveFeedback, LiveTurn
from afterword.store.votes import VOTE, Vote, superseded, voter_of

Reader = Callable[[Turn, Feedback], int]
"""Does the user say yes (+1), no (-1) or neither (0)? For `edited`: -1 when anything changed."""
Basis = Literal["judged", "turns", "timed"]


@dataclass(frozen=True, slots=True)
class CanaryMetric:
    """One line of a comparison."""

    name: str
    basis: Basis
    """Of which turns: those that a user reacted to, all, or those with a time."""
    better: Literal["higher", "lower"]
    limit: str
    """The term that says how much worse is too much; approval decides and has none."""
    says: str


CANARY_METRICS = (
    CanaryMetric("approval", "judged", "higher", "", "approval (1 content, -1 corrected) a judged turn"),
    CanaryMetric("acceptance", "turns", "higher", "max_rise", "turns that were accepted"),
    CanaryMetric("edits", "turns", "lower", "max_rise", "turns that were edited"),
    CanaryMetric("retries", "turns", "lower", "max_rise", "turns that were asked again"),
    CanaryMetric("complaints", "turns", "lower", "max_rise", "turns that were complained about"),
    CanaryMetric("abandonment", "turns", "lower", "max_rise", "turns that were left or stopped"),
    CanaryMetric("errors", "turns", "lower", "max_errors", "turns that failed"),
    CanaryMetric("latency", "timed", "lower", "max_slower", "seconds a token (logarithm)"),
)

METRICS: dict[Reaction, str] = {
    "accepted": "acceptance", "edited": "edits", "corrected": "complaints", "retried": "retries",
    "abandoned": "abandonment",
}  # fmt: skip
"""What each reaction of the table of kinds counts for."""
EARLY = 10_000
"""Turns whose feedback waits for them at most."""
ENDED = {"error": "errors", "aborted": "abandonment"}
"""Finish reason -> what the turn counts for before anybody reacts."""
CORRECTED = frozenset(("edits", "retries", "complaints", "errors"))
"""Any of these, and the user did not get what they wanted. Leaving is too weak a sign for that."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One feedback row, with the metric that it counts for by itself."""

    id: str
    kind: str
    metric: str | None
    vote: Vote | None


@dataclass(slots=True)
class TurnOutcome:
    """A turn in one of the arms, with its outcome."""

    side: ArmOutcomes
    unit: str
    user: str | None = None
    """Who asked."""
    base: frozenset[str] = frozenset()
    """What the turn itself counts for: an error, a client that left."""
    rows: list[_Row] | None = None
    """Feedback that was not taken back, in order of arrival; None while nobody reacted, as most turns stay."""
    flags: frozenset[str] = frozenset()
    """Metrics that it counts for now."""
    approval: int | None = None
    """-1, 0 or 1; None while nobody judged."""


@dataclass(slots=True)
class ArmOutcomes:
    """One arm; each metric is counted on its own kind of turns."""

    turns: ArmSums = field(default_factory=ArmSums)
    judged: ArmSums = field(default_factory=ArmSums)
    timed: ArmSums = field(default_factory=ArmSums)

    def arm(self, metric: CanaryMetric) -> ArmSums:
        """The sums that hold a metric."""
        return self.turns if metric.basis == "turns" else self.judged if metric.basis == "judged" else self.timed

    def to_dict(self) -> Json:
        """Counts and metrics for a person."""
        shown: Json = {"users": len(self.turns.units), "turns": self.turns.turns, "judged": self.judged.turns}
        for metric in CANARY_METRICS:
            arm = self.arm(metric)
            value = arm.ratio(metric.name) if arm.turns else None
            if metric.name == "latency":
                shown["seconds_per_token"] = None if value is None else math.exp(value)
            else:
                shown[metric.name] = value
        return shown


class ArmTracker:
    """The sides of a comparison, by what `side_of` says of each turn (None: it takes no part)."""

    def __init__(self, store: Store, side_of: Callable[[LiveTurn], ArmOutcomes | None], reader: Reader) -> None:
        self._store = store
        self._side_of = side_of
        self._reader = reader
        self._seen: dict[str, TurnOutcome] = {}
        self._early: dict[str, list[LiveFeedback]] = {}
        """Feedback on turns that are not known: they take no part, or their row comes later."""

    def turns(self, rows: Iterable[LiveTurn]) -> None:
        """Take in turns; one that was taken in already changes nothing."""
        for row in rows:
            side = self._side_of(row)
            if side is None or row.id in self._seen:
                continue
            seen = self._seen[row.id] = TurnOutcome(side, row.unit, row.user)
            side.turns.turn(row.unit)
            if row.finish_reason in ENDED:
                seen.base = frozenset({ENDED[row.finish_reason]})
                self._count(seen)
            elif row.seconds and row.tokens:
                side.timed.turn(row.unit)
                side.timed.count(row.unit, "latency", math.log(row.seconds / row.tokens))
            if row.id in self._early:
                self.feedback(self._early.pop(row.id))

    def feedback(self, rows: Sequence[LiveFeedback]) -> None:
        """Count feedback; feedback on turns outside the comparison is ignored."""
        mine = []
        for row in rows:
            if row.turn in self._seen:
                mine.append(row)
            else:
                self._early.setdefault(row.turn, []).append(row)
        while len(self._early) > EARLY:
            del self._early[next(iter(self._early))]
        signs = self._read_words(mine)
        touched: dict[str, TurnOutcome] = {}
        for row in mine:
            seen = touched[row.turn] = self._seen[row.turn]
            if row.kind == "retraction":
                seen.rows = [one for one in seen.rows or () if one.id != row.retracts]
            elif all(one.id != row.id for one in seen.rows or ()):
                taken = self._row(row, seen, signs.get(row.id, 0))
                seen.rows = [*(seen.rows or ()), taken]
                if taken.metric not in (None, "abandonment"):
                    self._judged(seen)
        for seen in touched.values():
            self._count(seen)

    def _row(self, row: LiveFeedback, seen: TurnOutcome, sign: int) -> _Row:
        counted = KINDS[row.kind].counted if row.kind in KINDS else None
        data = orjson.loads(row.body) if counted in ("by_value", "by_exit_code") else {}
        reaction = reaction_of(row.kind, value=data.get("value"), exit_code=data.get("exit_code"), sign=sign)
        vote = None
        if row.kind == VOTE:
            vote = Vote(row.seq, row.id, row.turn, voter_of(data, seen.user), data.get("occurred_at"))
        return _Row(row.id, row.kind, METRICS[reaction] if reaction else None, vote)

    def _read_words(self, rows: list[LiveFeedback]) -> dict[str, int]:
        """Feedback -> polarity of its words; the turns are fetched for it."""
        said = {row.id: (row.turn, data) for row in rows if (data := _worded(row)) is not None}
        if not said:
            return {}
        turns = {t.id: t for _, t in self._store.among(Turn, "id", list({turn for turn, _ in said.values()}))}
        return {
            name: self._reader(turns[turn], Feedback.from_dict({"id": name, "created_at": 0.0, **data}))
            for name, (turn, data) in said.items()
            if turn in turns  # else its user was forgotten meanwhile
        }

    def _count(self, seen: TurnOutcome) -> None:
        """A turn counts once for each metric: of each user the newest vote, and no departure that was disproved."""
        rows = seen.rows or ()
        lost = superseded(row.vote for row in rows if row.vote is not None)
        lost |= disproved((row.id, row.kind) for row in rows if row.id not in lost)
        flags = seen.base.union(row.metric for row in rows if row.metric and row.id not in lost)
        for flag in flags ^ seen.flags:
            seen.side.turns.count(seen.unit, flag, 1 if flag in flags else -1)
        seen.flags = flags
        if flags - {"abandonment"}:
            self._judged(seen)
        value = approval_of(flags)
        if seen.approval is not None and value != seen.approval:
            seen.side.judged.count(seen.unit, "approval", value - seen.approval)
            seen.approval = value

    def _judged(self, seen: TurnOutcome) -> None:
        if seen.approval is None:
            seen.approval = 0
            seen.side.judged.turn(seen.unit)


def _worded(row: LiveFeedback) -> Json | None:
    """The fields of a row whose words decide, None for another one."""
    counted = KINDS[row.kind].counted if row.kind in KINDS else None
    if counted not in ("by_words", "by_edit", "by_value"):
        return None
    data: Json = orjson.loads(row.body)
    return None if counted == "by_value" and (data.get("value") or not data.get("text")) else data


def approval_of(flags: Set[str]) -> int:
    """-1 when anything had to be corrected, 1 when it was only accepted, 0 when everything was taken back."""
    return -1 if CORRECTED & flags else 1 if "acceptance" in flags else 0


def shown(interval: Interval) -> Json:
    """An interval as JSON: an end that is not known is null."""
    ends = {"difference": interval.value, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in ends.items()}
