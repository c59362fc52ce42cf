"""The shell of our pages and the small pictures in them: escaped text, inline SVG, no external file.

Owns the look (`data/page.css`); knows nothing of reports.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources

WIDTH, HEIGHT, PAD = 220, 20, 6


def escape(text: object) -> str:
    """Text that may stand in HTML, also inside quotes."""
    return html.escape(str(text), quote=True)


@cache
def _css() -> str:
    return resources.files("afterword.evaluate").joinpath("data/page.css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML already."""
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        f'<meta name=viewport content="width=device-width,initial-scale=1"><style>{_css()}</style></head>'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


Interval = tuple[float, float, float]
"""value, low, high."""


def intervals(rows: Sequence[tuple[str, Interval]], low: float, high: float, zero: float | None, label: str) -> str:
    """Dots with whiskers, one line for each (CSS class, interval), on one scale from `low` to `high`."""
    span = (high - low) or 1.0

    def x(value: float) -> float:
        clamped = min(max(value, low), high) if math.isfinite(value) else (high if value > 0 else low)
        return PAD + (clamped - low) / span * (WIDTH - 2 * PAD)

    height = HEIGHT if len(rows) == 1 else 13 * len(rows) + 2
    step = height / len(rows)
    parts = [f'<svg class=iv viewBox="0 0 {WIDTH} {height:g}" role=img aria-label="{escape(label)}">']
    parts.append(f'<line class=axis x1={PAD} x2={WIDTH - PAD} y1="{height - 1:g}" y2="{height - 1:g}"/>')
    if zero is not None and low <= zero <= high:
        parts.append(f'<line class=zero x1="{x(zero):.1f}" x2="{x(zero):.1f}" y1=0 y2="{height:g}"/>')
    for i, (kind, (value, lower, upper)) in enumerate(rows):
        y = step * (i + 0.5)
        parts.append(
            f'<g class="{kind}"><line x1="{x(lower):.1f}" x2="{x(upper):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r=4 /></g>'
        )
    return "".join(parts) + "</svg>"


def curve(values: Sequence[float], label: str) -> str:
    """A line over its index, with the first and last value written beside it. Values that are not finite are gaps."""
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < 2:
        return f"<p>{escape(label)}: {len(finite)} value, no curve to draw.</p>"
    width, height, left, right, top = 640, 180, 8, 64, 14
    low, high = min(0.0, *finite), max(finite)
    span = (high - low) or 1.0

    def place(i: int, v: float) -> tuple[float, float]:
        x = left + i / (len(values) - 1) * (width - left - right)
        return x, top + (high - v) / span * (height - 2 * top - 10)

    pen, path = "M", []
    for i, v in enumerate(values):
        if math.isfinite(v):
            x, y = place(i, v)
            path.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L" if math.isfinite(v) else "M"
    y0 = place(0, low)[1]
    end = max(i for i, v in enumerate(values) if math.isfinite(v))
    x1, y1 = place(end, values[end])
    return (
        f'<svg class=curve viewBox="0 0 {width} {height}" role=img aria-label="{escape(label)}">'
        f'<line class=axis x1={left} x2={width - right} y1="{y0:.1f}" y2="{y0:.1f}"/>'
        f'<path d="{" ".join(path)}"/><circle cx="{x1:.1f}" cy="{y1:.1f}" r=4 />'
        f'<text x="{x1 + 8:.1f}" y="{y1 + 4:.1f}">{values[end]:.3g}</text>'
        f'<text class=dim x={left} y="{place(0, finite[0])[1] - 5:.1f}">{finite[0]:.3g}</text>'
        f'<text class=dim x={left} y="{height - 2}">1</text>'
        f'<text class=dim x={width - right} y="{height - 2}" text-anchor=end>{len(values)} {escape(label)}</text></svg>'
    )
