"""Fits gain = a + b * gap to the configurations of a calibration, by family, and measures how well it predicts.

Owns the fit's report: lines with intervals, held-out errors against two baselines, the test of linearity, partial
correlations. Everything is seeded, so the same points give the same numbers. Never measures a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from afterword.errors import NothingToDo
from afterword.evaluate.stats.statistics import estimate, mean, wilson
from afterword.forecast.line import Floats, LinePosterior, partial_correlation, quadratic_p, sample_line, york
from afterword.forecast.points import CalibrationPoint, Configuration, Scale, pool
from afterword.records import Json

LEAST = 6
"""Configurations that a line needs: with fewer no interval was honest in simulation."""
LEVEL = 0.9
"""Of prediction intervals."""
FLOOR = 1e-4
"""Smallest standard error that a fit takes: 0 (all prompts alike) would give a point infinite weight."""


@dataclass(frozen=True, slots=True)
class PointSet:
    """Configurations as arrays [n]."""

    rows: tuple[Configuration, ...]
    gap: Floats
    gap_se: Floats
    gain: Floats
    gain_se: Floats

    @classmethod
    def of(cls, rows: Sequence[Configuration]) -> PointSet:
        """The arrays of `rows`, errors not below FLOOR."""
        columns = {n: np.array([getattr(r, n) for r in rows], float) for n in ("gap", "gap_se", "gain", "gain_se")}
        errors = {n: np.maximum(columns[n], FLOOR) for n in ("gap_se", "gain_se")}
        return cls(tuple(rows), **{**columns, **errors})

    def sample(self, seed: int = 0) -> LinePosterior:
        """Draws of the line through all of them."""
        return sample_line(self.gap, self.gain, self.gap_se, self.gain_se, seed=seed)

    @property
    def usable(self) -> bool:
        """Enough configurations, and gaps that differ."""
        return len(self.rows) >= LEAST and float(np.ptp(self.gap)) > 0 and float(np.ptp(self.gain)) > 0


def select(points: Iterable[CalibrationPoint], *, unit: Scale, base_hash: str | None = None) -> list[Configuration]:
    """The pooled configurations of one unit, and of one base where `base_hash` names it."""
    return pool(p for p in points if p.unit == unit and base_hash in (None, p.base_hash))


def fit(points: Sequence[CalibrationPoint], *, unit: Scale, seed: int = 0) -> Json:
    """The whole report of a calibration, JSON-compatible; each number that is uncertain is {value, low, high, n}.

    Args:
        points: The raw points.
        unit: Which of them: shares and nats never share a line.
        seed: Of posterior draws and bootstraps.

    Raises:
        NothingToDo: Fewer than LEAST configurations, or gaps without spread.
    """
    rows = select(points, unit=unit)
    everything = PointSet.of(rows)
    if not everything.usable:
        raise NothingToDo(
            f"{len(rows)} configurations with unit {unit!r}: a line needs {LEAST} with different gaps and gains. "
            "Measure more with `afterword forecast calibrate`"
        )
    families = _by_family(rows)
    lines = {name: _line(PointSet.of(group), seed) for name, group in families.items()}
    return {
        "unit": unit,
        "points": sum(row.seeds for row in rows),
        "configurations": len(rows),
        "families": lines,
        "all": _line(everything, seed),
        "equal_slopes_p": _equal_slopes(lines),
        "linearity": _linearity(everything, seed),
        "partial": _partial(rows),
        "held_out": {
            "configuration": _errors(rows, _leave_one_out(families, seed), seed),
            "family": _errors(rows, _leave_family_out(families, seed), seed),
        },
    }


def _by_family(rows: Sequence[Configuration]) -> dict[str, list[Configuration]]:
    groups: dict[str, list[Configuration]] = defaultdict(list)
    for row in rows:
        groups[row.family].append(row)
    return dict(groups)


def _line(points: PointSet, seed: int) -> Json:
    """Slope, intercept, scatter and R2 of one group; only its size where it is too small for a line."""
    found: Json = {"configurations": len(points.rows), "seeds": sum(row.seeds for row in points.rows)}
    found["gap_range"] = [float(points.gap.min()), float(points.gap.max())]
    if not points.usable:
        return found | {"line": None, "why": f"a line needs {LEAST} configurations with different gaps and gains"}
    posterior, n = points.sample(seed), len(points.rows)
    plain = york(points.gap, points.gain, points.gap_se, points.gain_se)
    ordinary = stats.linregress(points.gap, points.gain)
    return found | {
        "line": {
            name: _summary(getattr(posterior, name), n) for name in ("slope", "intercept", "scatter")
        },
        "r2": float(ordinary.rvalue) ** 2,
        "least_squares": {"slope": float(ordinary.slope), "intercept": float(ordinary.intercept)},
        "york": {"slope": plain.slope, "slope_se": plain.slope_se, "intercept": plain.intercept,
                 "intercept_se": plain.intercept_se, "chi2": plain.chi2, "p": plain.p},
    }  # fmt: skip


def _summary(draws: Floats, n: int) -> Json:
    low, high = np.quantile(draws, [0.025, 0.975])
    return estimate(float(draws.mean()), float(low), float(high), n)


def _equal_slopes(lines: dict[str, Json]) -> float | None:
    """p that all families have one slope (Cochran's Q over the posterior's standard errors); None for one family."""
    known = [one["line"]["slope"] for one in lines.values() if one["line"] is not None]
    if len(known) < 2:
        return None
    slopes = np.array([k["value"] for k in known])
    weights = np.array([((k["high"] - k["low"]) / 3.92) ** -2 for k in known])
    q = float((weights * (slopes - np.average(slopes, weights=weights)) ** 2).sum())
    return float(stats.chi2.sf(q, len(known) - 1))


def _linearity(points: PointSet, seed: int) -> Json:
    """A test of a quadratic term, weighted by everything that scatters around the line; p below 0.05 speaks against a
    straight line. The rank correlation says whether a larger gap gains more at all."""
    posterior = points.sample(seed)
    slope, scatter = float(posterior.slope.mean()), float(posterior.scatter.mean())
    variance = points.gain_se**2 + slope**2 * points.gap_se**2 + scatter**2
    curvature, p = quadratic_p(points.gap, points.gain, variance)
    rank = stats.spearmanr(points.gap, points.gain)
    return {"curvature": curvature, "p": p, "rank_correlation": float(rank.statistic), "rank_p": float(rank.pvalue)}


_COVARIATES: dict[str, Callable[[Configuration], float]] = {
    "context_length": lambda row: float(np.log1p(row.context_tokens)),
    "training_length": lambda row: float(np.log1p(row.train_tokens)),
}


def _partial(rows: Sequence[Configuration]) -> Json:
    """Correlation of gap and gain with context and training length held constant, and of each of these with the gain
    at a constant gap. None for a length that does not vary, or where points are too few."""
    gap, gain = np.array([r.gap for r in rows]), np.array([r.gain for r in rows])
    values = {name: np.array([of(row) for row in rows]) for name, of in _COVARIATES.items()}
    varied = {name: v for name, v in values.items() if float(np.ptp(v)) > 1e-9}
    found: Json = {"gap": _correlation(gap, gain, list(varied.values()), len(rows))}
    for name in _COVARIATES:
        found[name] = _correlation(varied[name], gain, [gap], len(rows)) if name in varied else None
    return found


def _correlation(x: Floats, y: Floats, given: list[Floats], n: int) -> Json | None:
    held = np.stack(given, 1) if given else np.empty((n, 0))
    return estimate(*partial_correlation(x, y, held), n) if n >= held.shape[1] + 4 else None


@dataclass(frozen=True, slots=True)
class _Held:
    """What was predicted for a configuration that the fit did not see."""

    value: float
    low: float
    high: float
    mean_gain: float
    overlap: float | None


def _leave_one_out(families: dict[str, list[Configuration]], seed: int) -> dict[Configuration, _Held]:
    """Each configuration from the other ones of its family, where these are enough for a line."""
    found: dict[Configuration, _Held] = {}
    for group in families.values():
        rests = [[row for row in group if row is not out] for out in group]
        if len(group) <= LEAST or not all(PointSet.of(rest).usable for rest in rests):
            continue
        whole, n = PointSet.of(group), len(group)
        others = np.array([[j for j in range(n) if j != i] for i in range(n)])  # [n, n - 1]: one batch of all fits
        arrays = (getattr(whole, name)[others] for name in ("gap", "gain", "gap_se", "gain_se"))
        draws = sample_line(*arrays, seed=seed).predict(whole.gap, whole.gap_se, sy=whole.gain_se)
        for i, (out, rest) in enumerate(zip(group, rests, strict=True)):
            found[out] = _held(draws[:, i], rest, out)
    return found


def _leave_family_out(families: dict[str, list[Configuration]], seed: int) -> dict[Configuration, _Held]:
    """Each family from all others together."""
    found: dict[Configuration, _Held] = {}
    for name, group in families.items():
        rest = [row for other, rows in families.items() if other != name for row in rows]
        points = PointSet.of(rest)
        if points.usable:
            posterior = points.sample(seed)
            for out in group:
                draws = posterior.predict(out.gap, max(out.gap_se, FLOOR), sy=out.gain_se)
                found[out] = _held(draws, rest, out)
    return found


def _held(draws: Floats, rest: Sequence[Configuration], out: Configuration) -> _Held:
    """The prediction for `out` in draws [D], beside what both baselines say after `rest`."""
    low, high = np.quantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    overlap = _overlap_line(rest)
    guess = None if overlap is None or out.overlap is None else overlap(out.overlap)
    mean_gain = sum(row.gain for row in rest) / len(rest)
    return _Held(float(np.median(draws)), float(low), float(high), mean_gain, guess)


def _overlap_line(rows: Sequence[Configuration]) -> Callable[[float], float] | None:
    """Gain by the overlap ratio alone (least squares), the second baseline."""
    known = [(row.overlap, row.gain) for row in rows if row.overlap is not None]
    if len(known) < 3 or len({overlap for overlap, _ in known}) < 2:
        return None
    line = stats.linregress(*np.array(known, float).T)
    return lambda overlap: float(line.intercept + line.slope * overlap)


def _errors(rows: Sequence[Configuration], held: dict[Configuration, _Held], seed: int) -> Json | None:
    """Out-of-sample errors of the law and both baselines on the same configurations; None where nothing could be held
    out. A difference below 0 means that the law is nearer than the baseline."""
    if not held:
        return None
    pairs = [(row, held[row]) for row in rows if row in held]
    law = [abs(one.value - row.gain) for row, one in pairs]
    base = [abs(one.mean_gain - row.gain) for row, one in pairs]
    # Only where the overlap is known: the law's own error on the same ones stands in the difference.
    over = [(abs(one.overlap - row.gain), error) for (row, one), error in zip(pairs, law, strict=True)
            if one.overlap is not None]  # fmt: skip
    spread = float(np.square([row.gain - np.mean([r.gain for r, _ in pairs]) for row, _ in pairs]).sum())
    inside = sum(one.low <= row.gain <= one.high for row, one in pairs)
    found: Json = {
        "configurations": len(pairs),
        "law": mean(law, seed=seed),
        "mean_gain": mean(base, seed=seed),
        "law_minus_mean_gain": mean([a - b for a, b in zip(law, base, strict=True)], seed=seed),
        "overlap": mean([o for o, _ in over], seed=seed) if over else None,
        "law_minus_overlap": mean([e - o for o, e in over], seed=seed) if over else None,
        "r2": 1 - float(np.square([row.gain - one.value for row, one in pairs]).sum()) / spread if spread else None,
        "coverage": wilson(inside, len(pairs)),
        "predictions": [_row(row, one) for row, one in pairs],
    }
    return found


def _row(row: Configuration, one: _Held) -> dict[str, Any]:
    return {
        "task": row.task, "context": row.context, "student": row.student, "gap": row.gap, "gain": row.gain,
        "predicted": one.value, "low": one.low, "high": one.high, "mean_gain": one.mean_gain, "overlap": one.overlap,
    }  # fmt: skip
