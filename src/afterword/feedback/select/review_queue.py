"""Selects the interactions that people review, and measures how often reviewers agree with the automatic decision.

The queue holds a random share of all interactions (by a hash, so that nobody can choose) and the share with the least
detector confidence. Never writes. A decision is a Review row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal

from afterword.config import NonNegative, UnitInterval, check_section
from afterword.records import Interaction, Json, Review, WorkRequest, content_hash
from afterword.store import Store
from afterword.store.browse import confidences_after, erasure_count, reviewed
from afterword.store.votes import standing_reviews


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


CORRECTED = "corrected as "
"""Begins the reason of the rejection that a correction writes; the id of the new interaction follows."""
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
        """Ids of the queue without the reviewed ones and those whose feedback was taken back: first those that somebody
        sent there, then the others, each oldest first."""
        gone = {name for feedback in store.retracted() for name in self._feedback.get(feedback, ())}
        rows = self._unsure if not gone else [row for row in self._unsure if row[3] not in gone]
        odd = rows[: int(len(rows) * self._settings.strange)]
        queue = {(seq, name) for _, _, seq, name in odd}.union(self._drawn)
        done = gone | reviewed(store)
        asked = dict.fromkeys(row.interaction for row in store.rows(WorkRequest, kind="review"))
        return [name for name in dict.fromkeys((*asked, *(name for _, name in sorted(queue)))) if name not in done]


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
    """Agreement of reviewers with the automatic decision, over all reviews; a correction is a rejection alone."""
    corrected = {replacement([review]) for review in reviews.values()}
    decisions = [review.decision for review in reviews.values() if review.interaction not in corrected]
    waiting = sum(row.id not in reviews for row in review_queue(interactions, settings))
    return Agreement(waiting, decisions.count("approve"), decisions.count("reject"))


def second_opinions(reviews: Iterable[Review], by: str) -> list[str]:
    """Interactions that exactly one reviewer decided, and not `by`, newest decision first.

    Args:
        reviews: All reviews, in the order written.
        by: Name of the reviewer who asks.
    """
    rows = [[*decisions.values()] for decisions in standing_reviews(reviews).values() if len(decisions) == 1]
    alone = sorted((row for (row,) in rows if row.by != by), key=lambda row: (-row.created_at, row.id))
    return [row.interaction for row in alone]


def reviewer_agreement(reviews: Iterable[Review]) -> Json:
    """Agreement between reviewers who decided on the same interactions.

    Raw agreement has Wilson's 95 % interval; Cohen's kappa (1960, Educational and Psychological Measurement 20, p. 37)
    the 95 % interval of its standard error there (equation 8), over all pairs of reviewers of an interaction.

    Args:
        reviews: All reviews, in the order written.

    Returns:
        `pairs`, `agreed`, `share` {value, low, high} and `kappa` {value, low, high}; the last two are None where they
        are not defined (no pair; everybody decides alike by chance too).
    """
    pairs = [
        (one.decision, other.decision)
        for decisions in standing_reviews(reviews).values()
        for one, other in combinations(sorted(decisions.values(), key=lambda row: row.by), 2)
    ]
    n, agreed = len(pairs), sum(one == other for one, other in pairs)
    found: Json = {"pairs": n, "agreed": agreed, "share": None, "kappa": None}
    if not n:
        return found
    z, share = NormalDist().inv_cdf(0.975), agreed / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    found["share"] = {"value": share, "low": max(middle - half, 0.0), "high": min(middle + half, 1.0)}
    first, second = (sum(pair[side] == "approve" for pair in pairs) / n for side in (0, 1))
    chance = first * second + (1 - first) * (1 - second)
    if chance < 1:
        kappa = (share - chance) / (1 - chance)
        error = math.sqrt(share * (1 - share) / n) / (1 - chance)
        found["kappa"] = {"value": kappa, "low": max(kappa - z * error, -1.0), "high": min(kappa + z * error, 1.0)}
    return found


def replacement(reviews: Iterable[Review]) -> str | None:
    """The interaction that replaced one, by the newest of its reviews; None where it was not corrected."""
    newest = next(iter([*reviews][::-1]), None)
    if newest is None or newest.decision != "reject" or not newest.why.startswith(CORRECTED):
        return None
    return newest.why.removeprefix(CORRECTED)
