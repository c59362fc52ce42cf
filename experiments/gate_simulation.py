"""How often does the gate err? Simulated comparisons through the real statistics and the whole real gate.

    python experiments/gate_simulation.py [--cases 2000] [--only TEXT] [--out experiments/gate_simulation.json]

Every metric of the default suites is drawn from cases (pairs of answers, texts, questions, secrets) with a true
difference, put through the statistics that the suites use, and judged by `decide` with all its lines. How much pairs
differ where nothing was lost is what trained candidates on the embedded model showed (docs/gate.md). Interactions come
in conversations whose answers resemble each other. Nothing of a model is in it.
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

from afterword.config import EvaluateConfig
from afterword.evaluate.stats.changes import TESTED, changes
from afterword.evaluate.stats.control_variate import Substitutes, adjusted_mean
from afterword.evaluate.stats.group_sequential import level_of_look, stop_early
from afterword.evaluate.stats.power import interactions_needed, share_spread
from afterword.evaluate.stats.statistics import estimate, exact, mean, paired_share, ratio_of_sums
from afterword.evaluate.suites.privacy import TEXTS, ranked
from afterword.records import Report
from afterword.release.gate import AppliedMargin, GateThresholds, bounds, decide

Draw = np.random.Generator
LIMITS = GateThresholds()
BOUNDS = bounds(LIMITS)
ANSWERS = EvaluateConfig().min_answers
NEED, GAIN = 0.1, 0.2
"""Standard deviations of paired differences of the need and of the hindsight score (nats a token), as in demo runs."""
SEED = 0
"""Of the bootstrap, as in the configuration."""
ALIKE = 0.3
"""Correlation of the differences within a conversation."""
PER_CONVERSATION = 2


@dataclass(frozen=True)
class World:
    """What is true of a candidate, and how much there is to see it by."""

    interactions: int
    need: Callable[[Draw, int], Sequence[float]]
    """Paired drops of the need."""
    lost: frozenset[str] = frozenset()
    """"suite.metric.side" of the lines at whose limit the candidate truly is."""

    @property
    def clusters(self) -> list[str]:
        """Conversation of each interaction."""
        return [str(i // PER_CONVERSATION) for i in range(self.interactions)]


def alike(rng: Draw, n: int, centre: float, spread: float) -> list[float]:
    """Paired differences with conversations."""
    shared = np.repeat(rng.normal(size=n), PER_CONVERSATION)[:n]
    own = rng.normal(size=n)
    return list(centre + spread * (math.sqrt(ALIKE) * shared + math.sqrt(1 - ALIKE) * own))


def needs(centre: float) -> Callable[[Draw, int], list[float]]:
    """Drops of the need around this mean."""
    return lambda rng, n: alike(rng, n, centre, NEED)


def changed_shares(gain: float, changed: float) -> Callable[[Draw, int], list[float]]:
    """Paired yes/no differences: a share `changed` of the pairs differs, the mean is `gain`."""
    up = (changed + gain) / 2
    return lambda rng, n: [1.0 if d < up else -1.0 if d < changed else 0.0 for d in rng.random(n)]


def pairs(changed: float, n: int = 0, population: int | None = None) -> Callable[..., dict[str, Any]]:
    """A share of `n` (or of all answers) of which `changed` differ either way when nothing is lost."""

    def draw(rng: Draw, world: World, at: float, seed: int) -> dict[str, Any]:
        size = n or max(ANSWERS, world.interactions)
        found = changed_shares(at, max(changed, abs(at)))(rng, size)
        before, after = [d < 0 for d in found], [d > 0 for d in found]
        return paired_share(
            before, after, world.clusters if size == world.interactions else None, population=population
        )

    return draw


def asking_more(changed: float, first: int, more: int, limit: float) -> Callable[..., dict[str, Any]]:
    """A share of `first` probes; with `more` of them, at the level of a second look, where the first leave it open
    whether the loss is beyond the limit (below 0: the lower end decides)."""

    def draw(rng: Draw, world: World, at: float, seed: int) -> dict[str, Any]:
        found = changed_shares(at, max(changed, abs(at)))(rng, first + more)
        shown: dict[str, Any] = {}
        for size, level in ((first, level_of_look(1)), (first + more, level_of_look(2))):
            shown = paired_share([d < 0 for d in found[:size]], [d > 0 for d in found[:size]], level=level)
            ends = (-shown["low"], -shown["value"]) if limit < 0 else (shown["high"], shown["value"])
            if not ends[0] > abs(limit) >= ends[1]:
                break
        return shown

    return draw


def means(spread: float, n: int = 0, usual: float = 0.0) -> Callable[..., dict[str, Any]]:
    """A mean over `n` texts (or over the interactions); `usual` where nothing is lost."""

    def draw(rng: Draw, world: World, at: float, seed: int) -> dict[str, Any]:
        centre = at if at else usual
        if n:
            return mean(list(rng.normal(centre, spread, n)), seed=seed)
        return mean(alike(rng, world.interactions, centre, spread), world.clusters, seed=seed)

    return draw


def lengths(rng: Draw, world: World, at: float, seed: int) -> dict[str, Any]:
    """Ratio of the lengths of answers; candidates that learned brevity are at 0.6."""
    size = max(ANSWERS, world.interactions)
    served = np.exp(rng.normal(4, 0.6, size))
    return ratio_of_sums(list(served * (at or 0.6) * np.exp(rng.normal(-0.08, 0.4, size))), list(served), seed=seed)


def around(error: float, usual: float) -> Callable[..., dict[str, Any]]:
    """A metric whose interval is Student's."""

    def draw(rng: Draw, world: World, at: float, seed: int) -> dict[str, Any]:
        value = (at or usual) + error * rng.normal()
        return estimate(value, value - 1.96 * error, value + 1.96 * error, ANSWERS)

    return draw


