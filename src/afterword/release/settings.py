"""Holds the settings of canaries and the drift monitor; docs/release.md gives the reasons for the defaults."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from afterword.errors import ConfigError
from afterword.records import Json

SHARES = ("share", "alpha", "min_effect", "max_rise", "max_errors")


@dataclass(frozen=True, slots=True, kw_only=True)
class CanarySettings:
    """`[canary]`: who gets a candidate first, and what decides about it. Approval is -1 .. 1, rises are shares."""

    share: float = 0.1
    """Share of the users that gets the candidate when `--canary` names none."""
    alpha: float = 0.05
    """Probability that an equal candidate is ever called better or worse, over all looks together."""
    min_effect: float = 0.1
    """Smallest difference in approval that matters: at the horizon a candidate passes if it is not worse by more."""
    horizon: int = 2000
    """Judged turns of the candidate after which an undecided canary ends."""
    days: float = 7.0
    """After this long it ends, too."""
    min_users: int = 20
    """Users (or conversations) in each arm of whom a metric is known, before it may decide anything."""
    max_rise: float = 0.05
    """How much rarer acceptance may be, or more frequent edits, retries, complaints, abandonment (share of turns)."""
    max_errors: float = 0.02
    """How much more frequent failed answers may be (share of turns)."""
    max_slower: float = 0.25
    """How much longer a token may take."""

    def __post_init__(self) -> None:
        _positive("canary", asdict(self))
        for name in SHARES:
            if getattr(self, name) >= 1:
                raise ConfigError(f"canary.{name} is {getattr(self, name)}: it must lie between 0 and 1")
        if self.min_users < 2:
            raise ConfigError(f"canary.min_users is {self.min_users}: a spread needs at least 2")

    def terms(self) -> Json:
        """What a canary's row keeps: later changes of the configuration do not change a test that runs."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSettings:
    """`[drift]`: how the version that is served is watched after its release."""

    window: int = 200
    """Turns of a version that are looked at together."""
    alpha: float = 0.01
    """Probability of a false alarm over the whole life of a version."""
    min_effect: float = 0.1
    """Falls of approval smaller than this raise no alarm."""
    settle: float = 600.0
    """Seconds after a window's last turn in which its users may still react."""
    rollback: bool = False
    """Also serve again what was served before."""

    def __post_init__(self) -> None:
        _positive("drift", {k: v for k, v in asdict(self).items() if k not in ("rollback", "settle")})
        if self.alpha >= 1 or self.window < 20 or not 0 <= self.settle < math.inf:
            raise ConfigError(
                f"drift.alpha is {self.alpha}, drift.window {self.window}, drift.settle {self.settle}: alpha lies "
                "between 0 and 1, a window has at least 20 turns, settle is 0 or more seconds"
            )


def _positive(section: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{section}.{name} is {value}: it must be a positive number", param=f"{section}.{name}")


def parse_share(text: str) -> float:
    """A share as people write it: "10%", "0.1". ConfigError for anything that is not above 0 and below 1."""
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ConfigError(
            f"{text!r} is no share of the users: write `10%` or `0.1`, above 0 and below all", param="canary"
        )
    return value
