"""Lines with errors in both variables: against published numbers, and honest in simulation."""

from __future__ import annotations

import numpy as np
import pytest

from afterword.forecast.line import partial_correlation, quadratic_p, sample_line, york

PEARSON_X = [0.0, 0.9, 1.8, 2.6, 3.3, 4.4, 5.2, 6.1, 6.5, 7.4]
PEARSON_Y = [5.9, 5.4, 4.4, 4.6, 3.5, 3.7, 2.8, 2.8, 2.4, 1.5]
WEIGHTS_X = np.array([1000, 1000, 500, 800, 200, 80, 60, 20, 1.8, 1.0])
WEIGHTS_Y = np.array([1, 1.8, 4, 8, 20, 20, 70, 70, 100, 500.0])


def test_york_gives_the_published_line_of_pearsons_data() -> None:
    found = york(PEARSON_X, PEARSON_Y, WEIGHTS_X**-0.5, WEIGHTS_Y**-0.5)
    assert found.slope == pytest.approx(-0.480533407, abs=1e-8)  # York et al. 2004, table II
    assert found.intercept == pytest.approx(5.47991022, abs=1e-7)
    assert found.slope_se == pytest.approx(0.0579850, abs=1e-6)
    assert found.intercept_se == pytest.approx(0.2949707, abs=1e-6)
    assert found.chi2 == pytest.approx(11.866353, abs=1e-5)


def test_least_squares_is_attenuated_by_errors_in_x_and_york_is_not() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(0, 1, 4000)
    x, y = true + 0.7 * rng.standard_normal(4000), 2 * true + 0.1 * rng.standard_normal(4000)
    assert np.polyfit(x, y, 1)[0] == pytest.approx(2 / 1.49, abs=0.05)
    assert york(x, y, np.full(4000, 0.7), np.full(4000, 0.1)).slope == pytest.approx(2.0, abs=0.06)


@pytest.mark.parametrize(("number", "scatter"), ((12, 0.05), (24, 0.2)))
def test_prediction_intervals_of_90_percent_hold_85_to_95_percent_of_new_points(number: int, scatter: float) -> None:
    rng, sets, sx, sy = np.random.default_rng(number), 400, 0.05, 0.03
    true = rng.normal(0.1, 0.15, (sets, number + 1))
    x = true + sx * rng.standard_normal(true.shape)
    y = 0.02 + 1.2 * true + np.hypot(scatter, sy) * rng.standard_normal(true.shape)
    errors = np.full((sets, number), sx), np.full((sets, number), sy)
    posterior = sample_line(x[:, :number], y[:, :number], *errors, seed=1, draws=400, burn=150)
    low, high = np.quantile(posterior.predict(x[:, number], sx, sy=sy), [0.05, 0.95], axis=0)
    held = float(((low < y[:, number]) & (y[:, number] < high)).mean())
    assert 0.85 <= held <= 0.95, held


def test_the_posterior_of_many_points_finds_the_line() -> None:
    rng = np.random.default_rng(3)
    true = rng.normal(0, 0.2, 200)
    x, y = true + 0.1 * rng.standard_normal(200), 0.05 + 1.5 * true + 0.08 * rng.standard_normal(200)
    found = sample_line(x, y, np.full(200, 0.1), np.full(200, 0.04), seed=0)
    for draws, wanted in ((found.slope, 1.5), (found.intercept, 0.05), (found.scatter, np.sqrt(0.08**2 - 0.04**2))):
        assert abs(draws.mean() - wanted) < 3 * draws.std()
    again = sample_line(x, y, np.full(200, 0.1), np.full(200, 0.04), seed=0)
    assert (again.slope == found.slope).all()


def test_curvature_and_partial_correlation() -> None:
    rng = np.random.default_rng(4)
    x = rng.uniform(0, 1, 40)
    noise = 0.02 * rng.standard_normal(40)
    assert quadratic_p(x, x + noise, np.full(40, 0.02**2))[1] > 0.05
    assert quadratic_p(x, x**2 + noise, np.full(40, 0.02**2))[1] < 1e-6
    other = rng.standard_normal(40)
    r, low, high = partial_correlation(other + 0.1 * x, other + 0.1 * noise, other[:, None])
    assert abs(r) < 0.5 and low < r < high
    with pytest.raises(ValueError, match="needs"):
        partial_correlation(x[:4], x[:4], x[:4, None])


@pytest.mark.parametrize(
    ("x", "wrong"), (([1.0, 2, 3], "four points"), ([1.0] * 5, "alike"), ([1.0, 2, 3, 4, np.nan], "finite"))
)
def test_what_is_no_line_is_an_error(x: list[float], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        sample_line(x, np.arange(len(x), dtype=float), np.ones(len(x)), np.ones(len(x)))
    if wrong == "alike":
        with pytest.raises(ValueError, match="different x"):
            york(x, range(5), [1.0] * 5, [1.0] * 5)
