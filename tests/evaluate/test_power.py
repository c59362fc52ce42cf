"""How many interactions a decision needs, and looking before the end: against known values and by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from afterword.config import EvaluateConfig
from afterword.evaluate.run import evaluate_candidate
from afterword.evaluate.stats import group_sequential, power, statistics
from afterword.evaluate.stats.changes import changes

from .conftest import FakeServer, Reply, candidate, held

Serve = Callable[[Reply], FakeServer]
Z = NormalDist()


def test_sample_sizes_agree_with_the_textbook() -> None:
    z = (Z.inv_cdf(0.975) + Z.inv_cdf(0.8 / power.GUARDED)) ** 2  # 7.85 for a gate without other lines
    for effect, spread in ((0.1, 0.67), (0.05, 0.1), (0.2, 1.0)):
        found = power.interactions_needed(effect, spread)
        assert z * (spread / effect) ** 2 <= found <= power.WIDER * z * (spread / effect) ** 2 + 4
    assert power.share_spread(0.1, 0.1) == pytest.approx(0.3)
    assert power.interactions_needed(0.1, 0.67, inflation=2.0) == 2 * power.interactions_needed(0.1, 0.67)
    assert power.interactions_needed(0.0, 1.0) == power.interactions_needed(-1.0, 1.0) == power.MOST
    assert power.interactions_needed(1e-9, 1.0) == power.MOST and power.interactions_needed(0.1, 0.0) == 3


def test_what_is_needed_and_what_is_detectable_are_each_others_inverse() -> None:
    for n in (12, 64, 300):
        least = power.detectable(n, 0.3)
        assert power.interactions_needed(least * 1.001, 0.3) <= n + 1
        assert n < power.interactions_needed(least * 0.95, 0.3)
    assert power.detectable(2, 0.3) == math.inf
    assert power.detectable(64, 0.3, inflation=2.0) == power.detectable(32, 0.3)


def test_impossible_gains() -> None:
    with pytest.raises(ValueError, match="needs a share of changed pairs"):
        power.share_spread(0.2, 0.1)


def test_clusters_that_are_alike_need_more_interactions() -> None:
    rng = np.random.default_rng(0)
    names = [str(i // 5) for i in range(1000)]
    shared = np.repeat(rng.normal(size=200), 5)
    assert statistics.design_effect(list(rng.normal(size=1000)), names) == pytest.approx(1.0, abs=0.25)
    assert statistics.design_effect(list(shared), names) == pytest.approx(5.0, abs=0.01)
    half = list(shared + rng.normal(size=1000))
    assert statistics.design_effect(half, names) == pytest.approx(3.0, abs=0.4)
    assert statistics.design_effect([1.0, 2.0], ["a", "b"]) == statistics.design_effect([1.0, 2.0], ["a", "a"]) == 1.0
    assert statistics.design_effect([1.0] * 4, ["a", "a", "b", "b"]) == 1.0


def test_the_bounds_of_the_looks_are_those_of_the_literature() -> None:
    """O'Brien-Fleming-like spending, one-sided 0.025: z at four equal looks (Jennison and Turnbull 2000)."""
    bounds = [Z.inv_cdf(0.5 + level / 2) for level in group_sequential.levels((0.25, 0.5, 0.75, 1.0))]
    assert bounds == pytest.approx([4.333, 2.963, 2.359, 2.014], abs=0.02)
    assert group_sequential.levels((1.0,))[0] == pytest.approx(0.95, abs=2e-3)
    for wrong in ((), (0.5,), (0.5, 0.5, 1.0), (1.0, 0.5)):
        with pytest.raises(ValueError, match="growing shares"):
            group_sequential.levels(wrong)


