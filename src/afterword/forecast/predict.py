"""Decides on a measured gap: predicted gain, probability that the gate passes, and advice in a sentence. Pure.

Gives no number where none is known: without a calibration of the same base and unit, outside the calibrated gaps, or
when all prompts or none are solved. Also checks the outcomes of earlier predictions for drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from scipy.special import ndtr
from scipy.stats import binomtest

from afterword.evaluate.stats.power import GUARDED, MOST, interactions_needed
from afterword.evaluate.stats.statistics import t_quantile
from afterword.forecast.calibration import LEAST, LEVEL, PointSet, select
from afterword.forecast.points import CalibrationPoint, Scale
from afterword.records import Json

Advice = Literal["train", "collect", "skip", "unknown"]
HOPELESS = 0.1
"""Probability of passing the gate below which a round is not worth its cost."""
LIKELY = 0.5
"""... and from which it is advised without reserve."""
WORTH_COLLECTING = 2000
"""More interactions than this are no advice."""
BEYOND = 0.25
"""Share of the calibrated range of gaps by which a gap may lie outside of it."""
FEWEST = 5
"""Outcomes that a statement about drift needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredGap:
    """Result of `forecast gap` for one context; numbers as {value, low, high, n} in the unit of the score."""

    context: str
    unit: Scale
    base: str
    """Name of the base model."""
    base_hash: str
    gap: Json
    """Teacher minus resampled student, per prompt."""
    gap_se: float
    spread: float
    """Standard deviation over prompts of the paired difference."""
    student: float
    """Mean score of the student, ..."""
    teacher: float
    """... and of its teacher on the prompts that were redrawn, the student's own where none was."""
    prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GainPrediction:
    """The answer to "train or not" for one context."""

    context: str
    unit: Scale
    advice: Advice
    says: str
    """The advice in a sentence."""
    gap: Json
    gain: Json | None = None
    """Predicted gain on held-out prompts as the gate will measure it, with its 90 % interval; None when unknown."""
    gate_probability: float | None = None
    """Probability that the gate finds a gain, and passes the rest of its lines as usual."""
    collect: int | None = None
    """Interactions that are missing."""
    problem: str | None = None
    """Code of the reason why there is no number."""

    def to_dict(self) -> Json:
        """JSON-compatible."""
        return asdict(self)


