"""The gate's promises by simulation: 2,000 cases each (slow), fewer every time, and what is on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from experiments import gate_simulation as simulation

RECORD = Path(simulation.__file__).with_name("gate_simulation.json")


def test_the_recorded_simulation_keeps_the_promises() -> None:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    assert set(found) == set(simulation.SCENARIOS)
    assert all(one["cases"] == 2000 for one in found.values())
    shown = {name: one["found"] for name, one in found.items()}
    assert max(shown["no difference, passes"].values()) <= 0.05
    assert max(shown["a regression, passes (64 interactions)"].values()) <= 0.05
    assert min(one["passes"] for one in shown["a true 10-point gain, passes (0.8 is promised)"].values()) >= 0.8
    assert shown["four looks, no difference"]["claims"] <= 0.05
    assert shown["any figure claimed after Holm, no difference"] <= 0.06


def test_a_few_cases_of_no_difference_and_of_a_regression() -> None:
    assert simulation.no_difference(150, 24) <= 0.07
    assert simulation.regression("gain", 60, 64) <= 0.1
    assert simulation.ten_points(30, 0.1)[1] >= 0.6


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_thousand_cases() -> None:
    for n in (16, 24, 64):
        assert simulation.no_difference(2000, n, seed=11) <= 0.05
    for name in simulation.REGRESSIONS:
        assert simulation.regression(name, 2000, 64, seed=12) <= 0.05
    for changed in (0.1, 0.2):
        assert simulation.ten_points(2000, changed, seed=13)[1] >= 0.78
    assert simulation.looking(2000, 64, 0.0, seed=14)["claims"] <= 0.05
