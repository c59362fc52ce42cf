"""Records the outcomes of predictions, and detects drift of the calibration from them. Imports no torch."""

from __future__ import annotations

from afterword.forecast.points import Scale
from afterword.forecast.predict import PastPrediction, calibration_drift
from afterword.records import Candidate, Json, Prediction, PredictionOutcome, Report, Verdict, new_id
from afterword.store import Store

METRICS: dict[Scale, str] = {"nats": "gain", "share": "checks"}
"""Unit -> the metric of the suite `holdout` that measures the gain."""


def outcome_of(prediction: Prediction, candidate: Candidate, report: Report, verdict: Verdict) -> PredictionOutcome:
    """The outcome of a prediction."""
    unit: Scale = "share" if prediction.unit == "share" else "nats"
    shown = report.suites.get("holdout", {}).get(METRICS[unit])
    return PredictionOutcome(
        id=new_id("out"), prediction=prediction.id, candidate=candidate.id, report=report.id,
        gain=float(shown["value"]) if shown is not None else None, passed=verdict.passed,
    )  # fmt: skip


def forecast_status(store: Store) -> Json | None:
    """The newest prediction, and whether earlier ones held; None before the first."""
    newest = store.newest(Prediction)
    if newest is None:
        return None
    outcomes = {row.prediction: row for row in store.rows(PredictionOutcome)}
    past = [
        PastPrediction(p.gain["value"], p.gain["low"], p.gain["high"], gain)
        for p in store.rows(Prediction)
        if p.base_hash == newest.base_hash and p.unit == newest.unit and p.gain is not None
        if p.id in outcomes and (gain := outcomes[p.id].gain) is not None
    ]
    drift = calibration_drift(past)
    result = outcomes.get(newest.id)
    return {
        "prediction": newest.to_dict(),
        "outcome": result.to_dict() if result else None,
        "drift": {"outcomes": drift.outcomes, "inside": drift.inside, "drifts": drift.drifts, "says": drift.says},
    }
