"""Intervals and tests are checked by simulation: coverage, and how often "no difference" is called a gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.evaluate.stats import statistics

CASES = 2000
Draw = Callable[[np.random.Generator, int], np.ndarray]
NULLS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "wins and losses": lambda rng, n: rng.choice([-1.0, 0.0, 1.0], p=[0.25, 0.5, 0.25], size=n),
    "heavy tails": lambda rng, n: rng.standard_t(3, size=n),
    "two arms of shares": lambda rng, n: rng.binomial(1, 0.3, n) - rng.binomial(1, 0.3, n) + 0.0,
}


@pytest.mark.parametrize("name", NULLS)
def test_no_difference_is_called_a_gain_in_at_most_five_percent(name: str) -> None:
    rng = np.random.default_rng(7)
    found = [statistics.mean(NULLS[name](rng, 12), seed=case) for case in range(CASES)]
    assert sum(f["low"] > 0 for f in found) / CASES <= 0.05
    assert sum(f["high"] < 0 for f in found) / CASES <= 0.05


def test_coverage_with_a_true_effect() -> None:
    rng = np.random.default_rng(3)
    found = [statistics.mean(rng.normal(0.5, 1.0, 24), seed=case) for case in range(1000)]
    assert 0.93 <= sum(f["low"] <= 0.5 <= f["high"] for f in found) / 1000 <= 0.97


def test_clusters_are_the_unit_and_ignoring_them_would_be_wrong() -> None:
    rng = np.random.default_rng(11)
    names = [str(i // 4) for i in range(48)]
    right = wrong = 0
    for case in range(500):
        values = np.repeat(rng.normal(size=12), 4) + 0.3 * rng.normal(size=48)
        right += statistics.mean(values, names, seed=case)["low"] > 0
        wrong += statistics.mean(values, seed=case)["low"] > 0
    assert right / 500 <= 0.05 < wrong / 500


def test_the_order_of_the_cases_changes_no_bit_of_an_interval() -> None:
    rng = np.random.default_rng(4)
    top, bottom, owners = rng.normal(size=20), rng.integers(1, 9, 20), [f"c{i % 13}" for i in range(20)]
    found = statistics.ratio_of_sums(top, bottom, owners, seed=3)
    order = [*range(10, 20), *range(10)]
    renamed = [f"other-{-int(owners[i][1:])}" for i in order]
    assert statistics.ratio_of_sums(top[order], bottom[order], renamed, seed=3) == pytest.approx(found, abs=1e-12)


def test_power_of_a_ten_point_gain_in_a_share() -> None:
    """With paired arms 64 interactions find a true gain of ten points at least four times out of five."""
    rng = np.random.default_rng(5)

    def power(gain: float) -> float:
        found = 0
        for case in range(300):
            draws = rng.random(64)
            difference = (draws < 0.1 + gain).astype(float) - (draws < 0.1)
            found += statistics.mean(difference, seed=case)["low"] > 0
        return found / 300

    assert power(0.25) > 0.99
    assert power(0.10) > 0.8
    assert power(0.0) == 0.0


def test_wilson_covers_and_stays_between_zero_and_one() -> None:
    rng = np.random.default_rng(2)
    for p in (0.02, 0.3, 0.9):
        found = [statistics.wilson(int(k), 40) for k in rng.binomial(40, p, 1000)]
        assert sum(f["low"] <= p <= f["high"] for f in found) / 1000 >= 0.92
    assert statistics.wilson(0, 10)["low"] == 0.0 and statistics.wilson(10, 10)["high"] == 1.0
    shown = statistics.wilson(0, 32)
    assert shown["high"] == pytest.approx(0.1072, abs=1e-3)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_symmetric_and_exact(wins: int, losses: int) -> None:
    p = statistics.sign_test(wins, losses)
    assert p == statistics.sign_test(losses, wins) and 0 < p <= 1
    n = wins + losses
    exact = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(wins - losses)) / 2**n
    assert p == pytest.approx(min(1.0, exact))


def test_sign_test_rejects_a_fair_coin_in_at_most_five_percent() -> None:
    wins = np.random.default_rng(1).binomial(20, 0.5, CASES)
    assert sum(statistics.sign_test(int(w), 20 - int(w)) <= 0.05 for w in wins) / CASES <= 0.05


def test_t_quantiles() -> None:
    known = {1: 12.7062, 2: 4.30265, 3: 3.18245, 5: 2.57058, 11: 2.20099, 30: 2.04227}
    for df, value in known.items():
        assert statistics.t_quantile(0.975, df) == pytest.approx(value, rel=1e-5)
    assert all(a > b for a, b in pairwise(statistics.t_quantile(0.975, df) for df in range(1, 60)))


def test_one_cluster_tells_nothing_of_the_spread() -> None:
    shown = statistics.mean([0.5, 0.7], ["c", "c"])
    assert shown == {"value": pytest.approx(0.6), "low": -math.inf, "high": math.inf, "n": 2}


def test_the_same_data_give_the_same_interval_and_the_seed_matters() -> None:
    values = [0.1, 0.5, -0.2, 0.9, 0.0, 0.4]
    assert statistics.mean(values, seed=1) == statistics.mean(values, seed=1)
    assert statistics.mean(values, seed=1) != statistics.mean(values, seed=2)


def test_ratio_of_sums_weighs_by_the_denominator() -> None:
    shown = statistics.ratio_of_sums([1.0, 30.0], [1.0, 10.0])
    assert shown["value"] == pytest.approx(31 / 11) and shown["n"] == 2
    assert statistics.ratio_of_sums([0.2] * 5, [2.0] * 5)["low"] == pytest.approx(0.1)


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_values_that_are_none_or_not_finite(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        statistics.mean(values)


def test_impossible_shares_and_ratios() -> None:
    for successes, n in ((1, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="is no share"):
            statistics.wilson(successes, n)
    with pytest.raises(ValueError, match="sum to 0"):
        statistics.ratio_of_sums([1.0], [0.0])


def test_counts_have_no_uncertainty() -> None:
    assert statistics.exact(3, 9) == {"value": 3.0, "low": 3.0, "high": 3.0, "n": 9}


# ---- shares in pairs, figures without a formula


def test_pairs_that_all_agree_rule_out_no_more_than_so_many_can() -> None:
    z = NormalDist().inv_cdf(0.975)
    for n in (12, 24, 64):
        found = statistics.paired_share([True] * n, [True] * n)
        assert found["value"] == 0.0 and found["n"] == n
        assert found["high"] == pytest.approx(z * z / (n + z * z), abs=1e-6) == pytest.approx(-found["low"], abs=1e-6)


@pytest.mark.parametrize(("up", "down", "n"), [(5, 2, 64), (0, 3, 24), (9, 9, 40), (12, 0, 12)])
def test_tangos_ends_are_where_the_restricted_likelihood_says(up: int, down: int, n: int) -> None:
    """The nuisance share by a search for the largest likelihood instead of Tango's formula."""
    z = 1.96
    for delta in statistics.tango(up, down, n, z):
        if abs(delta) > 1 - 1e-6:
            continue
        shares = np.linspace(max(0.0, -delta), (1 - delta) / 2, 200_001)[1:-1]
        likelihood = (
            up * np.log(shares + delta) + down * np.log(shares) + (n - up - down) * np.log(1 - 2 * shares - delta)
        )
        best = shares[int(np.argmax(likelihood))]
        statistic = (up - down - n * delta) / math.sqrt(n * (2 * best + delta * (1 - delta)))
        assert abs(statistic) == pytest.approx(z, abs=0.02)


