"""Stops a comparison early and still errs no more often than promised (group-sequential design).

Boundaries by Lan and DeMets (1983), spending like O'Brien and Fleming. The futility boundary is non-binding, so it
cannot inflate the type I error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

import numpy as np

from afterword.evaluate.stats.statistics import LEVEL, Floats, mean
from afterword.records import Json

HOPE, HALF = 0.01, 0.5
"""From half of the information on, a comparison with less chance than HOPE of ending above 0 is given up. Earlier, or
with a larger HOPE, this would cost power: a true gain that four of five comparisons find is at z = 1.4 in the mean
after a quarter, and one in eight of those looks hopeless there."""
GRID = 1201
_NORMAL = NormalDist()
Stop = Literal["better", "worse", "hopeless", "end"]


@dataclass(frozen=True, slots=True)
class Look:
    """Where a comparison stopped."""

    why: Stop
    number: int
    """Of this look, from 1."""
    n: int
    """Values that were looked at."""
    level: float
    """Level of the interval at this look."""
    estimate: Json


def spent(share: float, alpha: float) -> float:
    """One-sided error spent when this share of the information is in: 2 - 2 Phi(z(alpha / 2) / sqrt(share))."""
    return 2 - 2 * _NORMAL.cdf(_NORMAL.inv_cdf(1 - alpha / 2) / math.sqrt(share))


@cache
def levels(shares: tuple[float, ...], level: float = LEVEL) -> tuple[float, ...]:
    """Level of the two-sided interval at each look, so that all looks together claim a gain (or a loss) that is not
    there with probability (1 - level) / 2 at most. `shares` are the growing shares of the information, the last is 1.

    Computed by integrating the density of the Brownian path that has not crossed yet (Armitage, McPherson, Rowe 1969).
    """
    alpha = (1 - level) / 2
    if not shares or any(b <= a for a, b in pairwise((0.0, *shares))) or shares[-1] != 1.0:
        raise ValueError(f"looks are at growing shares of the information that end with 1, got {shares}")
    grid = np.linspace(-8.0, 8.0, GRID)
    step = grid[1] - grid[0]
    density = np.zeros(GRID)
    density[GRID // 2] = 1 / step
    found, before, used = [], 0.0, 0.0
    for share in shares:
        density = _moved(density, grid, share - before)
        bound = _bound(density, grid, spent(share, alpha) - used)
        found.append(2 * _NORMAL.cdf(bound / math.sqrt(share)) - 1)
        density = np.where(grid < bound, density, 0.0)
        before, used = share, spent(share, alpha)
    return tuple(found)


def _moved(density: Floats, grid: Floats, variance: float) -> Floats:
    step = grid[1] - grid[0]
    kernel = np.exp(-((grid[:, None] - grid[None, :]) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    moved: Floats = (kernel @ density) * step
    return moved


def _bound(density: Floats, grid: Floats, tail: float) -> float:
    """Where the mass above is `tail`."""
    above = np.cumsum(density[::-1])[::-1] * (grid[1] - grid[0])
    return float(np.interp(-tail, -above, grid))


def chance(value: float, error: float, share: float, level: float = LEVEL) -> float:
    """Probability that the low end lies above 0 at the end, if what was seen so far (`value`, standard `error`, with
    this share of the information) is the truth (conditional power on the trend)."""
    if share >= 1 or error <= 0:
        return float(value > 0)
    z = value / error
    need = _NORMAL.inv_cdf(0.5 + level / 2)
    return 1 - _NORMAL.cdf((need - z / math.sqrt(share)) / math.sqrt(1 - share))


def stop_early(
    values: Callable[[int], Sequence[float]],
    clusters: Sequence[str],
    looks: int,
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> Look:
    """Look `looks` times, each time at the first whole clusters; `values(n)` gives the first n paired differences.
    `level` is that of a single look.

    Stops when the interval at that look's level excludes 0, or when there is hardly a chance left. Conversations must
    stand together in `clusters`.
    """
    ends = _ends(clusters, looks)
    shares = tuple(n / len(clusters) for n in ends)
    for number, (n, share, at) in enumerate(zip(ends, shares, levels(shares, level), strict=True), 1):
        seen = values(n)
        estimate = mean(seen, clusters[:n], seed=seed, level=at)
        why = _why(seen, clusters[:n], estimate, share, seed)
        if why is not None:
            return Look(why, number, n, at, estimate)
    raise AssertionError("the last look ends")


def _ends(clusters: Sequence[str], looks: int) -> list[int]:
    """How many values each look sees: whole clusters only, the last one all."""
    n = len(clusters)
    closed = [i for i in range(1, n) if clusters[i] != clusters[i - 1]] + [n]
    wanted = [n * (k + 1) / looks for k in range(looks)]
    return sorted({min((c for c in closed if c >= w - 1e-9), default=n) for w in wanted})


def _why(values: Sequence[float], clusters: Sequence[str], estimate: Json, share: float, seed: int) -> Stop | None:
    if share >= 1:
        return "end"
    if estimate["low"] > 0:
        return "better"
    if estimate["high"] < 0:
        return "worse"
    if share < HALF:
        return None
    plain = mean(values, clusters, seed=seed)
    error = (plain["high"] - plain["low"]) / (2 * _NORMAL.inv_cdf(0.5 + LEVEL / 2))
    if math.isfinite(error) and chance(plain["value"], error, share) < HOPE:
        return "hopeless"
    return None


def level_of_look(number: int, level: float = LEVEL) -> float:
    """Level of the interval at the `number`-th look (from 1) at the same candidate, on more data each time.

    The first look errs on each side by (1 - level) / 2, 2.5 %, as a single one does; each later one by half of that
    before it. So all looks together err by less than twice as much, 5 %, however they depend on each other and however
    many there are (union bound): no number of interactions has to be planned.
    """
    return 1 - (1 - level) * 0.5 ** (number - 1)
