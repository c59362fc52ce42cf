"""The gate's promises by simulation: 2,000 cases each (slow), fewer every time."""

from __future__ import annotations

import pytest
from experiments import gate_simulation as simulation


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
