"""Fits a line to points with errors in both variables, and predicts new points from it.

`york` is the classical fit; `sample_line` draws from the posterior of a line with scatter around it. Arrays may have
leading batch dimensions: many data sets are fitted at once, as leave-one-out and simulations need it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
DRAWS, BURN, STEPS = 1200, 400, 2
"""Kept draws, dropped draws before them, and Metropolis steps of the scatter per draw."""
CAUCHY = 1.0
"""Scale of the half-Cauchy prior of the scatter, in standard deviations of y. In 24,000 simulated data sets of 6 to 24
points the 90 % intervals held 88 to 97 % of new points; with a scale of 100 (flat) 89 to 98 %."""


@dataclass(frozen=True, slots=True)
class YorkFit:
    """A straight line by generalised least squares; standard errors assume that the measurement errors are all."""

    slope: float
    intercept: float
    slope_se: float
    intercept_se: float
    chi2: float
    """Weighted sum of squares; far above `freedom` where points scatter beyond their errors."""
    freedom: int

    @property
    def p(self) -> float:
        """Probability of such a chi2 or more if all points lay on a line but for their errors."""
        return float(stats.chi2.sf(self.chi2, self.freedom)) if self.freedom > 0 else 1.0


def york(x: ArrayLike, y: ArrayLike, sx: ArrayLike, sy: ArrayLike, *, rounds: int = 200) -> YorkFit:
    """Line with errors in both variables (York et al., Am. J. Phys. 72, 2004, equation 13).

    With one ratio of the errors for all points this is Deming's regression.

    Args:
        x, y: [n] measurements, n >= 2.
        sx, sy: [n] standard errors, positive.
        rounds: Most iterations.

    Raises:
        ValueError: Fewer than two points, or x without any spread.
    """
    xs, ys, ex, ey = (np.asarray(v, dtype=np.float64) for v in (x, y, sx, sy))
    if len(xs) < 2 or float(np.ptp(xs)) == 0.0:
        raise ValueError("a line needs two points with different x")
    wx, wy = 1 / ex**2, 1 / ey**2
    slope = float(np.polyfit(xs, ys, 1)[0])
    for _ in range(rounds):
        w = wx * wy / (wx + slope**2 * wy)
        u, v = xs - np.average(xs, weights=w), ys - np.average(ys, weights=w)
        beta = w * (u / wy + slope * v / wx)
        new = float((w * beta * v).sum() / (w * beta * u).sum())
        done = abs(new - slope) <= 1e-14 * max(1.0, abs(new))
        slope = new
        if done:
            break
    w = wx * wy / (wx + slope**2 * wy)
    mean_x, mean_y = np.average(xs, weights=w), np.average(ys, weights=w)
    u, v = xs - mean_x, ys - mean_y
    beta = w * (u / wy + slope * v / wx)
    intercept = float(mean_y - slope * mean_x)
    adjusted = mean_x + beta
    middle = np.average(adjusted, weights=w)
    slope_var = 1 / float((w * (adjusted - middle) ** 2).sum())
    return YorkFit(
        slope=slope,
        intercept=intercept,
        slope_se=math.sqrt(slope_var),
        intercept_se=math.sqrt(1 / float(w.sum()) + float(middle) ** 2 * slope_var),
        chi2=float((w * (ys - slope * xs - intercept) ** 2).sum()),
        freedom=len(xs) - 2,
    )


@dataclass(frozen=True, slots=True)
class LinePosterior:
    """Draws of y = intercept + slope * x + scatter, each [D, ...] with the batch dimensions of the data behind."""

    intercept: Floats
    slope: Floats
    scatter: Floats
    """Standard deviation of true y around the line."""
    centre: Floats
    """Mean of the population of true x, ..."""
    spread: Floats
    """... and its standard deviation."""
    seed: int

    def predict(self, x: ArrayLike, sx: ArrayLike, *, sy: ArrayLike = 0.0) -> Floats:
        """Draws [D, ...] of a new y.

        Args:
            x: Measured x of the new point, in the batch's shape.
            sx: Its standard error; the true x is drawn given the population that the line was fitted on, so a large x
                with a large error is shrunk (regression to the mean).
            sy: Standard error of the measurement of y that is to be covered; 0 predicts the true y.
        """
        rng = np.random.default_rng(self.seed + 1)
        measured, error = np.asarray(x, np.float64), np.maximum(np.asarray(sx, np.float64), 1e-12)
        precision = 1 / error**2 + 1 / self.spread**2
        mean = (measured / error**2 + self.centre / self.spread**2) / precision
        true_x = mean + rng.standard_normal(self.slope.shape) / np.sqrt(precision)
        width = np.sqrt(self.scatter**2 + np.asarray(sy, np.float64) ** 2)
        drawn: Floats = self.intercept + self.slope * true_x + width * rng.standard_normal(self.slope.shape)
        return drawn


def sample_line(
    x: ArrayLike, y: ArrayLike, sx: ArrayLike, sy: ArrayLike, *, seed: int = 0, draws: int = DRAWS, burn: int = BURN
) -> LinePosterior:
    """Draw from the posterior of a line with normal errors in both variables and normal scatter around it.

    The structural model of Kelly (ApJ 665, 2007) with one normal population of x. On standardised data the priors are
    flat in intercept, mean and spread of x, uniform in the line's angle, and half-Cauchy for the scatter (Gelman 2006).
    Gibbs sampling with a Metropolis step for the scatter.

    Args:
        x, y: [..., n] measurements, n >= 4.
        sx, sy: [..., n] their standard errors.
        seed: Of the sampler.
        draws: Kept draws.
        burn: Draws that are dropped before.

    Raises:
        ValueError: Fewer than four points, values that are not finite, or an x or y without any spread.
    """
    xs, ys, ex, ey = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (x, y, sx, sy)))
    if xs.shape[-1] < 4:
        raise ValueError(f"the scatter around a line needs four points, got {xs.shape[-1]}")
    if not all(np.isfinite(v).all() for v in (xs, ys, ex, ey)):
        raise ValueError("values and errors have to be finite")
    scale_x, scale_y = xs.std(-1, keepdims=True), ys.std(-1, keepdims=True)
    if (scale_x == 0).any() or (scale_y == 0).any():
        raise ValueError("all x or all y are alike: no line can be told")
    middle_x, middle_y = xs.mean(-1, keepdims=True), ys.mean(-1, keepdims=True)
    sampler = _Gibbs(
        (xs - middle_x) / scale_x,
        (ys - middle_y) / scale_y,
        np.maximum(ex / scale_x, 1e-4),
        np.maximum(ey / scale_y, 1e-4),
        np.random.default_rng(seed),
    )
    for _ in range(burn):
        sampler.step()
    kept = np.stack([sampler.step() for _ in range(draws)])
    intercept, slope, scatter, centre, spread = np.moveaxis(kept, 1, 0)
    mx, my, kx, ky = (v[..., 0] for v in (middle_x, middle_y, scale_x, scale_y))
    slope = slope * ky / kx
    return LinePosterior(
        intercept=intercept * ky + my - slope * mx,
        slope=slope,
        scatter=scatter * ky,
        centre=centre * kx + mx,
        spread=spread * kx,
        seed=seed,
    )


class _Gibbs:
    """The state of the sampler on standardised data, and one sweep over it."""

    def __init__(self, x: Floats, y: Floats, sx: Floats, sy: Floats, rng: np.random.Generator) -> None:
        self.x, self.y, self.vx, self.vy, self.rng = x, y, sx**2, sy**2, rng
        self.n, self.batch = x.shape[-1], x.shape[:-1]
        self.true = x.copy()
        self.intercept, self.centre = np.zeros(self.batch), np.zeros(self.batch)
        self.slope = (x * y).mean(-1)
        self.spread, self.scatter = np.ones(self.batch), np.full(self.batch, 0.3)

    def step(self) -> Floats:
        """One sweep; [5, ...] intercept, slope, scatter, centre and spread."""
        self._line()
        for _ in range(STEPS):
            self._scatter()
        self._true_x()
        self._population()
        return np.stack([self.intercept, self.slope, self.scatter, self.centre, self.spread])

    def _normal(self, *shape: int) -> Floats:
        return self.rng.standard_normal((*self.batch, *shape))

    def _line(self) -> None:
        """Intercept and slope given true x: a weighted regression."""
        w = 1 / (self.vy + self.scatter[..., None] ** 2)
        total = w.sum(-1)
        mx, my = (w * self.true).sum(-1) / total, (w * self.y).sum(-1) / total
        u = self.true - mx[..., None]
        sxx = np.maximum((w * u * u).sum(-1), 1e-12)
        slope = (w * u * (self.y - my[..., None])).sum(-1) / sxx + self._normal() / np.sqrt(sxx)
        # Proposed under a flat prior; uniform in the line's angle is (1 + slope^2)^(-3/2).
        odds = ((1 + self.slope**2) / (1 + slope**2)) ** 1.5
        self.slope = np.where(self.rng.random(self.batch) < odds, slope, self.slope)
        self.intercept = my + self._normal() / np.sqrt(total) - self.slope * mx

    def _scatter(self) -> None:
        residual2 = (self.y - self.intercept[..., None] - self.slope[..., None] * self.true) ** 2

        def density(scatter: Floats) -> Floats:
            variance = self.vy + scatter[..., None] ** 2
            found: Floats = -0.5 * (np.log(variance) + residual2 / variance).sum(-1)
            return found + np.log(scatter) - np.log1p((scatter / CAUCHY) ** 2)

        new = self.scatter * np.exp(0.7 * self._normal())
        accept = np.log(self.rng.random(self.batch)) < density(new) - density(self.scatter)
        self.scatter = np.clip(np.where(accept, new, self.scatter), 1e-6, 1e3)

    def _true_x(self) -> None:
        vy = self.vy + self.scatter[..., None] ** 2
        slope, spread2 = self.slope[..., None], self.spread[..., None] ** 2
        precision = 1 / self.vx + slope**2 / vy + 1 / spread2
        mean = self.x / self.vx + slope * (self.y - self.intercept[..., None]) / vy + self.centre[..., None] / spread2
        self.true = mean / precision + self._normal(self.n) / np.sqrt(precision)

    def _population(self) -> None:
        middle = self.true.mean(-1)
        self.centre = middle + self._normal() * self.spread / math.sqrt(self.n)
        squares = ((self.true - self.centre[..., None]) ** 2).sum(-1)
        # Flat prior on the standard deviation: the variance is inverse chi-square with n - 1 degrees of freedom.
        self.spread = np.sqrt(np.maximum(squares / self.rng.chisquare(self.n - 1, self.batch), 1e-8))


def quadratic_p(x: Floats, y: Floats, variance: Floats) -> tuple[float, float]:
    """Coefficient of x^2 beside a line, and its two-sided p (weights 1 / variance, scale estimated).

    Raises:
        ValueError: Fewer than four points.
    """
    if len(x) < 4:
        raise ValueError("a test of linearity needs four points")
    root = 1 / np.sqrt(variance)
    u = (x - x.mean()) / (x.std() or 1.0)
    design = np.stack([np.ones_like(u), u, u * u], 1) * root[:, None]
    coefficients, _, rank, _ = np.linalg.lstsq(design, y * root, rcond=None)
    if rank < 3:
        return 0.0, 1.0
    rest = y * root - design @ coefficients
    freedom = len(x) - 3
    error = math.sqrt(float(rest @ rest) / freedom * float(np.linalg.inv(design.T @ design)[2, 2]))
    t = float(coefficients[2]) / error if error > 0 else 0.0
    return float(coefficients[2]) / (float(x.std()) or 1.0) ** 2, float(2 * stats.t.sf(abs(t), freedom))


def partial_correlation(x: Floats, y: Floats, given: Floats, *, level: float = 0.95) -> tuple[float, float, float]:
    """Correlation of x and y once `given` [n, k] is held constant, with Fisher's interval.

    Raises:
        ValueError: Fewer than k + 4 points.
    """
    n, k = len(x), given.shape[1]
    if n < k + 4:
        raise ValueError(f"a partial correlation given {k} variables needs {k + 4} points, got {n}")
    design = np.concatenate([np.ones((n, 1)), given], 1)
    rests = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y)]
    norms = [math.sqrt(float(v @ v)) for v in rests]
    if min(norms) < 1e-12:
        return 0.0, -1.0, 1.0
    r = max(-1.0, min(1.0, float(rests[0] @ rests[1]) / (norms[0] * norms[1])))
    z, half = math.atanh(max(-0.999999, min(0.999999, r))), stats.norm.ppf(0.5 + level / 2) / math.sqrt(n - k - 3)
    return r, math.tanh(z - half), math.tanh(z + half)
