"""Decides a canary from both arms' metrics as they come in.

Approval decides: surely higher promotes, surely lower rolls back. Every other metric guards: surely
worse by more than its limit rolls back. "Surely" holds for all looks together (see `always_valid`): approval gets half
of alpha, the guards share the other half. At the horizon a candidate that is shown not to be worse by the smallest
effect that matters is promoted, and any other rolled back. Never writes a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from afterword.records import Json, Release
from afterword.release.always_valid import Interval, compare
from afterword.release.canary_metrics import CANARY_METRICS, ArmOutcomes, ArmTracker, CanaryMetric, Reader, shown
from afterword.store import Store
from afterword.store.polling import LiveTurn, feedback_after, turns_of_canary

PAGE = 5000
"""Rows that are read together."""
TURNS_PER_JUDGED = 20
"""Where hardly anyone reacts, a canary ends after so many turns for each judged one of the horizon."""
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class CanaryDecision:
    """A decision about a canary, with its reason."""

    action: Literal["promote", "rollback"]
    why: str
    evidence: Json


@dataclass(frozen=True, slots=True)
class Finding:
    """One metric of both arms."""

    metric: CanaryMetric
    interval: Interval
    limit: float

    @property
    def worse(self) -> bool:
        """Surely worse by more than the limit."""
        if self.metric.better == "higher":
            return self.interval.high < -self.limit
        return self.interval.low > self.limit

    def sentence(self) -> str:
        """The difference in words."""
        i = self.interval
        return f"{self.metric.says}: {i.value:+.3f} [{i.low:+.3f}, {i.high:+.3f}]"


class Trial:
    """A running canary. Reads each row once; reading again from the start gives the same metrics."""

    def __init__(self, store: Store, canary: Release, reader: Reader) -> None:
        self.canary = canary
        self.new, self.old = ArmOutcomes(), ArmOutcomes()
        self._store = store
        self._tracker = ArmTracker(store, self._side, reader)
        self._rows: dict[str, int] = dict(canary.terms["after"])

    def _side(self, turn: LiveTurn) -> ArmOutcomes:
        return self.new if self.canary.gets(turn.unit) else self.old

    def read(self) -> int:
        """Read new rows; returns their number."""
        number = 0
        while turns := turns_of_canary(self._store, self.canary.id, self._rows["turns"], PAGE):
            self._rows["turns"] = turns[-1].seq
            self._tracker.turns(turns)
            number += len(turns)
        while feedback := feedback_after(self._store, self._rows["feedback"], PAGE):
            self._rows["feedback"] = feedback[-1].seq
            self._tracker.feedback(feedback)
            number += len(feedback)
        return number

    def look(self, now: float) -> CanaryDecision | None:
        """The decision on the rows read so far; None while undecided."""
        terms = self.canary.terms
        return judge(self.new, self.old, terms, self.over(now), {"rows": dict(self._rows), "at": now})

    def over(self, now: float) -> str | None:
        """Why an undecided canary ends now."""
        terms = self.canary.terms
        if self.new.judged.turns >= terms["horizon"]:
            return f"the horizon of {terms['horizon']} judged turns is reached"
        if self.new.turns.turns >= TURNS_PER_JUDGED * terms["horizon"]:
            return f"{self.new.turns.turns} turns are over and only {self.new.judged.turns} of them were judged"
        if now - self.canary.created_at >= terms["days"] * DAY:
            return f"{terms['days']:g} days are over"
        return None

    def status(self) -> Json:
        """Both arms and their differences up to now."""
        return evidence(self.new, self.old, findings(self.new, self.old, self.canary.terms))


def findings(new: ArmOutcomes, old: ArmOutcomes, terms: Json) -> list[Finding]:
    """Every metric with its always-valid interval; approval first."""
    guards = len(CANARY_METRICS) - 1
    found = []
    for metric in CANARY_METRICS:
        alpha = terms["alpha"] / 2 if not metric.limit else terms["alpha"] / 2 / guards
        limit = terms[metric.limit] if metric.limit else 0.0
        limit = math.log1p(limit) if metric.name == "latency" else limit
        found.append(Finding(metric, compare(new.arm(metric), old.arm(metric), metric.name, alpha), limit))
    return found


def judge(
    new: ArmOutcomes, old: ArmOutcomes, terms: Json, over: str | None = None, more: Json | None = None
) -> CanaryDecision | None:
    """The rule. `over` says why the canary must end now."""
    least: int = terms["min_users"]

    def known(metric: CanaryMetric) -> bool:  # its interval is asymptotic, and many may talk of whom few judge
        return min(len(side.arm(metric).units) for side in (new, old)) >= least

    found = findings(new, old, terms)
    approval, enough = found[0].interval, known(found[0].metric)
    action: Literal["promote", "rollback"] = "rollback"
    worse = [f for f in found if f.worse and known(f.metric)]
    if worse:
        why = "surely worse: " + "; ".join(f.sentence() for f in worse)
    elif enough and approval.low > 0:
        action, why = "promote", f"surely better: {found[0].sentence()}"
    elif over is None:
        return None
    elif enough and approval.low >= -terms["min_effect"]:
        action, why = "promote", f"{over}, and it is not worse by {terms['min_effect']:g}: {found[0].sentence()}"
    else:
        why = f"{over}, and nothing shows that it is not worse by {terms['min_effect']:g}: {found[0].sentence()}"
    return CanaryDecision(
        action, f"{why} on {_size(new)} against {_size(old)}", {**evidence(new, old, found), **(more or {})}
    )


def evidence(new: ArmOutcomes, old: ArmOutcomes, found: list[Finding]) -> Json:
    """The evidence of a decision, as JSON."""
    return {
        "arms": {"candidate": new.to_dict(), "served": old.to_dict()},
        "figures": {f.metric.name: {**shown(f.interval), "limit": f.limit, "worse": f.worse} for f in found},
    }


def _size(side: ArmOutcomes) -> str:
    return f"{side.judged.turns} judged turns of {len(side.judged.units)} users"
