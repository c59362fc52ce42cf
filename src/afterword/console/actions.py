"""Declares the functions of other rooms that the pages call; `cli/console.py` fills them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from afterword.records import Candidate, Json, Release, Report, Verdict


class CheckKey(Protocol):
    """Checks the API key of a request, as the gateway does."""

    def __call__(self, request: web.Request, authorization: str | None, scope: str) -> str | None:
        """Returns the public id of the key, None where no key exists.

        Raises:
            AfterwordError: The key is missing, invalid, or lacks the scope; without keys a foreign origin.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Actions:
    """Functions of other rooms, for one data directory."""

    check: CheckKey
    waiting: Callable[[], list[str]]
    """Ids of the interactions that wait for a review, oldest first."""
    agreement: Callable[[], Json]
    """`approved`, `rejected`, `agreement` of all reviews."""
    rollback: Callable[[str, str], Release]
    """(channel, why) -> the release row that takes the newest one back."""
    verify: Callable[[], Json]
    """`releases`, `problems`, `notes` of the signed chain."""
    held: Callable[[str], dict[str, int]]
    """User -> rows that an erasure would take, by table."""
    forget: Callable[[str], Json]
    """Erase a user; the report."""
    live: Callable[[], Json]
    """Live metrics by `adapter`, `week` and `task`, as `overview.live_metrics` computes them."""
    report: Callable[[Candidate, Report, Verdict], str]
    """The page of a candidate's report."""
    settings: Callable[[], list[tuple[str, Any, str]]]
    """(name, value, source) of every setting, without secrets."""
    keys: Callable[[], list[Json]]
    """`id`, `note`, `scopes`, `created_at`, `expires_at` of every API key."""
