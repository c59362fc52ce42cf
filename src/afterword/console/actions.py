"""Declares the functions of other rooms that the pages call; `cli/console.py` fills them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web
from markupsafe import Markup

from afterword.records import AnswerAdvantages, Candidate, Json, Release, Report, Review, Verdict


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
    """`approved`, `rejected`, `agreement` of all reviews; `reviewers`: agreement between them."""
    second: Callable[[str], list[str]]
    """Reviewer -> ids of interactions that exactly one other reviewer decided."""
    correct: Callable[[str, str, int, str, str], str]
    """(interaction, hindsight, polarity, category, by) -> id of the corrected interaction."""
    withdraw: Callable[[str, str], None]
    """(interaction, by): take the decision of this reviewer back."""
    replaced: Callable[[list[Review]], str | None]
    """Reviews of an interaction -> the interaction that corrects it."""
    categories: tuple[str, ...]
    """Categories that a correction may name."""
    heatmap: Callable[[AnswerAdvantages], Markup]
    """The drawing of stored token advantages."""
    rollback: Callable[[str, str], Release]
    """(channel, why) -> the release row that takes the newest one back."""
    verify: Callable[[], Json]
    """`releases`, `problems`, `notes` of the signed chain."""
    held: Callable[[str], dict[str, int]]
    """User -> rows that an erasure would take, by table."""
    tainted: Callable[[str], list[str]]
    """User -> candidates that an erasure would put aside."""
    forget: Callable[[str], Json]
    """Erase a user; the report."""
    live: Callable[[], Json]
    """Live metrics by `adapter`, `week` and `task`, as `overview.live_metrics` computes them."""
    report: Callable[[Candidate, Report, Verdict], str]
    """The page of a candidate's report."""
    report_part: Callable[[Candidate, Report, Verdict], Markup]
    """The same report without a page around it."""
    report_css: str
    """The look of reports and heat maps."""
    canaries: Callable[[], list[Json]]
    """Running canaries: `channel`, `adapter`, `share`, `since`, `terms`, `arms`, `metrics`."""
    plan: Callable[[], Json]
    """What a training would learn from now, as `train --dry-run --json` prints it; `problem` when nothing."""
    needs: Callable[[], Json]
    """`train`: what each slice has and needs to be trained (`task`, `interactions`, `effective`, `needed`,
    `relevance`, `ready`); `held_out`: the same to be judged (`release.held_out_forecast`), by slice and in `total`."""
    settings: Callable[[], list[tuple[str, Any, str]]]
    """(name, value, source) of every setting, without secrets."""
    keys: Callable[[], list[Json]]
    """`id`, `note`, `scopes`, `created_at`, `expires_at` of every API key."""
