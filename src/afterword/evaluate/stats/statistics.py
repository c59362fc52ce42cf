"""Computes intervals and tests: every number of a report comes with its uncertainty.

Holds the paired cluster bootstrap, the jackknife, Tango's interval of paired shares and Holm's correction; quantiles,
Wilson's interval and the sign test are scipy's. Everything is seeded: the same data gives the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from scipy.stats import binomtest

from afterword.records import Json

LEVEL = 0.95
RESAMPLES = 4000
FEW = 500
Floats = NDArray[np.float64]
Values = Sequence[float] | NDArray[Any]


def estimate(value: float, low: float, high: float, n: int) -> Json:
    """A number with its interval and the number of cases: the one shape of a metric in a report."""
    return {"value": float(value), "low": float(low), "high": float(high), "n": int(n)}


def exact(value: float, n: int) -> Json:
    """A number without uncertainty (a count)."""
    return estimate(value, value, value, n)


def mean(values: Values, clusters: Sequence[str] | None = None, *, seed: int = 0, level: float = LEVEL) -> Json:
    """Mean with a bootstrap interval that resamples whole clusters; paired differences go in here.

    The percentile interval is widened to the t quantile of the number of clusters ("expanded percentile", Hesterberg
    2015): the plain one is too short for a dozen clusters.

    Args:
        values: One for each case, in any unit.
        clusters: The conversation or user of each case; without it every case is independent.
        seed: Of the resampling.
        level: Of the two-sided interval.

    Returns:
        {value, low, high, n} in the unit of the values; infinite ends with one cluster, which tells nothing of the
        spread.

    Raises:
        ValueError: No values, or values that are not finite.
    """
    return ratio_of_sums(values, [1.0] * len(values), clusters, seed=seed, level=level)


def ratio_of_sums(
    numerators: Values,
    denominators: Values,
    clusters: Sequence[str] | None = None,
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> Json:
    """sum(numerators) / sum(denominators) with the same interval: nats a token, relative rises, length ratios."""
    top, bottom = _summed(numerators, clusters), _summed(denominators, clusters)
    order = np.lexsort((bottom, top))  # the interval depends on the cases, not on the order in which they came
    top, bottom = top[order], bottom[order]
    groups, n = len(top), len(numerators)
    total = float(bottom.sum())
    if total == 0.0:
        raise ValueError("the denominators sum to 0")
    value = float(top.sum()) / total
    if groups == 1:
        return estimate(value, -math.inf, math.inf, n)
    tops, bottoms = (_times(seed, groups) @ np.stack([top, bottom], 1)).T
    resampled = np.divide(tops, bottoms, out=np.full(RESAMPLES, value), where=bottoms != 0)
    tail = expanded_tail(groups, level)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return estimate(value, float(low), float(high), n)


def resampled(of: Callable[[Sequence[int]], float], n: int, *, seed: int = 0, level: float = LEVEL) -> Json:
    """Any statistic of n independent cases with the same interval from fewer resamples; for what is no mean or ratio
    (a calibration error). `of` gives its value on a list of indices of cases."""
    value = of(range(n))
    if n < 2:
        return estimate(value, -math.inf, math.inf, n)
    picks = np.random.default_rng(seed).integers(0, n, size=(FEW, n))
    tail = expanded_tail(n, level)
    low, high = np.quantile([of(pick.tolist()) for pick in picks], [tail, 1 - tail])
    return estimate(value, min(value, float(low)), max(value, float(high)), n)


def paired_share(
    before: Sequence[bool],
    after: Sequence[bool],
    clusters: Sequence[str] | None = None,
    *,
    population: int | None = None,
    level: float = LEVEL,
) -> Json:
    """Share of `after` minus share of `before` on the same cases, with Tango's score interval (1998).

    A bootstrap of pairs that all agree has no width, as if a dozen cases could rule out any loss; this one says that
    64 of them rule out a rise of 5.7 points and 12 of them one of 24.

    Args:
        before: One yes or no for each case.
        after: The same cases, in the same order.
        clusters: Conversation or user of each case; they count for as many cases as their design effect leaves.
        population: How many cases there are in all where these were drawn from; when all were looked at, nothing is
            uncertain.
        level: Of the two-sided interval.

    Returns:
        {value, low, high, n}, a difference of shares, -1 .. 1.

    Raises:
        ValueError: No cases, or lists of different lengths.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"need as many cases before as after and at least one, got {len(before)} and {len(after)}")
    n = len(before)
    up = sum(b and not a for a, b in zip(before, after, strict=True))
    down = sum(a and not b for a, b in zip(before, after, strict=True))
    value = (up - down) / n
    if population is not None and population <= n:
        return exact(value, n)
    size = n / design_effect([float(b) - float(a) for a, b in zip(before, after, strict=True)], clusters)
    size *= (population - 1) / (population - n) if population else 1.0
    low, high = tango(up / n * size, down / n * size, size, NormalDist().inv_cdf(0.5 + level / 2))
    return estimate(value, low, high, n)


