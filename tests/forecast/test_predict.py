"""Train or not: advice from a gap and a calibration, and never a number that nobody knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from afterword.forecast.predict import (
    MeasuredGap,
    PastPrediction,
    calibration_drift,
    gate_probability,
    predict_gain,
    skip_reason,
)

from .points import made

POINTS = made(number=14, scatter=0.01)


def measured(value: float, se: float = 0.02, **changes: Any) -> MeasuredGap:
    values: dict[str, Any] = {
        "context": "reference", "unit": "share", "base": "a", "base_hash": "h-a", "gap_se": se, "spread": 0.3,
        "gap": {"value": value, "low": value - 2 * se, "high": value + 2 * se, "n": 64}, "student": 0.3,
        "teacher": 0.3 + value, "prompts": 64,
    }  # fmt: skip
    return MeasuredGap(**{**values, **changes})


def test_a_large_gap_is_worth_training_and_none_is_not() -> None:
    good = predict_gain(measured(0.35), POINTS, heldout=64)
    assert good.advice == "train" and good.gain is not None and good.gate_probability is not None
    assert good.gain["low"] < 0.29 < good.gain["high"] and good.gate_probability > 0.8
    none = predict_gain(measured(0.0, 0.03), POINTS, heldout=64)
    assert none.advice == "skip" and "cannot use the context 'reference': do not train" in none.says
    assert skip_reason(none.advice, none.gate_probability) and not skip_reason(good.advice, good.gate_probability)
    assert "0.05" in str(skip_reason("collect", 0.05, 0.1)) and skip_reason("unknown", None) is None
    worse = predict_gain(measured(-0.08, 0.03), POINTS, heldout=64)
    assert worse.advice == "skip"


def test_few_prompts_or_few_held_out_interactions_ask_for_more() -> None:
    few = predict_gain(measured(0.1, 0.09, prompts=12), POINTS, heldout=64)
    assert few.advice == "collect" and few.collect is not None and 20 < few.collect < 90
    small = predict_gain(measured(0.12, 0.01), POINTS, heldout=24)
    assert small.advice == "collect" and "held-out" in small.says and small.collect is not None and small.collect > 20


@pytest.mark.parametrize(
    ("change", "problem", "advice"),
    (
        ({"base_hash": "h-z"}, "no_calibration", "unknown"),
        ({"unit": "nats"}, "no_calibration", "unknown"),
        ({"gap": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 64}}, "outside_calibration", "unknown"),
        ({"student": 1.0, "teacher": 1.0}, "all_solved", "skip"),
        ({"student": 0.0, "teacher": 0.0}, "none_solved", "skip"),
        ({"teacher": float("nan")}, "not_finite", "unknown"),
        ({"base_hash": "h-z", "gap": {"value": -0.1, "low": -0.2, "high": -0.01, "n": 64}}, "no_calibration", "skip"),
    ),
)
def test_where_nothing_is_known_no_number_is_given(change: dict[str, Any], problem: str, advice: str) -> None:
    found = predict_gain(measured(0.2, **change), POINTS, heldout=64)
    assert (found.problem, found.advice, found.gain, found.gate_probability) == (problem, advice, None, None)
    if problem == "no_calibration" and change.get("base_hash"):
        assert "calibrated are a" in found.says


def test_the_gates_probability_is_that_of_a_simulated_gate() -> None:
    rng = np.random.default_rng(0)
    gains = rng.normal(0.1, 0.05, 2000)
    passed = 0
    for gain in gains:
        sample = rng.normal(gain, 0.4, 64)
        passed += sample.mean() - 1.998 * sample.std(ddof=1) / 8 > 0
    assert gate_probability(gains.tolist(), 0.05, 64) / 0.91 == pytest.approx(passed / 2000, abs=0.03)
    assert gate_probability([1.0], 0.1, 2) == 0.0


def test_drift_is_told_only_where_predictions_fail() -> None:
    rng = np.random.default_rng(1)
    good = [
        PastPrediction(0.1, 0.1 - 0.0822, 0.1 + 0.0822, 0.1 + 0.05 * float(rng.standard_normal())) for _ in range(12)
    ]
    assert not calibration_drift(good).drifts
    low = [PastPrediction(p.predicted, p.low, p.high, p.gain - 0.08) for p in good]
    assert calibration_drift(low).drifts and "calibrate again" in calibration_drift(low).says.lower()
    assert calibration_drift(good[:3]).bias is None


def test_false_alarms_of_drift_are_rare() -> None:
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(300):
        past = [PastPrediction(0.0, -1.645, 1.645, float(rng.standard_normal())) for _ in range(10)]
        alarms += calibration_drift(past).drifts
    assert alarms <= 300 * 0.08
