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

from afterword.evaluate.stats.statistics import LEVEL, t_quantile

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


CHANGED = "-changed"


def commit() -> str:
    """The code that runs, for the rows; with `CHANGED` at its end where the product or these experiments were edited
    since, "unknown" outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    head = git("rev-parse", "--short", "HEAD")
    edited = head and git("status", "--porcelain", "--", ":(top)src", ":(top)experiments/people/*.py")
    return f"{head}{CHANGED if edited else ''}" or "unknown"


def kept_by() -> str | None:
    """The commit under which cells may share what they measured; None while nobody can tell what runs."""
    code = commit()
    return None if code == "unknown" or code.endswith(CHANGED) else code


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Median of the seeds and the 95 % interval of their mean by Student's t; (value, value, value) for one seed.

    A bootstrap of three values never leaves them, and would be far too short.
    """
    middle, n = statistics.median(values), len(values)
    if n < 2:
        return middle, middle, middle
    centre = statistics.fmean(values)
    half = t_quantile(0.5 + LEVEL / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return middle, centre - half, centre + half


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
    right = 40 + 7 * max((len(name) for name, _ in lines), default=0)
    wide, high = 530 + right, max(380, 60 + 17 * len(lines))
    return _page(wide, high, _plot(lines, x_label, y_label, marks, (0, 0, 530, 380)) + _key(lines, 544, 26))


def panels(charts: Sequence[tuple[str, Sequence[Line], Sequence[float]]], x_label: str, y_label: str) -> str:
    """Small charts side by side, each with its title and dashed levels; a name has the same colour in all of them."""
    names = list(dict.fromkeys(name for _, lines, _ in charts for name, _ in lines))
    across, wide, high = min(3, len(charts)), 310, 250
    parts = []
    for i, (title, lines, marks) in enumerate(charts):
        x, y = i % across * wide, 28 + i // across * (high + 26)
        parts.append(f'<text x="{x + 52}" y="{y - 12}" font-weight="bold">{html.escape(title)}</text>')
        placed = dict(lines)
        every = [(name, placed.get(name, [])) for name in names]
        parts += _plot(every, x_label, y_label if i % across == 0 else "", marks, (x, y, wide, high))
    bottom = 28 + math.ceil(len(charts) / across) * (high + 26)
    key = _key([(name, []) for name in names], 52, bottom + 10)
    return _page(across * wide + 10, bottom + 17 * len(names) + 10, parts + key)


def bars(groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[float]]]]], x_label: str, mark: float) -> str:
    """For each group a title and a bar for each name: the median over seeds and its interval; x from 0 to 1."""
    left, inner, step = 20 + 7 * max((len(name) for _, some in groups for name, _ in some), default=0), 420, 20
    parts, y = [], 16

    def at(x: float) -> float:
        return round(left + min(1.0, max(0.0, x)) * inner, 1)

    for title, some in groups:
        parts.append(f'<text x="{left}" y="{y}" font-weight="bold">{html.escape(title)}</text>')
        y += 10
        for i, (name, values) in enumerate(some):
            middle, low, high = over_seeds(values)
            row, colour = y + step * i, COLOURS[i % len(COLOURS)]
            low, high = max(0.0, low), min(1.0, high)
            shown = percent(values)
            parts += [
                f'<text x="{left - 8}" y="{row + 12}" text-anchor="end">{html.escape(name)}</text>',
                f'<rect x="{left}" y="{row + 2}" width="{at(middle) - left:.1f}" height="13" fill="{colour}"/>',
                f'<line x1="{at(low)}" x2="{at(high)}" y1="{row + 8}" y2="{row + 8}" stroke="black"/>',
                f'<text x="{at(max(middle, high)) + 6:.1f}" y="{row + 12}" fill="#555">{shown}</text>',
            ]
        bottom = y + step * len(some)
        parts.append(
            f'<line x1="{at(mark)}" x2="{at(mark)}" y1="{y}" y2="{bottom}" stroke="#777" stroke-dasharray="5 4"/>'
        )
        y = bottom + 26
    parts.append(f'<text x="{left + inner / 2}" y="{y}" text-anchor="middle">{html.escape(x_label)}</text>')
    return _page(left + inner + 100, y + 12, parts)


def _page(wide: int, high: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{wide}" height="{high}" fill="white"/>', *parts, "</svg>"]) + "\n"


def _key(lines: Sequence[Line], x: int, y: int) -> list[str]:
    parts = []
    for i, (name, _) in enumerate(lines):
        parts.append(f'<rect x="{x}" y="{y + 17 * i - 9}" width="10" height="10" fill="{COLOURS[i % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 15}" y="{y + 17 * i}">{html.escape(name)}</text>')
    return parts


def _plot(
    lines: Sequence[Line], x_label: str, y_label: str, marks: Sequence[float], place: tuple[int, int, int, int]
) -> list[str]:
    """Axes and lines in the rectangle `place` (x, y, width, height)."""
    left, top, inner, tall = place[0] + 52, place[1] + 24, place[2] - 62, place[3] - 70
    xs = [x for _, points in lines for x, _ in points] or [0.0, 1.0]
    low, most = min(xs), max(max(xs), min(xs) + 1e-9)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - low) / (most - low) * inner, top + (1 - min(1.0, max(0.0, y))) * tall

    parts = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0, *marks):
        x, y = at(low, level)
        colour = '#777" stroke-dasharray="5 4' if level in marks else "#ccc"
        parts.append(f'<line x1="{x}" x2="{x + inner}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"/>')
        if level not in marks:
            parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{100 * level:g}</text>')
    for x in _apart(sorted(set(xs)), (most - low) * 28 / inner):
        px, py = at(x, 0.0)
        parts.append(f'<text x="{px:.1f}" y="{py + 18:.1f}" text-anchor="middle" fill="#555">{x:g}</text>')
    for i, (_, points) in enumerate(lines):
        parts += _line(points, COLOURS[i % len(COLOURS)], at)
    parts.append(
        f'<text x="{left + inner / 2}" y="{top + tall + 38}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    return [*parts, f'<text x="{left - 44}" y="{top - 11}" fill="#555">{html.escape(y_label)}</text>']


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Those of `values` that are at least so far from the one before, and the last."""
    found: list[float] = []
    for value in reversed(values):
        if not found or found[-1] - value >= least:
            found.append(value)
    return found


def _line(points: Any, colour: str, at: Any) -> list[str]:
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
    return parts