def test_a_rise_at_the_margin_is_called_none_in_one_case_of_forty() -> None:
    rng = np.random.default_rng(5)
    for margin, changed in ((0.1, 0.14), (0.2, 0.3)):
        draws = rng.random((2000, 64))
        ups, downs = (draws < (changed + margin) / 2).sum(1), (draws > 1 - (changed - margin) / 2).sum(1)
        passed = sum(statistics.tango(u, d, 64, 1.96)[1] <= margin for u, d in zip(ups, downs, strict=True))
        assert passed / 2000 <= 0.04


def test_clusters_widen_a_paired_share_and_a_census_has_no_width() -> None:
    before, after = [False] * 40, [i % 10 < 2 for i in range(40)]
    alone = statistics.paired_share(before, after)
    together = statistics.paired_share(before, after, [str(i // 2) for i in range(40)])
    assert together["high"] > alone["high"] + 0.02 and together["value"] == alone["value"] == 0.2
    sampled = statistics.paired_share(before, after, population=50)
    assert alone["low"] < sampled["low"] < 0.2 < sampled["high"] < alone["high"]
    assert statistics.paired_share(before, after, population=40) == statistics.exact(0.2, 40)
    with pytest.raises(ValueError, match="at least one"):
        statistics.paired_share([], [])


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = list(np.random.default_rng(7).normal(size=20))
    found = statistics.jackknifed(
        lambda picked: sum(values[i] for i in picked) / len(picked), [str(i) for i in range(20)]
    )
    half = statistics.t_quantile(0.975, 19) * float(np.std(values, ddof=1)) / math.sqrt(20)
    assert found["high"] - found["value"] == pytest.approx(half, rel=1e-6)
    assert statistics.jackknifed(lambda picked: 1.0, ["a", "a"])["high"] == math.inf
