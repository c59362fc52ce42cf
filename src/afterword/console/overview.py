"""Computes the overview: the funnel from captured to released answers, with losses and reasons at each step."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from afterword.records import Alarm, Candidate, Json, Release, RoundAttempt, Verdict
from afterword.store import Store
from afterword.store.browse import RowCounts
from afterword.store.feedback_stats import feedback_stats

REASONS = {
    "unmatched": "the history matches no stored turn",
    "ambiguous": "several stored turns match",
    "unsure": "the match is too weak",
    "thanks": "the follow-up only says thank you",
    "off_topic": "the follow-up is not about the answer",
    "no_turn": "its turn is not known",
    "no_text": "no words to learn from",
    "retracted": "the user took it back",
    "automated": "a program wrote it",
    "confirmed": "it confirms the answer",
    "no_consent": "the user did not consent to training",
}
"""Meanings of the most frequent reasons, for people."""


@dataclass(frozen=True, slots=True)
class FunnelStep:
    """One step: rows that reach it, and rows lost before it, by reason."""

    name: str
    number: int
    unit: str
    lost: list[tuple[str, int]] = field(default_factory=list)
    """(reason in words, rows), most frequent first."""
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Counts of trained and released interactions, from the candidates' rows."""

    trained: int
    """Interactions that at least one candidate was trained on."""
    released: int
    """Interactions in the ancestry of what the default channel serves."""
    candidates: int
    releases: int


class Overview:
    """Counts of one store, kept up to date in steps. Safe to be called from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.counts = RowCounts()

    def update(self) -> RowCounts:
        """Count the rows since the last call."""
        with self._lock:
            self.counts.update(self._store)
            return self.counts

    def learned(self) -> Learned:
        """Count trained and released interactions."""
        trained: set[str] = set()
        number = 0
        for row in self._store.rows(Candidate):
            trained.update(row.interactions)
            number += 1
        return Learned(
            trained=len(trained), released=len(self._store.spent()), candidates=number,
            releases=self._store.count(Release),
        )  # fmt: skip


def live_metrics(store: Store) -> Json:
    """Shares of reactions by version, week and task, when releases happened, and the newest alarms."""
    return {
        **{by: [row.to_dict() for row in feedback_stats(store, by)] for by in ("adapter", "week", "task")},
        "releases": [
            {"at": row.created_at, "adapter": row.adapter or "base", "action": row.action}
            for row in store.rows(Release, newest=True, limit=50, channel="default")
        ],
        "alarms": [row.to_dict() for row in store.rows(Alarm, newest=True, limit=5)],
    }


def funnel(counts: RowCounts, learned: Learned | None, reviews: Json) -> list[FunnelStep]:
    """The steps, in order.

    Args:
        counts: Rows of the growing tables.
        learned: Trained and released interactions; None while it is being counted.
        reviews: `approved` and `rejected` reviews.
    """
    skips = list(counts.by("skips", "reason").items())
    decided = counts.total("interactions") + counts.total("skips")
    automated = sum(counts.by("turns", "automated").values())
    steps = [
        FunnelStep("Captured", counts.total("turns"), "answers", [], "/console/turns"),
        FunnelStep(
            "Linked", counts.turns(linked=True), "answers that continue a known one",
            [*_worded(list(counts.by("turns", "unlinked").items())),
             *([("the newest message is a program's", automated)] if automated else [])],
        ),
        FunnelStep("Reactions", counts.total("feedback"), "events", [], "/console/turns?kind=any"),
        FunnelStep(
            "Kept", counts.total("interactions"), "interactions to learn from",
            [*_worded(skips), *_undecided(counts.total("feedback") - decided)], "/console/interactions",
        ),
        FunnelStep(
            "Reviewed", int(reviews["approved"]) + int(reviews["rejected"]), "interactions seen by a person",
            [("rejected", int(reviews["rejected"]))] if reviews["rejected"] else [], "/console/review",
        ),
    ]  # fmt: skip
    if learned is not None:
        held_out = counts.by("interactions", "split").get("holdout", 0)
        lost = [("held out to measure candidates", held_out)] if held_out else []
        steps += [
            FunnelStep("Trained", learned.trained, "interactions in a candidate", lost, "/console/candidates"),
            FunnelStep("Released", learned.released, "interactions in what is served", [], "/console/releases"),
        ]
    return steps


def for_a_person(store: Store, waiting: list[str] | None, alarms: list[Json]) -> list[tuple[str, str, str]]:
    """What needs a person: (sentence, what to do, address), most urgent first.

    Args:
        store: Where the rows are.
        waiting: The review queue; None while it is read.
        alarms: The newest alarms.
    """
    found: list[tuple[str, str, str]] = []
    release = store.release()
    served = release.id if release else None
    if any(alarm["release"] == served for alarm in alarms):
        found.append(("An alarm about what is served.", "Look at the releases", "/console/releases"))
    newest = store.newest(Verdict)
    if newest is not None and newest.passed and not any(store.rows(Release, candidate=newest.candidate, limit=1)):
        address = f"/console/candidates/{newest.candidate}"
        found.append(("A candidate passed the gate and is not released.", "Look at it", address))
    failed = store.newest(RoundAttempt)
    if failed is not None and failed.error not in (None, "nothing_to_do"):
        stage = failed.stage or "its start"
        found.append((f"The newest round failed at {stage}: {failed.error}.", "Candidates", "/console/candidates"))
    if waiting:
        found.append((f"{len(waiting)} interactions wait for a review.", "Review", "/console/review"))
    return found


def _worded(reasons: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(REASONS.get(name, name.replace("_", " ")), number) for name, number in reasons]


def _undecided(number: int) -> list[tuple[str, int]]:
    return [("not collected yet", number)] if number > 0 else []


def widths(numbers: list[int]) -> list[float]:
    """Lengths of bars, 0 to 100, relative to the largest number; a number above 0 is always visible."""
    top = max([*numbers, 1])
    return [0.0 if number <= 0 else max(100.0 * number / top, 1.0) for number in numbers]


def chart(live: Json) -> Json:
    """Data of the chart of live metrics by week: `x` (Unix seconds), `series`, and releases to mark.

    Weeks without a reaction are gaps.
    """
    rows = live["week"]
    names = ("acceptance", "correction", "retry", "abandonment")
    series: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in names}
    x = [datetime.fromisoformat(row["name"]).replace(tzinfo=UTC).timestamp() for row in rows]
    return {"x": x, "series": series, "marks": [{"x": row["at"], "name": row["adapter"]} for row in live["releases"]]}
