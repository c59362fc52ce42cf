"""Renders the templates of `templates/` (Jinja2, everything escaped), and draws the small pictures in them.

A page is self-contained: inline CSS and SVG, no script and no external file. It knows nothing of reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

WIDTH, HEIGHT, PAD = 220, 20, 6
"""Pixels of a picture of one interval, and its margin on both sides."""
Interval = tuple[float, float, float]
"""value, low, high."""


@cache
def _environment() -> Environment:
    loader = PackageLoader("afterword.evaluate.report", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _css() -> Markup:
    return Markup(_text("page.css") + report_css())


def _text(name: str) -> str:
    return resources.files("afterword.evaluate.report").joinpath("templates", name).read_text(encoding="utf-8")


def report_css() -> str:
    """The look of reports and heat maps, without that of the page around them."""
    return _text("report.css")


def render(template: str, /, **values: Any) -> Markup:
    """A template of `templates/` with these values, each escaped unless it is Markup."""
    return Markup(_environment().get_template(template).render(css=_css(), **values))


def page(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML already."""
    return str(render("page.html", title=title, body=Markup(body)))


def intervals(rows: Sequence[tuple[str, Interval]], low: float, high: float, zero: float | None, label: str) -> Markup:
    """Dots with whiskers on one scale.

    Args:
        rows: (CSS class, interval), one line each; ends that are not finite lie at the edge.
        low: Left end of the scale.
        high: Right end of the scale.
        zero: Where a dashed line stands, None for nowhere.
        label: Read to people who do not see the picture.
    """
    span = (high - low) or 1.0

    def x(value: float) -> str:
        clamped = min(max(value, low), high) if math.isfinite(value) else (high if value > 0 else low)
        return f"{PAD + (clamped - low) / span * (WIDTH - 2 * PAD):.1f}"

    height = HEIGHT if len(rows) == 1 else 13 * len(rows) + 2
    step = height / len(rows)
    dots = [
        {"kind": kind, "value": x(value), "low": x(lower), "high": x(upper), "y": f"{step * (i + 0.5):.1f}"}
        for i, (kind, (value, lower, upper)) in enumerate(rows)
    ]  # fmt: skip
    return render(
        "intervals.svg", width=WIDTH, height=height, left=PAD, right=WIDTH - PAD, floor=height - 1, label=label,
        dots=dots, zero=x(zero) if zero is not None and low <= zero <= high else None,
    )  # fmt: skip


def curve(values: Sequence[float], label: str) -> Markup:
    """A line over its index, with the first and last value written beside it. Values that are not finite are gaps."""
    finite = [(i, v) for i, v in enumerate(values) if math.isfinite(v)]
    if len(finite) < 2:
        return Markup("<p>{}: {} value, no curve to draw.</p>").format(label, len(finite))
    width, height, left, right, top = 640, 180, 8, 64, 14
    low, high = min(0.0, *(v for _, v in finite)), max(v for _, v in finite)
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
    end_x, end_y = place(*finite[-1])
    end = {"x": f"{end_x:.1f}", "y": f"{end_y:.1f}", "text_x": f"{end_x + 8:.1f}", "text_y": f"{end_y + 4:.1f}"}
    first = finite[0][1]
    return render(
        "curve.svg", width=width, height=height, left=left, right=width - right, floor=f"{place(0, low)[1]:.1f}",
        label=label, path=" ".join(path), number=len(values), end={**end, "value": f"{finite[-1][1]:.3g}"},
        first={"value": f"{first:.3g}", "y": f"{place(0, first)[1] - 5:.1f}"},
    )  # fmt: skip