def _name(bound: AppliedMargin) -> str:
    return f"{bound.suite}.{bound.metric.name}.{bound.margin.side}"


GUARDS: dict[str, Callable[..., dict[str, Any]]] = {
    "holdout.gain": means(GAIN, usual=0.02),
    "forgetting.drift": means(0.06, 40, usual=0.05),
    "forgetting.loss_rise": means(0.03, 40),
    "forgetting.loss_rise_base": means(0.03, 40),
    "forgetting.accuracy": pairs(0.03, 128),
    "collapse.empty": pairs(0.003),
    "collapse.truncated": pairs(0.3),
    "collapse.repetitive": pairs(0.06),
    "collapse.copies": pairs(0.04),
    "collapse.leaks": pairs(0.003),
    "collapse.declined": pairs(0.08),
    "collapse.length_ratio": lengths,
    "collapse.distinct_ratio": around(0.06, 0.9),
    "collapse.similarity": around(0.02, 0.15),
    "collapse.entropy_ratio": around(0.02, 1.0),
    "earlier-wins.hindsight_kl_drop": means(0.05),
    "privacy.exposure_rise": lambda rng, world, at, seed: ranked(list(rng.normal(at, 1.2, 8))),
    "privacy.memorised": pairs(0.002, TEXTS, population=200),
    "privacy.quotes": pairs(0.003),
    "safety.refusals": asking_more(0.06, 24, 48, LIMITS.min_refusals),
    "safety.declining": means(0.15, 24, usual=0.05),
    "safety.benign": asking_more(0.06, 32, 64, LIMITS.min_benign),
    "safety.sycophancy": asking_more(0.1, 24, 48, LIMITS.max_sycophancy),
    "safety.personalised": asking_more(0.1, 24, 24, LIMITS.max_personalised),
}  # fmt: skip
"""Lines that an interval decides, suite by suite: how their metric comes about."""
LOST = sorted({_name(b) for b in BOUNDS if f"{b.suite}.{b.metric.name}" in GUARDS})


def passes(rng: Draw, world: World, seed: int) -> bool:
    """Draw metric after metric until a line does not hold: does the whole report pass?"""
    suites: dict[str, Any] = {}
    lines = {_name(b): b for b in BOUNDS}
    first = sorted(lines.values(), key=lambda b: (_name(b) not in world.lost, b.suite != "holdout"))
    for bound in first:
        metrics = suites.setdefault(bound.suite, {})
        if bound.metric.name not in metrics and (drawn := _drawn(rng, world, bound, seed)) is not None:
            metrics[bound.metric.name] = drawn
            if not bound.holds(float(drawn[bound.margin.end])):
                return False
    kept = {suite: metrics for suite, metrics in suites.items() if metrics}
    return decide(Report(id="r", candidate="c", against=None, suites=kept), LIMITS).passed


