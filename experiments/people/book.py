"""Results on disk: one JSON row for each finished cell, a Markdown table and a picture made from them.

Owns that a cell which is done is not run again, intervals over seeds, and the drawing; knows no experiment.
"""

from __future__ import annotations

import html
import json
import math
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afterword.evaluate.statistics import mean

Row = dict[str, Any]
COLOURS = ("#1f5fa8", "#d95f02", "#1a7046", "#7b3294", "#8b6f00", "#c51b7d", "#4d4d4d", "#35978f", "#a8431a", "#5e3c99")


class Book:
    """The rows of one experiment in a file."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.jsonl"

    def rows(self) -> list[Row]:
        """All rows so far."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines() if line.strip()]

    def has(self, cell: Row) -> bool:
        """Is this cell done?"""
        return any(row["cell"] == cell for row in self.rows())

    def add(self, cell: Row, found: Row, seconds: float) -> None:
        """Append a finished cell."""
        row = {"cell": cell, "seconds": round(seconds, 1), "code": commit(), **found}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def write(self, ending: str, text: str) -> Path:
        """A file beside the rows."""
        path = self.path.with_suffix(ending)
        path.write_text(text, encoding="utf-8")
        return path


def commit() -> str:
    """The code that runs, for the rows."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Median of the seeds and the 95 % interval of their mean; (value, value, value) for one seed."""
    middle = statistics.median(values)
    if len(values) < 2:
        return middle, middle, middle
    shown = mean(list(values))
    return middle, shown["low"], shown["high"]


def percent(values: Sequence[float]) -> str:
    """`86 [80, 92]`, in per cent; without an interval for one seed."""
    middle, low, high = over_seeds(values)
    if len(values) < 2:
        return f"{100 * middle:.0f}"
    return f"{100 * middle:.0f} [{100 * max(0.0, low):.0f}, {100 * min(1.0, high):.0f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, head)) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def by(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows grouped by parts of their cell, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row["cell"].get(name) for name in names), []).append(row)
    return groups


Line = tuple[str, Sequence[tuple[float, Sequence[float]]]]
"""A name, and for each x the values of the seeds."""


def chart(lines: Sequence[Line], x_label: str, y_label: str = "per cent", marks: Sequence[float] = ()) -> str:
    """Medians over seeds as lines, intervals as bars; y from 0 to 1. `marks` are dashed levels."""
    wide, high, left, top, right = 720, 380, 52, 16, 190
    inner, tall = wide - left - right, high - top - 46
    xs = [x for _, points in lines for x, _ in points] or [0.0, 1.0]
    low, most = min(xs), max(max(xs), min(xs) + 1e-9)

    def at(x: float, y: float) -> tuple[float, float]:
        y = min(1.0, max(0.0, y))
        return left + (x - low) / (most - low) * inner, top + (1 - y) * tall

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
    ]
    for level in (0.0, 0.25, 0.5, 0.75, 1.0, *marks):
        x, y = at(low, level)
        dash = ' stroke-dasharray="5 4"' if level in marks else ""
        parts.append(f'<line x1="{x}" x2="{x + inner}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ccc"{dash}/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{100 * level:g}</text>')
    for x in sorted(set(xs)):
        px, py = at(x, 0.0)
        parts.append(f'<text x="{px:.1f}" y="{py + 18:.1f}" text-anchor="middle" fill="#555">{x:g}</text>')
    for i, (name, points) in enumerate(lines):
        parts += _line(name, points, COLOURS[i % len(COLOURS)], at, left + inner + 14, top + 10 + 17 * i)
    parts.append(f'<text x="{left + inner / 2}" y="{high - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    parts.append(f'<text x="{left - 44}" y="{top - 4}">{html.escape(y_label)}</text></svg>')
    return "\n".join(parts) + "\n"


def _line(name: str, points: Any, colour: str, at: Any, key_x: float, key_y: float) -> list[str]:
    found = [(x, *over_seeds(values)) for x, values in points if values]
    path = " ".join(
        f"{'M' if i == 0 else 'L'}{at(x, y)[0]:.1f} {at(x, y)[1]:.1f}" for i, (x, y, _, _) in enumerate(found)
    )
    parts = [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'] if found else []
    for x, y, low, high in found:
        px, py = at(x, y)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>')
        if high > low and math.isfinite(high - low):
            parts.append(
                f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{at(x, low)[1]:.1f}" y2="{at(x, high)[1]:.1f}" '
                f'stroke="{colour}" stroke-opacity=".5"/>'
            )
    parts.append(f'<rect x="{key_x}" y="{key_y - 9}" width="10" height="10" fill="{colour}"/>')
    return [*parts, f'<text x="{key_x + 15}" y="{key_y}">{html.escape(name)}</text>']
