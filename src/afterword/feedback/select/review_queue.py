"""Selects the interactions that people review, and measures how often reviewers agree with the automatic decision.

The queue holds a random share of all interactions (by a hash, so that nobody can choose) and the share with the least
detector confidence. Never writes. A decision is a Review row.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from afterword.config import NonNegative, UnitInterval, check_section
from afterword.records import Interaction, Review, content_hash
from afterword.store import Store
from afterword.store.browse import confidences_after, erasure_count, reviewed


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewSettings:
    """`[review]`: the review queue."""

    share: UnitInterval = 0.05
    """Share of interactions that are queued at random."""
    strange: UnitInterval = 0.05
    """Share of interactions that are queued for the lowest detector confidence."""
    deadline_hours: NonNegative = 72.0
    """Hours until `unseen` applies to an interaction without a review."""
    meanwhile: Literal["use", "wait"] = "use"
    """Before the deadline: train on it ("use"), or hold it back ("wait")."""
    unseen: Literal["use", "drop"] = "use"
    """After the deadline without a review: train on it ("use"), or never ("drop")."""

    def __post_init__(self) -> None:
        check_section("review", self)


READ_AT_ONCE = 2000
"""Interactions that the index reads in one query."""


def is_drawn(name: str, settings: ReviewSettings) -> bool:
    """True for the id of an interaction of the random share."""
    return int(content_hash("review", name)[:8], 16) < settings.share * 2**32


def drawn(interaction: Interaction, settings: ReviewSettings) -> bool:
    """True for an interaction of the random share."""
    return is_drawn(interaction.id, settings)


def strangest(interactions: Iterable[Interaction], settings: ReviewSettings) -> set[str]:
    """Ids of the interactions with the least confidence; a hash breaks ties."""
    rows = [i for i in interactions if i.hindsight]
    ordered = sorted(rows, key=lambda i: (i.confidence, content_hash("strange", i.id)))
    return {i.id for i in ordered[: int(len(rows) * settings.strange)]}


def review_queue(interactions: Iterable[Interaction], settings: ReviewSettings) -> list[Interaction]:
    """Interactions for review, oldest first, with the reviewed and the held-out ones (those decide releases)."""
    rows = list(interactions)
    odd = strangest(rows, settings)
    return [i for i in rows if i.id in odd or drawn(i, settings)]


class ReviewIndex:
    """The queue of a store that grows: each interaction is read once, so that a page can ask for the queue.

    Args:
        settings: Shares of the queue.
    """

    def __init__(self, settings: ReviewSettings) -> None:
        self._settings = settings
        self._clear(0)

    def _clear(self, erasures: int) -> None:
        self._last, self._erasures = 0, erasures
        self._unsure: list[tuple[float, str, int, str]] = []
        """(confidence, tie-break, row number, id) of the interactions with words, sorted."""
        self._drawn: list[tuple[int, str]] = []
        self._feedback: dict[str, list[str]] = {}
        """Feedback row -> its interactions."""

    def update(self, store: Store) -> None:
        """Reads the interactions that came in since the last call."""
        if (erasures := erasure_count(store)) != self._erasures:
            self._clear(erasures)
        while rows := confidences_after(store, self._last, READ_AT_ONCE):
            for row in rows:
                if row.has_words:
                    self._unsure.append((row.confidence, content_hash("strange", row.id), row.seq, row.id))
                if is_drawn(row.id, self._settings):
                    self._drawn.append((row.seq, row.id))
                for name in row.feedback:
                    self._feedback.setdefault(name, []).append(row.id)
            self._last = rows[-1].seq
            time.sleep(0.001)  # other threads of the process get their turn
        self._unsure.sort()

    def waiting(self, store: Store) -> list[str]:
        """Ids of the queue without the reviewed ones and those whose feedback was taken back, oldest first."""
        gone = {name for feedback in store.retracted() for name in self._feedback.get(feedback, ())}
        rows = self._unsure if not gone else [row for row in self._unsure if row[3] not in gone]
        odd = rows[: int(len(rows) * self._settings.strange)]
        queue = {(seq, name) for _, _, seq, name in odd}.union(self._drawn)
        done = gone | reviewed(store)
        return [name for _, name in sorted(queue) if name not in done]


def blocked(
    interactions: Iterable[Interaction], reviews: Mapping[str, Review], settings: ReviewSettings, now: float
) -> dict[str, str]:
    """Interactions that are excluded from training now.

    Args:
        interactions: All that can be reviewed (`select.auditable`).
        reviews: Interaction id -> its review.
        settings: Shares and deadline.
        now: Unix seconds. A clock that was set back counts as no time passed.

    Returns:
        Interaction id -> `in_review` or `unreviewed`.
    """
    found: dict[str, str] = {}
    for row in review_queue(interactions, settings):
        if row.id in reviews:
            continue
        late = max(now - row.created_at, 0.0) >= settings.deadline_hours * 3600
        if not late and settings.meanwhile == "wait":
            found[row.id] = "in_review"
        elif late and settings.unseen == "drop":
            found[row.id] = "unreviewed"
    return found


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts of reviews; an approval agrees with the automatic decision."""

    waiting: int
    approved: int
    rejected: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible, with the share of approvals (None before the first review)."""
        reviewed = self.approved + self.rejected
        return {
            "waiting": self.waiting,
            "approved": self.approved,
            "rejected": self.rejected,
            "agreement": self.approved / reviewed if reviewed else None,
        }


def agreement(
    interactions: Iterable[Interaction], reviews: Mapping[str, Review], settings: ReviewSettings
) -> Agreement:
    """Agreement of reviewers with the automatic decision, over all reviews."""
    decisions = [review.decision for review in reviews.values()]
    waiting = sum(row.id not in reviews for row in review_queue(interactions, settings))
    return Agreement(waiting, decisions.count("approve"), decisions.count("reject"))
