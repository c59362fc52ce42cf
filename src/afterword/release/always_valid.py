"""Computes always-valid intervals: two arms may be compared and stopped after every event.

Owns the sums over units, and the interval that holds at all looks at once. Pure arithmetic; knows nothing of turns,
rows or decisions.

An arm's metric is a ratio: events in its turns, over its turns. Turns of one user are not independent, so
the standard error is that of whole units (the linearised, cluster-robust variance of a ratio). Rare metrics have an
error of zero until they happen first, which would make the first one "certain": an arm is therefore never taken to
vary less from unit to unit than both arms together.

The interval is the normal mixture of Robbins (1970) in the form of Johari, Koomen, Pekelis and Walsh, "Always valid
inference" (Operations Research 2022): for a difference d with standard error s, and effects that are spread around
0 with the standard deviation t, all looks together miss the truth with probability alpha at most for the radius

    sqrt( s^2 (s^2 + t^2) / t^2 * (2 ln(1/alpha) + ln((s^2 + t^2) / s^2)) ).

It is asymptotic: it wants some tens of units in each arm before the first look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

SPREAD = 0.2
"""Effects for which the radius is tightest, in the metric's unit: large enough to see a bad adapter soon; five times
smaller ones cost a quarter more turns than with a spread of their own."""


@dataclass(slots=True)
class Sums:
    """Sums over the units of one metric in one arm; each unit has n turns and y events."""

    y: float = 0.0
    yy: float = 0.0
    ny: float = 0.0

    def add(self, unit: Unit, metric: str, by: float) -> None:
        """Something more was counted in a turn of `unit` (or less: it was taken back)."""
        old = unit.totals.get(metric, 0.0)
        unit.totals[metric] = old + by
        self.y += by
        self.yy += by * (2 * old + by)
        self.ny += by * unit.turns


@dataclass(slots=True)
class Unit:
    """One user (or conversation): its number of turns and of events in them."""

    turns: int = 0
    totals: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class ArmSums:
    """One side of a comparison, kept up to date in constant time per event."""

    units: dict[str, Unit] = field(default_factory=dict)
    turns: int = 0
    squares: int = 0
    """Sum of the squared numbers of turns."""
    metrics: dict[str, Sums] = field(default_factory=dict)

    def turn(self, unit: str) -> None:
        """One more turn of a unit."""
        found = self.units.get(unit)
        if found is None:
            found = self.units[unit] = Unit()
        self.turns += 1
        self.squares += 2 * found.turns + 1
        found.turns += 1
        for metric, total in found.totals.items():
            self.metrics[metric].ny += total

    def count(self, unit: str, metric: str, by: float) -> None:
        """Count something in a turn that was announced with `turn`."""
        sums = self.metrics.get(metric)
        if sums is None:
            sums = self.metrics[metric] = Sums()
        sums.add(self.units[unit], metric, by)

    def ratio(self, metric: str) -> float:
        """Events per turn; 0 without turns."""
        sums = self.metrics.get(metric)
        return sums.y / self.turns if sums and self.turns else 0.0

    def scatter(self, metric: str, around: float) -> float:
        """Mean over the units of the squared distance between the events and those expected at `around` per turn."""
        sums = self.metrics.get(metric, _NOTHING)
        total = sums.yy - 2 * around * sums.ny + around * around * self.squares
        return max(0.0, total) / max(1, len(self.units))


_NOTHING = Sums()


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference and where the truth lies, for all looks at once."""

    value: float
    low: float
    high: float


def compare(new: ArmSums, old: ArmSums, metric: str, alpha: float, spread: float = SPREAD) -> Interval:
    """The metric in `new` minus that in `old`. Infinitely wide while an arm has fewer than two units."""
    if min(len(new.units), len(old.units)) < 2:
        return Interval(0.0, -math.inf, math.inf)
    value = new.ratio(metric) - old.ratio(metric)
    return around(value, standard_error(new, old, metric), alpha, spread)


def standard_error(new: ArmSums, old: ArmSums, metric: str) -> float:
    """Of the difference of both arms' ratios, whole units drawn anew."""
    arms = [(arm, len(arm.units), arm.scatter(metric, arm.ratio(metric))) for arm in (new, old)]
    pooled = sum(size * scatter for _, size, scatter in arms) / sum(size for _, size, _ in arms)
    variance = 0.0
    for arm, size, scatter in arms:
        variance += max(scatter, pooled) * size / arm.turns**2 * size / (size - 1)
    return math.sqrt(variance)


def around(value: float, error: float, alpha: float, spread: float = SPREAD) -> Interval:
    """The interval around a difference with this standard error."""
    s, t = error * error, spread * spread
    if s == 0.0:  # nothing was counted yet, and nothing is known
        return Interval(value, -math.inf, math.inf)
    radius = math.sqrt(s * (s + t) / t * (2 * math.log(1 / alpha) + math.log1p(t / s)))
    return Interval(value, value - radius, value + radius)