def tango(up: float, down: float, n: float, z: float) -> tuple[float, float]:
    """Where the score statistic of (up - down) / n, paired, reaches +z and -z (Tango 1998, equation 4)."""

    def score(delta: float) -> float:
        b = (2 * n - up + down) * delta - up - down
        both = (math.sqrt(max(0.0, b * b + 8 * n * down * delta * (1 - delta))) - b) / (4 * n)
        variance = n * (2 * both + delta * (1 - delta))
        distance = up - down - n * delta
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    def solve(low: float, high: float, wanted: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > wanted else (low, middle)
        return (low + high) / 2

    value = (up - down) / n
    return solve(-1.0, value, z), solve(value, 1.0, -z)


def jackknifed(of: Callable[[Sequence[int]], float], clusters: Sequence[str], *, level: float = LEVEL) -> Json:
    """Any smooth statistic of cases, `of` being its value on a list of their indices, leaving out one cluster at a time
    (Tukey 1958); for what repeats of a case would distort (variety). Infinite with fewer than two clusters."""
    everything = list(range(len(clusters)))
    value = of(everything)
    names = list(dict.fromkeys(clusters))
    g = len(names)
    if g < 2:
        return estimate(value, -math.inf, math.inf, len(clusters))
    left = np.array([of([i for i in everything if clusters[i] != name]) for name in names])
    error = math.sqrt((g - 1) / g * float(((left - left.mean()) ** 2).sum()))
    half = t_quantile(0.5 + level / 2, g - 1) * error
    return estimate(value, value - half, value + half, len(clusters))


def design_effect(values: Values, clusters: Sequence[str] | None) -> float:
    """1 + (m - 1) * intraclass correlation (one-way analysis of variance, m the mean cluster size weighted for unequal
    ones), at least 1: how many times more interactions clusters need than independent ones."""
    if clusters is None:
        return 1.0
    numbers = np.asarray(values, dtype=np.float64)
    places: dict[str, int] = {}
    index = [places.setdefault(cluster, len(places)) for cluster in clusters]
    n, k = len(numbers), len(places)
    if k < 2 or n == k:
        return 1.0
    sizes = np.bincount(index).astype(np.float64)
    means = np.bincount(index, weights=numbers) / sizes
    between = float((sizes * (means - numbers.mean()) ** 2).sum()) / (k - 1)
    within = float(((numbers - means[index]) ** 2).sum()) / (n - k)
    size = (n - (sizes**2).sum() / n) / (k - 1)
    total = between + (size - 1) * within
    correlation = (between - within) / total if total > 0 else 0.0
    return float(max(1.0, 1 + ((sizes**2).sum() / n - 1) * correlation))


@lru_cache(maxsize=4)
def _times(seed: int, groups: int) -> Floats:
    """[RESAMPLES, groups] how often each resample takes each cluster; a report asks for the same ones many times."""
    picks = np.random.default_rng(seed).integers(0, groups, size=(RESAMPLES, groups))
    places = picks + groups * np.arange(RESAMPLES)[:, None]
    counts: Floats = np.bincount(places.ravel(), minlength=RESAMPLES * groups).astype(np.float64)
    return counts.reshape(RESAMPLES, groups)


def _summed(values: Values, clusters: Sequence[str] | None) -> Floats:
    """[G] sum of the values of each cluster, in order of first appearance."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"need finite values, got {list(values)[:5]}")
    if clusters is None:
        return numbers
    places: dict[str, int] = {}
    index = [places.setdefault(cluster, len(places)) for cluster in clusters]
    sums = np.zeros(len(places))
    np.add.at(sums, index, numbers)
    return sums


def expanded_tail(groups: int, level: float = LEVEL) -> float:
    """The tail share to cut so that a percentile interval of few groups is as wide as it should be."""
    t = t_quantile(0.5 + level / 2, groups - 1)
    return NormalDist().cdf(-math.sqrt(groups / (groups - 1)) * t)


def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t with `df` degrees of freedom."""
    return float(stdtrit(df, p))


def wilson(successes: int, n: int, *, level: float = LEVEL) -> Json:
    """A share with Wilson's score interval (independent cases). ValueError for n = 0."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    ends = binomtest(successes, n).proportion_ci(level, method="wilson")
    return estimate(successes / n, ends.low, ends.high, n)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p that wins and losses are equally likely; ties are excluded. McNemar's exact test on the
    discordant pairs is the same number."""
    n = wins + losses
    return float(binomtest(wins, n).pvalue) if n else 1.0


def p_value(shown: Json, *, level: float = LEVEL) -> float:
    """Two-sided p of a difference of 0, read off an interval: the distance to 0 in units of the half width on
    that side, by Student's t. Differences that are all alike have an interval without width: the sign test's p."""
    value, low, high, n = (shown[key] for key in ("value", "low", "high", "n"))
    if value == 0.0:
        return 1.0
    half = (value - low) if value > 0 else (high - value)
    if half <= 0.0:
        return sign_test(int(n), 0)
    df = max(1, int(n) - 1)
    t = abs(value) / half * t_quantile(0.5 + level / 2, df)
    return float(2 * stdtr(df, -t))


def holm(found: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for how many there are (Holm 1979): any claim at all at 0.05 is wrong in at most 5 %."""
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(found, key=lambda name: found[name])):
        highest = max(highest, min(1.0, (len(found) - rank) * found[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in found}
