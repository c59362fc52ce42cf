"""Selects the vote that counts among several of one user on one turn: the newest. Earlier ones stay as history.

Also names the versions of one id, and the reviews that stand. Pure; never reads the database.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

from afterword.records import Review

VOTE = "rating"
"""The kind that a user gives once on a turn and may change."""
_OTHERS = ("detector", "reviewer")
"""Sources that vote beside the user, each by itself."""
_VERSION = re.compile(r"#v[0-9]+\Z")


class Vote(NamedTuple):
    """A rating as far as it takes part."""

    seq: int
    """Row number: the order of arrival."""
    id: str
    turn: str
    voter: Hashable
    """Who votes on what: see `voter_of`."""
    at: float | None
    """When it was given, as the client says."""


def voter_of(row: Mapping[str, Any], asked: str | None) -> Hashable:
    """Identifies voter and measure: votes of two users, of a user and a reviewer, or of two named scores do not replace
    each other.

    `row` holds the fields of a feedback row, `asked` is the user of its turn.
    """
    metadata = row.get("metadata") or {}
    source = row.get("source")
    measure = metadata.get("metric_name") or metadata.get("name") or ""
    return (row.get("user") or asked, source if source in _OTHERS else "", str(measure))


def version_id(identifier: str, number: int) -> str:
    """The id under which a changed vote is stored beside the first one."""
    return f"{identifier}#v{number}"


def first_id(identifier: str) -> str:
    """The id of the first version."""
    return _VERSION.sub("", identifier)


def superseded(votes: Iterable[Vote]) -> set[str]:
    """Ids of the votes that a newer one replaces: of the same voter on the same turn, or under the same id.

    Newer by the time at which they were given when all of them say it, by arrival otherwise. Retracted votes are
    excluded: the vote before counts again.
    """
    groups: dict[Hashable, list[Vote]] = defaultdict(list)
    for vote in votes:
        groups[vote.turn, vote.voter].append(vote)
        groups["id", first_id(vote.id)].append(vote)
    lost: set[str] = set()
    for group in groups.values():
        if len(group) > 1:
            newest = max(group, key=_dated if all(vote.at is not None for vote in group) else _arrived)
            lost.update(vote.id for vote in group if vote.id != newest.id)
    return lost


def _dated(vote: Vote) -> tuple[float, int]:
    return (vote.at or 0.0, vote.seq)


def _arrived(vote: Vote) -> tuple[float, int]:
    return (0.0, vote.seq)


def standing_reviews(rows: Iterable[Review]) -> dict[str, dict[str, Review]]:
    """The decision of each reviewer on each interaction, without those that were withdrawn.

    Args:
        rows: Reviews in the order written.

    Returns:
        Interaction -> reviewer -> review; the newest comes last, and interactions without a standing review are left
        out.
    """
    found: dict[str, dict[str, Review]] = {}
    for row in rows:
        decisions = found.setdefault(row.interaction, {})
        decisions.pop(row.by, None)
        if row.decision != "withdraw":
            decisions[row.by] = row
    return {name: decisions for name, decisions in found.items() if decisions}
