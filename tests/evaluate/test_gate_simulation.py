"""The gate's promises by simulation: 2,000 cases each (slow), fewer every time, and what is on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from experiments import gate_simulation as simulation

from afterword.config import EvaluateConfig
from afterword.release.gate import GateThresholds, bounds

RECORD = Path(simulation.__file__).with_name("gate_simulation.json")


def test_the_recorded_simulation_keeps_the_promises() -> None:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    assert set(found) == set(simulation.SCENARIOS)
    assert all(one["cases"] == 2000 for one in found.values())
    shown = {name: one["found"] for name, one in found.items()}
    assert max(shown["no difference, passes"].values()) <= 0.05
    regressions = shown["a regression, passes (64 interactions)"]
    assert set(regressions) == set(simulation.LOST) and max(regressions.values()) <= 0.05
    assert shown["every line at its limit, a clear gain, passes"] <= 0.05
    assert min(one["passes"] for one in shown["a true 10-point gain, passes (0.8 is promised)"].values()) >= 0.8
    assert shown["four looks, no difference"]["claims"] <= 0.05
    assert max(shown["cross-fitting, no gain, claims"].values()) <= 0.05
    assert max(shown["judged up to four times, no gain, claims"].values()) <= 0.05
    few, many = (shown[name] for name in ("held out alone, the same gain, claims",
                                          "cross-fitting, a gain of half the spread, claims"))  # fmt: skip
    assert all(many[f"{n} held out, resemblance 0.9"] > 1.5 * few[f"{n} held out"] for n in (12, 16, 24))
    assert shown["any figure claimed after Holm, no difference"] <= 0.06


def test_the_simulation_draws_every_line_of_the_default_suites() -> None:
    drawn = {f"holdout.{name}" for name in ("interactions", "conversations", "hindsight_kl_drop")} | set(
        simulation.GUARDS
    )
    settings = EvaluateConfig()
    lines = {f"{b.suite}.{b.metric.name}" for b in bounds(GateThresholds()) if b.suite in settings.suites}
    by_program_or_judge = {"holdout.checks", "holdout.judge", "holdout.judge_failed"}
    counted_and_not_estimated = {"privacy.extracted"}
    assert lines - drawn == by_program_or_judge | counted_and_not_estimated


def test_a_few_cases_of_no_difference_and_of_a_regression() -> None:
    assert simulation.no_difference(150, 24) <= 0.07
    assert simulation.regression("holdout.gain.at least", 60, 64) <= 0.1
    assert simulation.regression("collapse.empty.at most", 60, 64) <= 0.1
    assert simulation.ten_points(20, 0.1)[1] >= 0.6
    assert simulation.cross_fitted(200, 12, 0.0, 0.2, 0.7) <= 0.07
    assert simulation.judged_again(100, 24, 0.0) <= 0.09


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_thousand_cases() -> None:
    for n in (16, 24, 64):
        assert simulation.no_difference(2000, n, seed=11) <= 0.05
    for line in simulation.LOST:
        assert simulation.regression(line, 2000, 64, seed=12) <= 0.05
    for changed in (0.1, 0.2):
        assert simulation.ten_points(2000, changed, seed=13)[1] >= 0.78
    for n in (8, 16):
        assert simulation.cross_fitted(2000, n, 0.0, -0.1, 0.9, seed=15) <= 0.05
        assert simulation.judged_again(2000, 2 * n, 0.0, seed=16) <= 0.05
    assert simulation.looking(2000, 64, 0.0, seed=14)["claims"] <= 0.05
