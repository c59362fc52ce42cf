"""Estimates a candidate's mean from few held-out values with the help of adapters that resemble it.

A substitute is an adapter of the same recipe that was trained without some conversations: a fold of cross-fitting, or
the candidate of an earlier round. Its values on these conversations are honest values of *another* adapter. So its
values on the candidate's own held-out interactions are subtracted again, and what is added has expectation 0: the
estimate is of the candidate itself, however good or bad the substitutes are (control variates; double sampling, Cochran
1977, section 12.6; prediction-powered inference, arXiv 2301.09633). The more the substitutes resemble the candidate,
the narrower the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afterword.evaluate.stats.statistics import LEVEL, Floats, Values, estimate, t_quantile
from afterword.records import Json

LEAST = 4
"""Held-out conversations on which the substitutes are compared with the candidate; with fewer they are not used."""


@dataclass(frozen=True, slots=True)
class Substitutes:
    """Values of substitutes, in the unit of the candidate's own."""

    own: Sequence[float | None]
    """Mean of the substitutes on each held-out interaction of the candidate, each substitute weighted by its share of
    `unseen`; None where the interaction is not of the population that `unseen` is drawn from."""
    unseen: Sequence[float]
    """Value of each further interaction, by a substitute that never saw its conversation."""
    clusters: Sequence[str]
    """Conversation or user of each of `unseen`."""


def adjusted_mean(
    values: Values, clusters: Sequence[str], substitutes: Substitutes, *, level: float = LEVEL
) -> Json | None:
    """Mean of the candidate's values, adjusted by its substitutes' values on further interactions.

    With c_i the candidate's and s_i the substitutes' values on the n held-out interactions, of which m are of the
    population of the k unseen ones: mean(c) + (m / n) w (mean of s over the unseen - mean of s over the m), where
    w = k / (k + m). This w is the best one for substitutes that equal the candidate, needs no estimate, and narrows the
    interval from a correlation of about 0.5 on.

    Args:
        values: The candidate's value on each held-out interaction.
        clusters: Conversation or user of each.
        substitutes: What the substitutes have; a cluster may occur on both sides.
        level: Of the two-sided interval.

    Returns:
        {value, low, high, n} with n the interactions of both sides; the interval is Student's over cluster sums, with
        Satterthwaite's degrees of freedom. None when too few held-out clusters compare candidate and substitutes.
    """
    own = np.asarray(values, dtype=np.float64)
    inside = np.array([value is not None for value in substitutes.own])
    unseen = np.asarray(substitutes.unseen, dtype=np.float64)
    compared = {name for name, used in zip(clusters, inside, strict=True) if used}
    if len(compared) < LEAST or len(set(substitutes.clusters)) < LEAST:
        return None
    n, m, k = len(own), int(inside.sum()), len(unseen)
    weight = k / (k + m)
    control = np.array([0.0 if value is None else value for value in substitutes.own])
    shifted = own + weight * np.where(inside, unseen.mean() - control, 0.0)
    value = float(shifted.mean())
    mine = _by_cluster((shifted - value) / n, clusters)
    theirs = _by_cluster((m / n) * weight * (unseen - unseen.mean()) / k, substitutes.clusters)
    return _student(value, mine, theirs, n + k, level)


def _by_cluster(parts: Floats, clusters: Sequence[str]) -> dict[str, float]:
    """Sum of the parts of each cluster."""
    sums = dict.fromkeys(clusters, 0.0)
    for name, part in zip(clusters, parts, strict=True):
        sums[name] += float(part)
    return sums


def _student(value: float, mine: dict[str, float], theirs: dict[str, float], n: int, level: float) -> Json:
    """The interval around `value`, whose error is the sum of independent parts of clusters; a cluster of both sides has
    one part. The sides differ in size, so each has its own variance and degrees of freedom."""
    sides = (
        [part + theirs.get(name, 0.0) for name, part in mine.items()],
        [part for name, part in theirs.items() if name not in mine],
    )
    variances = [len(side) / (len(side) - 1) * sum(part**2 for part in side) for side in sides if len(side) > 1]
    freedom = [len(side) - 1 for side in sides if len(side) > 1]
    total = sum(variances)
    if total <= 0.0:
        return estimate(value, value, value, n)
    df = total**2 / sum(v**2 / d for v, d in zip(variances, freedom, strict=True))
    half = t_quantile(0.5 + level / 2, df) * math.sqrt(total)
    return estimate(value, value - half, value + half, n)