def _drawn(rng: Draw, world: World, bound: AppliedMargin, seed: int) -> dict[str, Any] | None:
    name = f"{bound.suite}.{bound.metric.name}"
    if name == "holdout.interactions":
        return exact(world.interactions, world.interactions)
    if name == "holdout.conversations":
        return exact(len(set(world.clusters)), world.interactions)
    if name == "holdout.hindsight_kl_drop":
        return mean(world.need(rng, world.interactions), world.clusters, seed=seed)
    if name not in GUARDS:
        return None
    limits = [b.limit for b in BOUNDS if _name(b) in world.lost and f"{b.suite}.{b.metric.name}" == name]
    at = limits[0] if limits else 0.0
    return GUARDS[name](rng, world, at, seed)


def share(cases: int, world: World, seed: int) -> float:
    """Share of candidates of this world that pass."""
    rng = np.random.default_rng(seed)
    return sum(passes(rng, world, SEED) for _ in range(cases)) / cases


def no_difference(cases: int, n: int, seed: int = 1) -> float:
    """Share of candidates that pass although nothing is better (or worse)."""
    return share(cases, World(n, needs(0.0)), seed)


def regression(line: str, cases: int, n: int, seed: int = 2) -> float:
    """Share that passes with a true loss at the limit of one line, although users got what they asked for."""
    return share(cases, World(n, needs(0.2), frozenset((line,))), seed)


def ten_points(cases: int, changed: float, power: float = 0.8, seed: int = 3) -> tuple[int, float]:
    """(interactions that the power calculation asks for, share of true 10-point gains that pass with so many)."""
    n = interactions_needed(0.1, share_spread(0.1, changed), power=power)
    rng, alone = np.random.default_rng(seed), changed_shares(0.1, changed)
    return n, sum(passes(rng, _Apart(n, alone), SEED) for _ in range(cases)) / cases


class _Apart(World):
    """Every interaction a conversation of its own."""

    @property
    def clusters(self) -> list[str]:
        return [str(i) for i in range(self.interactions)]


def looking(cases: int, n: int, gain: float, looks: int = 4, seed: int = 4) -> dict[str, float]:
    """A comparison that is looked at before its end: claims of a gain, and how many interactions it took."""
    rng = np.random.default_rng(seed)
    claims, seen = 0, 0
    for case in range(cases):
        values = list(rng.normal(gain, NEED, n))
        look = stop_early(lambda k, v=values: v[:k], [str(i) for i in range(n)], looks, seed=case)  # type: ignore[misc]
        claims += look.estimate["low"] > 0
        seen += look.n
    return {"claims": claims / cases, "mean_interactions": seen / cases, "of": n}


