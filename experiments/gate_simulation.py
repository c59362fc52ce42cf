"""How often does the gate err? Simulated comparisons through the real statistics and the real gate.

    python experiments/gate_simulation.py [--cases 2000] [--only TEXT] [--out experiments/gate_simulation.json]

Interactions come in conversations whose answers resemble each other. Each scenario draws paired differences, makes the
figures that the suites would make of them, and asks `decide`. Nothing of a model is in it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afterword.evaluate.changes import BETTER, changes
from afterword.evaluate.power import interactions_needed, share_spread
from afterword.evaluate.sequential import stop_early
from afterword.evaluate.statistics import exactly, figure, mean
from afterword.records import Report
from afterword.release.gate import GateThresholds, bounds, decide

Draw = np.random.Generator
LIMITS = GateThresholds()
NEED, GAIN = 0.1, 0.3
"""Standard deviations of paired differences of the need and of the hindsight score (nats a token), as in demo runs."""
ALIKE = 0.3
"""Correlation of the differences within a conversation."""
PER_CONVERSATION = 2


@dataclass(frozen=True)
class Sizes:
    """How much a comparison has to go by."""

    interactions: int

    @property
    def clusters(self) -> list[str]:
        """Conversation of each interaction."""
        return [str(i // PER_CONVERSATION) for i in range(self.interactions)]


def differences(rng: Draw, sizes: Sizes, centre: float, spread: float) -> Sequence[float]:
    """Paired differences with conversations."""
    of = np.array([int(c) for c in sizes.clusters])
    shared = rng.normal(size=of.max() + 1)[of]
    own = rng.normal(size=sizes.interactions)
    return list(centre + spread * (math.sqrt(ALIKE) * shared + math.sqrt(1 - ALIKE) * own))


def changed_shares(rng: Draw, n: int, gain: float, changed: float) -> list[float]:
    """Paired yes/no differences: a share `changed` of the pairs differs, the mean is `gain`."""
    up = (changed + gain) / 2
    draws = rng.random(n)
    return [1.0 if d < up else -1.0 if d < changed else 0.0 for d in draws]


def fine_suites(n: int) -> dict[str, Any]:
    """Required suites in which nothing is lost."""
    suites: dict[str, Any] = {}
    for bound in bounds(LIMITS):
        if not bound.optional and bound.suite in LIMITS.required:
            inside = {"above": 1.0, "at least": 1.0, "at most": -1.0}[bound.side] + bound.limit
            suites.setdefault(bound.suite, {}).setdefault(bound.figure, exactly(inside, n))
    suites["collapse"]["length_ratio"] = exactly(1.0, n)
    return suites


def passed(suites: dict[str, Any]) -> bool:
    """What the gate says."""
    return decide(Report(id="r", candidate="c", against=None, suites=suites), LIMITS).passed


def one_case(rng: Draw, case: int, sizes: Sizes, need: float, gain: float = 0.0) -> dict[str, Any]:
    """Suites of a comparison whose true differences are these."""
    suites = fine_suites(sizes.interactions)
    need_drop = mean(differences(rng, sizes, need, NEED), sizes.clusters, seed=case)
    suites["holdout"]["need_drop"] = need_drop
    if need_drop["low"] > 0:
        suites["holdout"]["gain"] = mean(differences(rng, sizes, gain, GAIN), sizes.clusters, seed=case)
    return suites


def no_difference(cases: int, n: int, seed: int = 1) -> float:
    """Share of candidates that pass although nothing is better."""
    rng = np.random.default_rng(seed)
    return sum(passed(one_case(rng, case, Sizes(n), 0.0)) for case in range(cases)) / cases


REGRESSIONS: dict[str, Callable[[Draw, Sizes, int], tuple[str, str, dict[str, Any]]]] = {
    "need_drop": lambda rng, sizes, case: (
        "holdout", "need_drop", mean(differences(rng, sizes, 0.0, NEED), sizes.clusters, seed=case)),
    "gain": lambda rng, sizes, case: (
        "holdout", "gain", mean(differences(rng, sizes, LIMITS.min_gain, GAIN), sizes.clusters, seed=case)),
    "loss_rise": lambda rng, sizes, case: (
        "forgetting", "loss_rise", mean(list(rng.normal(LIMITS.max_loss_rise, 0.02, 40)), seed=case)),
    "accuracy": lambda rng, sizes, case: (
        "forgetting", "accuracy", mean(changed_shares(rng, 64, LIMITS.min_accuracy, 0.2), seed=case)),
    "repetitive, 15 points over the margin": lambda rng, sizes, case: (
        "collapse", "repetitive", _rise(rng, sizes.interactions, LIMITS.max_repetitive + 0.15)),
    "empty, 15 points over the margin": lambda rng, sizes, case: (
        "collapse", "empty", _rise(rng, sizes.interactions, LIMITS.max_empty + 0.15)),
}  # fmt: skip
"""One guard with a true loss at its margin (over it, where the value is bounded), everything else good."""


def _rise(rng: Draw, n: int, rise: float) -> dict[str, Any]:
    value = float(np.mean(changed_shares(rng, n, rise, rise)))
    return figure(value, value, value, n)


def regression(name: str, cases: int, n: int, seed: int = 2) -> float:
    """Share of candidates that pass with this loss."""
    rng = np.random.default_rng(seed)
    through = 0
    for case in range(cases):
        suites = fine_suites(n)
        suite, key, shown = REGRESSIONS[name](rng, Sizes(n), case)
        suites[suite][key] = shown
        through += passed(suites)
    return through / cases


def ten_points(cases: int, changed: float, power: float = 0.8, seed: int = 3) -> tuple[int, float]:
    """(interactions that the power calculation asks for, share of true 10-point gains that pass with so many)."""
    n = interactions_needed(0.1, share_spread(0.1, changed), power=power)
    rng = np.random.default_rng(seed)
    found = 0
    for case in range(cases):
        suites = fine_suites(n)
        suites["holdout"]["need_drop"] = mean(changed_shares(rng, n, 0.1, changed), seed=case)
        found += passed(suites)
    return n, found / cases


def looking(cases: int, n: int, gain: float, looks: int = 4, seed: int = 4) -> dict[str, float]:
    """A comparison that is looked at before its end: claims of a gain, and how many interactions it took."""
    rng = np.random.default_rng(seed)
    claims, seen = 0, 0
    for case in range(cases):
        values = list(rng.normal(gain, NEED, n))
        look = stop_early(lambda k, v=values: v[:k], [str(i) for i in range(n)], looks, seed=case)  # type: ignore[misc]
        claims += look.figure["low"] > 0
        seen += look.n
    return {"claims": claims / cases, "mean_interactions": seen / cases, "of": n}


def any_claim(cases: int, n: int, seed: int = 5) -> float:
    """Share of reports without any difference in which some figure looks changed after Holm's correction."""
    rng = np.random.default_rng(seed)
    wrong = 0
    for case in range(cases):
        suites = {
            suite: {name: mean(list(rng.normal(size=n)), seed=case) for name in names}
            for suite, names in BETTER.items()
        }
        wrong += bool(changes(suites))
    return wrong / cases


