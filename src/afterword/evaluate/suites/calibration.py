"""Suite `calibration`: is the candidate still calibrated on the multiple-choice set?

Owns the expected calibration error (equal-mass bins), the Brier score and the over-confidence gap, and their paired
differences; lower is better for all three, so a rise is a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from afterword.evaluate.comparison.comparison import Comparison, Findings
from afterword.evaluate.scoring.multiple_choice import general_knowledge, probabilities, right
from afterword.evaluate.stats.statistics import mean, resampled
from afterword.records import Json

BINS = 8
Shares = Sequence[Sequence[float]]


def calibration(comparison: Comparison) -> Findings:
    """`ece`, `brier`, `overconfidence` of each arm (`_served`, `_candidate`) and their rise."""
    choices = general_knowledge()
    found = {arm.name: probabilities(comparison, arm, choices) for arm in comparison.arms}
    seed = comparison.settings.seed
    metrics: Json = {}
    for name, score in (("brier", brier), ("overconfidence", overconfidence)):
        marks = {arm: [score(shares) for shares in found[arm]] for arm in found}
        for arm, values in marks.items():
            metrics[f"{name}_{arm}"] = mean(values, seed=seed)
        rise = [b - a for a, b in zip(marks["served"], marks["candidate"], strict=True)]
        metrics[f"{name}_rise"] = mean(rise, seed=seed)
    return Findings(metrics | _ece(found, seed))


def _ece(found: dict[str, list[list[float]]], seed: int) -> Json:
    n = len(found["served"])

    def of(arm: str) -> Callable[[Sequence[int]], float]:
        return lambda picked: ece([found[arm][i] for i in picked])

    served, candidate = of("served"), of("candidate")
    return {
        "ece_served": resampled(served, n, seed=seed),
        "ece_candidate": resampled(candidate, n, seed=seed),
        "ece_rise": resampled(lambda picked: candidate(picked) - served(picked), n, seed=seed),
    }


def brier(shares: Sequence[float]) -> float:
    """Sum over the options of (probability - outcome)^2, 0 .. 2 (Brier 1950)."""
    return (1 - shares[0]) ** 2 + sum(share * share for share in shares[1:])


def overconfidence(shares: Sequence[float]) -> float:
    """How sure it was minus whether it was right; its mean over questions is the over-confidence gap."""
    return max(shares) - float(right(shares))


def ece(found: Shares, bins: int = BINS) -> float:
    """Expected calibration error: |sureness - accuracy| in bins of equally many questions, by how sure it was."""
    order = sorted(range(len(found)), key=lambda i: max(found[i]))
    parts = [part for part in np.array_split(np.array(order), min(bins, len(order))) if len(part)]
    gaps = [abs(sum(overconfidence(found[i]) for i in part)) for part in parts]
    return float(sum(gaps) / len(order))
