"""Holds the settings of canaries and the drift monitor; docs/release.md gives the reasons for the defaults."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field

from afterword.config import Count, NonNegative, OpenShare, Positive, check_section
from afterword.errors import ConfigError
from afterword.records import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class CanarySettings:
    """`[canary]`: a release to a share of the users, and its decision. Approval is -1 .. 1, rises are shares."""

    share: OpenShare = 0.1
    """Share of users on the candidate; `--canary` overrides it."""
    alpha: OpenShare = 0.05
    """Probability of a wrong decision about an equal candidate, over all looks together."""
    min_effect: OpenShare = 0.1
    """Non-inferiority margin of approval: at the horizon a candidate passes unless it is worse by more."""
    horizon: Count = 2000
    """Judged turns of the candidate that end an undecided canary."""
    days: Positive = 7.0
    """Days that end an undecided canary."""
    min_users: Annotated[int, Field(ge=2)] = 20
    """Users (or conversations) with a known metric that each arm needs for a decision; a spread needs 2."""
    max_rise: OpenShare = 0.05
    """Largest fall of acceptance, and largest rise of edits, retries, complaints and abandonment (share of turns)."""
    max_errors: OpenShare = 0.02
    """Largest rise of failed answers (share of turns)."""
    max_slower: Positive = 0.25
    """Largest relative rise of the time per token."""

    def __post_init__(self) -> None:
        check_section("canary", self)

    def terms(self) -> Json:
        """Values that the canary's row stores, so that later configuration changes do not affect a running test."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSettings:
    """`[drift]`: monitoring of the served version after its release."""

    window: Annotated[int, Field(ge=20)] = 200
    """Turns of a version per comparison."""
    alpha: OpenShare = 0.01
    """Probability of a false alarm over the lifetime of a version."""
    min_effect: Positive = 0.1
    """Smallest fall of approval that raises an alarm."""
    settle: NonNegative = 600.0
    """Seconds after the last turn of a window during which feedback still counts."""
    rollback: bool = False
    """Roll back automatically after an alarm."""

    def __post_init__(self) -> None:
        check_section("drift", self)


def parse_share(text: str) -> float:
    """Parse a share of users, "10%" or "0.1".

    Raises:
        ConfigError: The value is not between 0 and 1.
    """
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ConfigError(
            f"the share of users {text!r} is invalid: write `10%` or `0.1`, above 0 and below 1", param="canary"
        )
    return value
