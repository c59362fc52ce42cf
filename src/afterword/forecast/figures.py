"""Draws the page of a calibration: gap against gain with both intervals, lines with bands, held-out errors.

A self-contained HTML page in the look of the other reports. Numbers come from `calibration.fit`; nothing is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from afterword.evaluate.report.pages import intervals, render
from afterword.forecast.calibration import LEVEL, PointSet, select
from afterword.forecast.line import Floats
from afterword.forecast.points import CalibrationPoint, Configuration
from afterword.records import Json

COLOURS = ("#1f5fa8", "#a8431a", "#1a7046", "#7a3e9d", "#b08900", "#0a8f8f", "#c0397b", "#5b6b2f", "#6a665f")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, FLOOR = 640, 400, 64, 628, 24, 352
HELD = {"configuration": "one configuration", "family": "a whole family"}
UNITS = {"share": "share of prompts", "nats": "nats a token"}


def calibration_page(points: Sequence[CalibrationPoint], found: Json) -> str:
    """The page of a calibration.

    Args:
        points: The raw points.
        found: The fit by `calibration.fit`.
    """
    rows = select(points, unit=found["unit"])
    return str(render(
        "calibration.html",
        title="Gap before training, gain after it",
        about=f"{found['configurations']} configurations, {found['points']} trainings. Whiskers are 95 % intervals, "
        f"bands hold {100 * LEVEL:.0f} % of new configurations. Unit: {UNITS[found['unit']]}.",
        figures=[_scatter("By family", rows, lambda row: row.family, lines=True),
                 _scatter("By context", rows, lambda row: row.context, lines=False)],
        lines=line_rows(found),
        tests=_tests(found),
        errors=error_rows(found),
        pictures=[_picture(HELD[name], one) for name, one in found["held_out"].items() if one is not None],
    ))  # fmt: skip


class _Axis:
    """A linear scale with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        room = 0.06 * ((high - low) or 1.0)
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def at(self, value: float) -> float:
        """Pixel of a value."""
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(part, -0.02), 1.02) * (self.end - self.start), 1)

    def ticks(self) -> list[Json]:
        """Five or so round values with their pixels."""
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first = math.ceil(self.low / step)
        values = [i * step for i in range(first, math.floor(self.high / step) + 1)]
        return [{"at": self.at(v), "text": f"{v:.10g}" if abs(v) > 1e-12 else "0"} for v in values]


def _scatter(
    title: str, rows: Sequence[Configuration], group_of: Callable[[Configuration], str], *, lines: bool
) -> Json:
    names = sorted({group_of(row) for row in rows})
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    x = _Axis(*_ends([(r.gap, r.gap_se) for r in rows]), LEFT, RIGHT)
    y = _Axis(*_ends([(r.gain, r.gain_se) for r in rows]), FLOOR, TOP)
    dots = [
        {
            "name": row.name, "colour": colours[group_of(row)], "x": x.at(row.gap), "y": y.at(row.gain),
            "x_low": x.at(row.gap - 1.96 * row.gap_se), "x_high": x.at(row.gap + 1.96 * row.gap_se),
            "y_low": y.at(row.gain - 1.96 * row.gain_se), "y_high": y.at(row.gain + 1.96 * row.gain_se),
        }
        for row in rows
    ]  # fmt: skip
    groups = {name: PointSet.of([r for r in rows if group_of(r) == name]) for name in names} if lines else {}
    drawn = [_drawn(one, x, y, colours[name]) for name, one in groups.items() if one.usable]
    svg = render(
        "scatter.svg", width=WIDTH, height=HEIGHT, left=LEFT, right=RIGHT, top=TOP, floor=FLOOR, lines=drawn, dots=dots,
        zero_x=x.at(0) if x.low < 0 < x.high else None, zero_y=y.at(0) if y.low < 0 < y.high else None,
        x_ticks=x.ticks(), y_ticks=y.ticks(), x_label="gap before training", y_label="gain after training",
        label=f"{title}: {len(rows)} configurations",
    )  # fmt: skip
    return {"title": title, "svg": svg, "key": [{"name": n, "colour": colours[n]} for n in names]}


def _ends(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(v - 1.96 * e for v, e in values), max(v + 1.96 * e for v, e in values)


def _drawn(points: PointSet, x: _Axis, y: _Axis, colour: str) -> Json:
    """Line and band of one group, over its own range of gaps."""
    posterior = points.sample()
    at = np.linspace(points.gap.min(), points.gap.max(), 25)
    middle: Floats = np.array([(posterior.intercept + posterior.slope * v).mean() for v in at])
    tails = [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]
    low, high = np.array([np.quantile(posterior.predict(v, 0.0), tails) for v in at]).T
    path = " ".join(f"{x.at(a)} {y.at(b)}" for a, b in zip(at, middle, strict=True))
    edge = [*zip(at, high, strict=True), *zip(at[::-1], low[::-1], strict=True)]
    band = " ".join(f"{x.at(a)} {y.at(b)}" for a, b in edge)
    return {"path": f"M{path}", "band": f"M{band}Z", "colour": colour}


def _shown(one: Json | None, digits: int = 3) -> str:
    if one is None:
        return "not known"
    return f"{one['value']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"


def line_rows(found: Json) -> list[list[Any]]:
    """A row for each family and for all together, for a table."""
    groups = {**found["families"], "all together": found["all"]}
    return [_line_row(name, one) for name, one in groups.items()]


def error_rows(found: Json) -> list[list[Any]]:
    """A row for each way to hold out, for a table."""
    return [_error_row(HELD[name], one) for name, one in found["held_out"].items() if one is not None]


def _line_row(name: str, one: Json) -> list[Any]:
    line = one["line"]
    if line is None:
        return [name, one["configurations"], one["why"], "", "", ""]
    cells = [_shown(line[part]) for part in ("slope", "intercept", "scatter")]
    return [name, one["configurations"], *cells, f"{one['r2']:.3f}"]


def _tests(found: Json) -> str:
    linear, equal = found["linearity"], found["equal_slopes_p"]
    told = f"A quadratic term has p = {linear['p']:.3f}; rank correlation {linear['rank_correlation']:.2f}."
    if equal is not None:
        told += f" One slope for all families has p = {equal:.3f}."
    partial = {name.replace("_", " "): one for name, one in found["partial"].items() if one is not None}
    parts = "; ".join(f"{name} {_shown(one, 2)}" for name, one in partial.items())
    return f"{told} Partial correlations with the gain (95 % intervals): {parts}."


def _error_row(name: str, one: Json) -> list[Any]:
    errors = [_shown(one[part]) for part in ("law", "mean_gain", "overlap")]
    return [name, one["configurations"], *errors, _shown(one["coverage"], 2)]


def _picture(name: str, one: Json) -> Json:
    """The errors of the law and of both baselines, on one scale."""
    rows = [("candidate", one["law"]), ("served", one["mean_gain"]), ("served", one["overlap"])]
    shown = [(kind, (v["value"], v["low"], v["high"])) for kind, v in rows if v is not None]
    highest = max(high for _, (_, _, high) in shown if math.isfinite(high))
    svg: Markup = intervals(shown, 0.0, highest, None, f"error with {name} left out")
    return {"title": f"Error with {name} left out", "svg": svg,
            "about": "from the top: the law, the mean gain, the overlap ratio"}  # fmt: skip
