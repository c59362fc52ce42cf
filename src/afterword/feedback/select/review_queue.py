"""The audit lane: which interactions wait for a person, and how often people agree with what was decided by itself.

Owns who is in the lane: a share of all (by a hash, so that nobody can choose) and a share of the strangest (those
read with the least confidence). Pure functions over rows; never writes. What is decided is a Review row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from afterword.errors import ConfigError
from afterword.records import Interaction, Review, content_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewSettings:
    """`[review]`: the review queue."""

    share: float = 0.05
    """Share of interactions that are drawn by chance."""
    strange: float = 0.05
    """Share of interactions that are taken because the detectors were least sure of them."""
    deadline_hours: float = 72.0
    """After this an interaction that nobody looked at is decided by `unseen`."""
    meanwhile: Literal["use", "wait"] = "use"
    """Until the deadline: train on it, or let it wait."""
    unseen: Literal["use", "drop"] = "use"
    """After the deadline without a review: train on it, or never."""

    def __post_init__(self) -> None:
        for name in ("share", "strange"):
            if not 0.0 <= (value := getattr(self, name)) <= 1.0:
                raise ConfigError(f"review.{name} is {value}; it is a share, between 0 and 1.")
        if not self.deadline_hours >= 0:
            raise ConfigError(f"review.deadline_hours is {self.deadline_hours}; it is a number of hours.")


def drawn(interaction: Interaction, settings: ReviewSettings) -> bool:
    """Is it in the lane by chance?"""
    return int(content_hash("review", interaction.id)[:8], 16) < settings.share * 2**32


def strangest(interactions: Iterable[Interaction], settings: ReviewSettings) -> set[str]:
    """Ids of those with the least confidence; ties are broken by a hash."""
    rows = [i for i in interactions if i.hindsight]
    ordered = sorted(rows, key=lambda i: (i.confidence, content_hash("strange", i.id)))
    return {i.id for i in ordered[: int(len(rows) * settings.strange)]}


def lane(interactions: Iterable[Interaction], settings: ReviewSettings) -> list[Interaction]:
    """Everything that a person should see, reviewed or not, oldest first. Held-out ones too: they decide releases."""
    rows = list(interactions)
    odd = strangest(rows, settings)
    return [i for i in rows if i.id in odd or drawn(i, settings)]


def blocked(
    interactions: Iterable[Interaction], reviews: Mapping[str, Review], settings: ReviewSettings, now: float
) -> dict[str, str]:
    """Interactions that may not be trained on now: id -> `in_review` or `unreviewed`. A clock that jumped back counts
    as no time passed."""
    found: dict[str, str] = {}
    for row in lane(interactions, settings):
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
    """What reviewers say about interactions that were kept: `approved` agree with the automatic decision."""

    waiting: int
    approved: int
    rejected: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible, with the share that agrees (None before the first review)."""
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
    """How often people agree with the automatic decision, over everything that was reviewed."""
    decisions = [review.decision for review in reviews.values()]
    waiting = sum(row.id not in reviews for row in lane(interactions, settings))
    return Agreement(waiting, decisions.count("approve"), decisions.count("reject"))