def cross_fitted(
    cases: int, n: int, gain: float, substitutes: float, resemblance: float, folds: int = 3, seed: int = 8
) -> float:
    """Share of candidates that claim a gain when three quarters of the conversations are judged by fold adapters.

    Args:
        cases: Simulated candidates.
        n: Held-out interactions; three times as many are unseen by one fold adapter each.
        gain: True drop of the candidate.
        substitutes: True drop of the fold adapters, which may be quite another.
        resemblance: Correlation of the values of two adapters on the same interaction.
        folds: Fold adapters.
        seed: Of the draws.
    """
    rng, k = np.random.default_rng(seed), 3 * n
    clusters = [str(i // PER_CONVERSATION) for i in range(n + k)]
    fold = (np.arange(k) // PER_CONVERSATION) % folds
    parts = [float(np.mean(fold == number)) for number in range(folds)]
    claims = 0
    for _ in range(cases):
        common = np.array(alike(rng, n + k, 0.0, NEED * math.sqrt(resemblance)))
        apart = NEED * math.sqrt(1 - resemblance)
        drops = common[:n] + alike(rng, n, gain, apart)
        others = [common + alike(rng, n + k, substitutes, apart) for _ in range(folds)]
        own = np.sum([part * other[:n] for part, other in zip(parts, others, strict=True)], axis=0)
        unseen = np.choose(fold, [other[n:] for other in others])
        found = adjusted_mean(list(drops), clusters[:n], Substitutes(list(own), list(unseen), clusters[n:]))
        assert found is not None
        claims += found["low"] > 0
    return claims / cases


def judged_again(cases: int, n: int, gain: float, looks: int = 4, seed: int = 9) -> float:
    """Share of candidates that claim a gain when the undecided ones are judged again, each time on a quarter more."""
    rng = np.random.default_rng(seed)
    claims = 0
    for _ in range(cases):
        values = alike(rng, math.ceil(n * 1.25 ** (looks - 1)), gain, NEED)
        for number in range(1, looks + 1):
            seen = values[: math.ceil(n * 1.25 ** (number - 1))]
            clusters = [str(i // PER_CONVERSATION) for i in range(len(seen))]
            if mean(seen, clusters, seed=SEED, level=level_of_look(number))["low"] > 0:
                claims += 1
                break
    return claims / cases


def any_claim(cases: int, n: int, seed: int = 5) -> float:
    """Share of reports without any difference in which some metric looks changed after Holm's correction."""
    rng = np.random.default_rng(seed)
    wrong = 0
    for case in range(cases):
        suites: dict[str, Any] = {}
        for suite, name in TESTED:
            suites.setdefault(suite, {})[name] = mean(list(rng.normal(size=n)), seed=case)
        wrong += bool(changes(suites))
    return wrong / cases


NEEDED = interactions_needed(0.05, NEED)
"""Interactions for a gain of half the spread."""
SCENARIOS: dict[str, Callable[[int], Any]] = {
    "no difference, passes": lambda cases: {f"{n} interactions": no_difference(cases, n) for n in (16, 24, 64)},
    "a regression, passes (64 interactions)": lambda cases: {name: regression(name, cases, 64) for name in LOST},
    "every line at its limit, a clear gain, passes": lambda cases: share(
        cases, World(64, needs(0.2), frozenset(LOST)), 6
    ),
    "a true 10-point gain, passes (0.8 is promised)": lambda cases: {
        f"{changed:.0%} of pairs differ": dict(zip(("interactions", "passes"), ten_points(cases, changed), strict=True))
        for changed in (0.1, 0.2, 0.46)
    },
    "a clear gain and no loss, passes": lambda cases: {
        f"{n} interactions": share(cases, World(n, needs(0.2)), 7) for n in (16, 24, 64)
    },
    "four looks, no difference": lambda cases: looking(cases, 64, 0.0),
    "four looks, a gain that 0.8 find": lambda cases: looking(cases, NEEDED, 0.05),
    "one look, the same gain": lambda cases: looking(cases, NEEDED, 0.05, looks=1),
    "four looks, a loss of that size": lambda cases: looking(cases, NEEDED, -0.05),
    "cross-fitting, no gain, claims": lambda cases: {
        f"{n} held out, fold adapters at {other:+.1f}, resemblance {alike_}": cross_fitted(cases, n, 0.0, other, alike_)
        for n in (8, 12, 16)
        for other in (0.0, 0.1, -0.1)
        for alike_ in (0.5, 0.9)
    },
    "cross-fitting, a gain of half the spread, claims": lambda cases: {
        f"{n} held out, resemblance {alike_}": cross_fitted(cases, n, 0.05, 0.05, alike_)
        for n in (8, 12, 16, 24)
        for alike_ in (0.5, 0.7, 0.9)
    },
    "held out alone, the same gain, claims": lambda cases: {
        f"{n} held out": judged_again(cases, n, 0.05, looks=1) for n in (12, 16, 24)
    },
    "judged up to four times, no gain, claims": lambda cases: {
        f"{n} at first": judged_again(cases, n, 0.0) for n in (16, 24, 64)
    },
    "judged up to four times, a gain of half the spread, claims": lambda cases: {
        f"{n} at first": judged_again(cases, n, 0.05) for n in (16, 24, 64)
    },
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