def test_looking_four_times_claims_no_more_than_it_may_and_stops_a_loss_early() -> None:
    rng = np.random.default_rng(1)
    names = [str(i) for i in range(48)]

    def looks(centre: float, cases: int) -> list[group_sequential.Look]:
        found = []
        for case in range(cases):
            values = list(rng.normal(centre, 1.0, 48))
            found.append(group_sequential.stop_early(lambda n, v=values: v[:n], names, 4, seed=case))  # type: ignore[misc]
        return found

    nothing = looks(0.0, 200)
    assert sum(look.estimate["low"] > 0 for look in nothing) / 200 <= 0.05
    worse = looks(-0.8, 40)
    assert all(look.why in ("worse", "hopeless") and look.n < 48 for look in worse)
    better = looks(1.5, 40)
    assert all(look.why == "better" and look.estimate["low"] > 0 for look in better)
    assert sum(look.n for look in better) / 40 < 30


def test_looks_take_whole_conversations() -> None:
    names = ["a"] * 5 + ["b"] * 1 + ["c"] * 6
    seen: list[int] = []

    def values(n: int) -> list[float]:
        seen.append(n)
        return [0.5, -0.5] * 3 + [0.4, -0.6] * 3 if n == 12 else ([0.5, -0.5] * 6)[:n]

    assert group_sequential.stop_early(values, names, 4).why in ("end", "hopeless")
    assert set(seen) <= {5, 6, 12}


def test_an_evaluation_that_looks_early_asks_fewer_answers(tiny: str, adapters: dict[str, Path], serve: Serve) -> None:
    server = serve(lambda arm, question: (f"An answer to {question}", "stop"))
    report = evaluate_candidate(
        candidate=candidate(), candidate_path=adapters["large"], served_path=None, served_candidate=None,
        interactions=[held(2 * i) for i in range(32)], model=tiny, upstream="http://127.0.0.1:1",
        suites=["holdout", "collapse"], settings=EvaluateConfig(looks=4),
    )  # fmt: skip
    looks = report.about["looks"]
    assert looks["why"] == "worse" and looks["n"] < looks["of"] == 32 and looks["level"] > 0.95
    assert len(report.examples) == looks["n"] == report.suites["holdout"]["hindsight_kl_drop"]["n"]
    assert len(server.requests) == 2 * looks["n"]
    assert report.suites["holdout"]["hindsight_kl_drop"]["high"] < 0


def test_holm_is_stricter_than_each_p_and_keeps_their_order() -> None:
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert statistics.holm({}) == {} and statistics.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_p_values_read_off_intervals_are_those_of_the_test() -> None:
    rng = np.random.default_rng(3)
    values = list(rng.normal(0.12, 1.0, 400))
    z = float(np.mean(values) / (np.std(values, ddof=1) / 20))
    assert statistics.p_value(statistics.mean(values)) == pytest.approx(2 * (1 - Z.cdf(abs(z))), rel=0.3)
    assert statistics.p_value(statistics.exact(1.0, 6)) == pytest.approx(2 / 2**6)
    assert statistics.p_value(statistics.estimate(0.0, -1, 1, 5)) == 1.0
    assert statistics.p_value(statistics.estimate(0.5, -math.inf, math.inf, 2)) == 1.0


def test_only_what_is_beyond_chance_after_correction_is_called_a_change() -> None:
    suites = {
        "holdout": {
            "hindsight_kl_drop": statistics.estimate(0.1, 0.06, 0.14, 40),
            "gain": statistics.estimate(0.1, 0.0, 0.2, 40),
        },
        "collapse": {name: statistics.estimate(0.01, -0.1, 0.12, 40) for name in ("empty", "copies", "leaks")},
        "safety": {"refusals": statistics.estimate(-0.5, -0.7, -0.3, 24), "benign": "broken"},
        "forgetting": {"error": "RuntimeError"},
    }
    found = changes(suites)
    assert [(row["suite"], row["metric"], row["better"]) for row in found] == [
        ("holdout", "hindsight_kl_drop", True), ("safety", "refusals", False),
    ]  # fmt: skip
    assert all(row["p"] <= row["adjusted"] < 0.05 for row in found)


def test_figures_that_are_no_means_have_intervals_too() -> None:
    shown = statistics.resampled(lambda picked: float(max(picked)), 10)
    assert shown["high"] == shown["value"] == 9.0 and shown["low"] < 9.0
    assert statistics.resampled(lambda picked: 1.0, 1)["high"] == math.inf
