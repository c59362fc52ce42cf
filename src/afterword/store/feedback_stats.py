"""Computes live metrics: rates of acceptance, edits, corrections, retries and abandonment, by task, adapter and week.

A turn counts when it has feedback that was neither retracted nor changed. Never writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import orjson

from afterword.errors import UsageError
from afterword.kinds import KINDS, counted_as
from afterword.store.schema import TOMBSTONE
from afterword.store.store import Store

GROUPS: dict[str, str] = {
    "all": "'all'",
    "task": "coalesce(t.task, '')",
    "adapter": "coalesce(t.adapter, 'base')",
    "week": "strftime('%Y-%m-%d', t.created_at, 'unixepoch', 'weekday 0', '-6 days')",
}
"""What the figures can be grouped by; a week is named by its Monday (UTC)."""


def _among(names: Iterable[str]) -> str:
    return f"IN ({', '.join(map(repr, names))})"


_KEPT = f"NOT {TOMBSTONE}"
_LEAVING = counted_as("abandoned")
_PRESUMED = [kind for kind in _LEAVING if KINDS[kind].presumed]
_WORDED = f"""(f.kind {_among(counted_as("by_words"))}
    OR (f.kind {_among(counted_as("by_value"))} AND f.value = 0))"""
_UNCHANGED = "i.same IS 1 OR f.id IN (SELECT feedback FROM skips WHERE reason = 'confirmed')"
"""An edit that changes a word has hindsight, so only one that changes nothing is `confirmed` or has none."""
_SIGNS = f"""
WITH f AS (
    SELECT seq, id, turn, kind, json_extract(CAST(body AS TEXT), '$.value') AS value,
           json_extract(CAST(body AS TEXT), '$.exit_code') AS code
    FROM feedback
    WHERE {_KEPT.format("feedback")} AND kind != 'retraction'
        AND id NOT IN (SELECT retracts FROM feedback WHERE retracts IS NOT NULL)
        AND id NOT IN (SELECT feedback FROM skips WHERE reason = 'automated')
        AND id NOT IN (SELECT value FROM json_each(?))
), i AS (
    SELECT turn, max(json_extract(CAST(body AS TEXT), '$.polarity') > 0) AS content,
           max(json_extract(CAST(body AS TEXT), '$.polarity') < 0) AS wanted_else,
           max(kind {_among(counted_as("by_edit"))} AND json_extract(CAST(body AS TEXT), '$.hindsight') = '') AS same
    FROM interactions WHERE {_KEPT.format("interactions")} GROUP BY turn
), signs AS (
    SELECT f.turn,
           max(f.kind {_among(counted_as("accepted"))} OR (f.kind {_among(counted_as("by_value"))} AND f.value > 0)
               OR (f.kind {_among(counted_as("by_exit_code"))} AND f.code = 0)
               OR (f.kind {_among(counted_as("by_edit"))} AND ({_UNCHANGED}))
               OR ({_WORDED} AND i.content IS 1 AND i.wanted_else IS 0)) AS accepted,
           max(f.kind {_among(counted_as("by_edit"))} AND NOT ({_UNCHANGED})) AS edited,
           max(f.kind {_among(counted_as("corrected"))} OR (f.kind {_among(counted_as("by_value"))} AND f.value < 0)
               OR (f.kind {_among(counted_as("by_exit_code"))} AND f.code != 0)
               OR ({_WORDED} AND i.wanted_else IS 1)) AS corrected,
           max(f.kind {_among(counted_as("retried"))}) AS retried,
           max(f.kind {_among(set(_LEAVING) - set(_PRESUMED))})
               OR coalesce(max(CASE WHEN f.kind {_among(_PRESUMED)} THEN f.seq END)
                           > coalesce(max(CASE WHEN f.kind NOT {_among(_LEAVING)} THEN f.seq END), 0), 0) AS abandoned
    FROM f LEFT JOIN i ON i.turn = f.turn GROUP BY f.turn
)
"""
_FIGURES = """
SELECT {group} AS name, count(*), sum(s.accepted AND NOT s.edited), sum(s.edited), sum(s.corrected), sum(s.retried),
       sum(s.abandoned)
FROM turns t JOIN signs s ON s.turn = t.id GROUP BY 1 ORDER BY 1
"""
_AFTER = """
SELECT {group} AS name, count(*), sum(n.accepted AND NOT n.corrected)
FROM turns t JOIN signs s ON s.turn = t.id JOIN turns x ON x.previous = t.id JOIN signs n ON n.turn = x.id
WHERE s.corrected GROUP BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackStats:
    """Shares of the turns that users reacted to; None when there is nothing to divide by."""

    name: str
    """The task, adapter version or week."""
    turns: int
    """Turns that users reacted to."""
    acceptance: float
    """Taken as they were: accepted, saved, copied, praised, run without error, edited without a change."""
    edited: float
    """Accepted after an edit."""
    correction: float
    """The user said or showed what was wrong, voted against it, or undid it."""
    retry: float
    """Asked again."""
    abandonment: float
    """Stopped, or given up with no later reaction."""
    post_correction_success: float | None
    """Of the answers that followed a corrected one and were reacted to: accepted, and not corrected again."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def feedback_stats(store: Store, by: str = "all") -> list[FeedbackStats]:
    """The figures for each value of `by` (a key of GROUPS). UsageError for another one."""
    if by not in GROUPS:
        raise UsageError(f"figures cannot be grouped by {by!r}; use one of {', '.join(GROUPS)}.", param="by")
    changed = (orjson.dumps(sorted(store.superseded())).decode(),)
    after = {row[0]: row[1:] for row in store.read(_SIGNS + _AFTER.format(group=GROUPS[by]), changed)}
    found = []
    for name, turns, *counts in store.read(_SIGNS + _FIGURES.format(group=GROUPS[by]), changed):
        accepted, edited, corrected, retried, abandoned = (count / turns for count in counts)
        followed, mended = after.get(name, (0, 0))
        found.append(
            FeedbackStats(
                name=name, turns=turns, acceptance=accepted, edited=edited, correction=corrected, retry=retried,
                abandonment=abandoned, post_correction_success=mended / followed if followed else None,
            )
        )  # fmt: skip
    return found