def predict_gain(
    measured: MeasuredGap, points: Sequence[CalibrationPoint], *, heldout: int, seed: int = 0
) -> GainPrediction:
    """Predict the gain of a training from its gap.

    Args:
        measured: The gap under the context that the training would use.
        points: The calibration's raw points; those of the same base and unit count.
        heldout: Held-out interactions that the gate will compare.
        seed: Of the posterior draws.
    """
    problem = _problem(measured)
    rows = select(points, unit=measured.unit, base_hash=measured.base_hash)
    known = PointSet.of(rows)
    if problem is None and not known.usable:
        problem = "no_calibration", _no_calibration(measured, points, len(rows))
    if problem is None:
        problem = _outside(measured, known)
    if problem is not None:
        return _without_number(measured, heldout, *problem)
    error = measured.spread / math.sqrt(max(heldout, 1))
    draws = known.sample(seed).predict(measured.gap["value"], measured.gap_se)
    shown = draws + error * np.random.default_rng(seed + 2).standard_normal(len(draws))
    low, high = np.quantile(shown, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    gain: Json = {"value": float(np.median(draws)), "low": float(low), "high": float(high), "n": len(rows)}
    passing = gate_probability(draws.tolist(), error, heldout)
    return _advised(measured, gain, passing, heldout)


def gate_probability(gains: Sequence[float], error: float, heldout: int) -> float:
    """Mean over true `gains` of the probability that the lower end of the gate's interval lies above 0.

    Args:
        gains: Draws of the true gain.
        error: Standard error of the measured gain.
        heldout: Held-out interactions; below 3 nothing can be shown.

    Returns:
        At most `GUARDED`, the share of harmless candidates that all other lines of the gate let through.
    """
    if heldout < 3:
        return 0.0
    needed = t_quantile(0.975, heldout - 1)
    found = ndtr(np.asarray(gains) / error - needed) if error > 0 else (np.asarray(gains) > 0).astype(float)
    return float(GUARDED * found.mean())


def _problem(measured: MeasuredGap) -> tuple[str, str] | None:
    numbers = (measured.gap["value"], measured.gap_se, measured.spread, measured.student, measured.teacher)
    if not all(map(math.isfinite, numbers)):
        return "not_finite", "the scores are not finite: check the checker, or the model's weights"
    if measured.unit == "share" and measured.student >= 1.0:
        return "all_solved", f"the model solves all {measured.prompts} prompts already: there is nothing to gain here"
    if measured.unit == "share" and measured.student <= 0.0 and measured.teacher <= 0.0:
        return "none_solved", (
            f"none of {measured.prompts} prompts is solved, with the context or without: this model cannot use this "
            "context, do not train; easier prompts or another context may help"
        )
    return None


def _outside(measured: MeasuredGap, known: PointSet) -> tuple[str, str] | None:
    low, high = float(known.gap.min()), float(known.gap.max())
    room = BEYOND * (high - low)
    if low - room <= measured.gap["value"] <= high + room:
        return None
    return "outside_calibration", (
        f"the gap {measured.gap['value']:+.3f} lies outside the calibrated gaps ({low:+.3f} to {high:+.3f}): no gain "
        "is predicted. Train once and record the outcome, or calibrate with wider gaps"
    )


def _no_calibration(measured: MeasuredGap, points: Sequence[CalibrationPoint], rows: int) -> str:
    others = sorted({p.family for p in points if p.unit == measured.unit and p.base_hash != measured.base_hash})
    known = f"; calibrated are {', '.join(others)}, and slopes differ between models" if others else ""
    return (
        f"there is no calibration for {measured.base} in {measured.unit} ({rows} of {LEAST} configurations){known}. "
        "Measure one with `afterword forecast calibrate`"
    )


def _without_number(measured: MeasuredGap, heldout: int, code: str, why: str) -> GainPrediction:
    advice: Advice = "skip" if code in ("all_solved", "none_solved") else "unknown"
    if code in ("no_calibration", "outside_calibration") and _useless(measured, heldout):
        advice, why = "skip", f"{_cannot_use(measured)} ({why})"
    return GainPrediction(
        context=measured.context, unit=measured.unit, advice=advice, says=why, gap=measured.gap, problem=code
    )


def _useless(measured: MeasuredGap, heldout: int) -> bool:
    """True when the gap's interval lies below 0, or covers it although the prompts were enough to tell: as many as the
    gate compares show a gap as small as the smallest gain that the gate can show."""
    if measured.gap["high"] <= 0:
        return True
    return measured.gap["low"] <= 0 and measured.prompts >= heldout


def _cannot_use(measured: MeasuredGap) -> str:
    gap = measured.gap
    return (
        f"this model cannot use the context {measured.context!r}: do not train (gap {gap['value']:+.3f}, "
        f"{gap['low']:+.3f} to {gap['high']:+.3f}, on {measured.prompts} prompts)"
    )


def _advised(measured: MeasuredGap, gain: Json, passing: float, heldout: int) -> GainPrediction:
    told = f"predicted gain {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}), the gate passes with "
    told += f"probability {passing:.2f}"
    advice: Advice
    collect = None
    more = interactions_needed(gain["value"], measured.spread) - heldout if gain["value"] > 0 else MOST
    if _useless(measured, heldout):
        advice, says = "skip", f"{_cannot_use(measured)}; {told}"
    elif measured.gap["low"] <= 0:  # too few prompts to tell
        advice, collect = "collect", heldout - measured.prompts
        says = (
            f"collect about {collect} more interactions: {measured.prompts} prompts do not tell the gap from 0; {told}"
        )
    elif passing >= LIKELY:
        advice, says = "train", f"train: {told}"
    elif 0 < more <= WORTH_COLLECTING:
        advice, collect = "collect", more
        says = f"collect about {more} more held-out interactions: {heldout} rarely show so small a gain; {told}"
    elif passing >= HOPELESS:
        advice, says = "train", f"train if a failed round is cheap: {told}"
    else:
        advice, says = "skip", f"do not train: {told}"
    return GainPrediction(
        context=measured.context, unit=measured.unit, advice=advice, says=says, gap=measured.gap, gain=gain,
        gate_probability=passing, collect=collect,
    )  # fmt: skip


def skip_reason(advice: str, gate_probability: float | None, least: float = HOPELESS) -> str | None:
    """Why a round should not start: it is advised against, or the gate would pass too rarely; None when it may."""
    if advice == "skip":
        return "the forecast advises against it"
    if gate_probability is not None and gate_probability < least:
        return f"the gate would pass with probability {gate_probability:.2f}, the least is {least:g}"
    return None


@dataclass(frozen=True, slots=True)
class PastPrediction:
    """A predicted gain with its 90 % interval, and the measured gain."""

    predicted: float
    low: float
    high: float
    gain: float


@dataclass(frozen=True, slots=True)
class CalibrationDrift:
    """Whether earlier predictions held."""

    outcomes: int
    inside: int
    """Gains inside their 90 % interval."""
    bias: float | None
    """Mean of measured minus predicted, in units of the predicted standard error."""
    drifts: bool
    says: str


def calibration_drift(past: Sequence[PastPrediction]) -> CalibrationDrift:
    """Test whether the measured gains still lie where the calibration says: intervals missed too often (exact binomial
    test), or errors of one sign (mean standardised error), each at 0.025."""
    n = len(past)
    inside = sum(p.low <= p.gain <= p.high for p in past)
    if n < FEWEST:
        return CalibrationDrift(n, inside, None, False, f"{n} of {FEWEST} outcomes that a statement about drift needs")
    width = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    errors = [(p.gain - p.predicted) / max((p.high - p.low) / 2 / width, 1e-12) for p in past]
    bias = sum(errors) / n
    missed = binomtest(n - inside, n, 1 - LEVEL, alternative="greater").pvalue
    p_bias = 2 * NormalDist().cdf(-abs(bias) * math.sqrt(n))
    drifts = bool(missed < 0.025 or p_bias < 0.025)
    says = f"{inside} of {n} measured gains lie inside their {100 * LEVEL:.0f} % interval, "
    says += f"mean error {bias:+.2f} standard errors"
    if drifts:
        says = f"the calibration drifts: {says}. Calibrate again (`afterword forecast calibrate`)"
    return CalibrationDrift(n, inside, bias, drifts, says)