NEEDED = interactions_needed(0.05, NEED)
"""Interactions for a gain of half the spread."""
SCENARIOS: dict[str, Callable[[int], Any]] = {
    "no difference, passes": lambda cases: {f"{n} interactions": no_difference(cases, n) for n in (16, 24, 64)},
    "a regression, passes (64 interactions)": lambda cases: {name: regression(name, cases, 64) for name in REGRESSIONS},
    "a true 10-point gain, passes (0.8 is promised)": lambda cases: {
        f"{changed:.0%} of pairs differ": dict(zip(("interactions", "passes"), ten_points(cases, changed), strict=True))
        for changed in (0.1, 0.2, 0.46)
    },
    "four looks, no difference": lambda cases: looking(cases, 64, 0.0),
    "four looks, a gain that 0.8 find": lambda cases: looking(cases, NEEDED, 0.05),
    "one look, the same gain": lambda cases: looking(cases, NEEDED, 0.05, looks=1),
    "four looks, a loss of that size": lambda cases: looking(cases, NEEDED, -0.05),
    "any figure claimed after Holm, no difference": lambda cases: any_claim(cases, 24),
}


def main() -> None:
    """Run the scenarios and write each as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--only", metavar="TEXT", default="", help="scenarios whose name contains this")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gate_simulation.json"))
    args = parser.parse_args()
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    for name in (name for name in SCENARIOS if args.only in name):
        found[name] = {"cases": args.cases, "found": SCENARIOS[name](args.cases)}
        print(name, json.dumps(found[name]), flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
