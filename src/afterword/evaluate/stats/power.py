"""Computes how many held-out interactions a decision needs, and the smallest gain that so many show.

Sample sizes for paired comparisons, with the t quantiles of the intervals in `statistics`, for a two-sided interval at
`level` whose low end must lie above 0.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from afterword.evaluate.stats.statistics import LEVEL, t_quantile

POWER = 0.8
"""The share of true gains that are found."""
WIDER = 1.04
"""More interactions than the textbook says, since the bootstrap's expanded interval is a little wider than Student's:
without it 0.79 of 2,000 simulated gains were found where 0.8 was promised (`experiments/gate_simulation.py`)."""
GUARDED = 0.91
"""Share of candidates that lose nothing which all the gate's other lines let through (there, too): what is promised is
found by the whole gate, so its target is found more often."""
MOST = 1_000_000
"""No decision is worth more interactions; more than this is reported as this many."""


def interactions_needed(
    effect: float, spread: float, *, power: float = POWER, level: float = LEVEL, inflation: float = 1.0
) -> int:
    """Interactions after which a true mean difference `effect` is found with probability `power`.

    `spread` is the standard deviation of the paired differences, `inflation` the design effect of their clusters
    (`statistics.design_effect`). MOST when the effect is 0 or points the wrong way.
    """
    if not (effect > 0 and spread >= 0 and 0 < power < GUARDED):
        return MOST
    groups = 3
    while True:
        wanted = WIDER * _quantiles(groups, power, level) ** 2 * (spread / effect) ** 2
        if wanted <= groups:
            return min(MOST, max(2, math.ceil(groups * inflation)))
        if wanted >= MOST:
            return MOST
        groups = max(groups + 1, min(math.ceil(wanted), 2 * groups))


def detectable(
    n: int, spread: float, *, power: float = POWER, level: float = LEVEL, inflation: float = 1.0
) -> float:  # fmt: skip
    """The smallest true mean difference that `n` interactions find with probability `power`; inf below 3 groups."""
    groups = int(n / inflation)
    return math.inf if groups < 3 else _quantiles(groups, power, level) * spread * math.sqrt(WIDER / groups)


def share_spread(gain: float, changed: float) -> float:
    """Standard deviation of paired yes/no differences whose mean is `gain` when a share `changed` of the pairs differ
    at all (Connor 1987). ValueError when the gain is larger than that share."""
    if not 0 <= abs(gain) <= changed <= 1:
        raise ValueError(f"a gain of {gain} needs a share of changed pairs between {abs(gain)} and 1, got {changed}")
    return math.sqrt(changed - gain * gain)


def _quantiles(groups: int, power: float, level: float) -> float:
    return t_quantile(0.5 + level / 2, groups - 1) + NormalDist().inv_cdf(power / GUARDED)
