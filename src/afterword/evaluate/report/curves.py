"""Draws success by episodes as an SVG file: one line for each named series, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from afterword.evaluate.report.pages import Interval, render
from afterword.records import Json

COLOURS = ("#1f5fa8", "#a8431a", "#1a7046", "#7a3e9d", "#b08900")
_LEFT, _RIGHT, _TOP, _FLOOR = 60, 620, 30, 310


def success_curve(title: str, series: Mapping[str, Sequence[tuple[int, Interval]]]) -> str:
    """Draw shares from 0 to 1 over numbers of episodes.

    Args:
        title: Above the picture.
        series: Name -> points (episodes trained on, (share, low, high)), by rising number of episodes.

    Returns:
        The SVG file's text.
    """
    most = max([at for points in series.values() for at, _ in points] + [1])

    def x(at: int) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * at / most, 1)

    def y(share: float) -> float:
        return round(_FLOOR - (_FLOOR - _TOP) * min(max(share, 0.0), 1.0), 1)

    lines: list[Json] = []
    for i, (name, points) in enumerate(series.items()):
        dots = [{"x": x(at), "y": y(v), "low": y(low), "high": y(high)} for at, (v, low, high) in points]
        path = " ".join(f"{dot['x']},{dot['y']}" for dot in dots)
        lines.append({"name": name, "colour": COLOURS[i % len(COLOURS)], "dots": dots, "path": path})
    return str(render(
        "success_curve.svg", title=title, lines=lines,
        ticks_x=[{"x": x(at), "label": at} for at in sorted({round(most * part / 4) for part in range(5)})],
        ticks_y=[{"y": y(part / 4), "label": f"{25 * part} %"} for part in range(5)],
    ))  # fmt: skip
