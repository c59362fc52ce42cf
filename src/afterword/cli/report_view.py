"""Prints a report and a verdict: every metric with unit and interval, every reason with its numbers.

Names and units are `afterword.metrics`'; the page of a report is `evaluate.report.report_html`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.metrics import UNITS, MetricRow, Unit, difference, ends_of, interval, rows_of, spec_of
from afterword.records import Json, Report, Verdict

if TYPE_CHECKING:
    from afterword.evaluate.report.heatmap import Heatmap

WIDE = range(100, 1000)
"""Columns of a terminal in which two maps stand side by side; more is no terminal."""


def show_metrics(context: CommandContext, report: Report) -> None:
    """Every suite's metrics with units and intervals; paired differences beyond chance (corrected) are marked."""
    sure = {
        (row["suite"], spec_of(row["suite"], row.get("metric") or row["figure"]).name): row["better"]
        for row in report.about.get("changes", ())
    }
    for suite, values in report.suites.items():
        if "error" in values:
            context.out.print(f"[red]{escape(suite)} failed: {escape(values['error'])}[/]")
            continue
        seconds = report.about.get("seconds_by_suite", {}).get(suite)
        context.table(
            suite if seconds is None else f"{suite} ({seconds:.1f} s)",
            ("metric", "served", "candidate", "difference or value", "n", ""),
            [_cells(row, sure.get((suite, row.spec.name))) for row in rows_of(suite, values)],
        )
        context.out.print()


def _cells(row: MetricRow, better: bool | None) -> tuple[str, ...]:
    """A line of the table; both arms where the report has them."""
    unit, arms = row.spec.unit, ("", "")
    if row.paired:
        level = UNITS[unit].arms or unit
        reference = _text(row.reference, level)
        arms = reference if row.against == "served" else f"{row.against}: {reference}", _text(row.candidate, level)
    shown = row.value if row.value is not None else None if row.paired else row.candidate or row.reference
    value = "" if shown is None else _text(shown, unit, difference if row.spec.difference else interval)
    n = next(each["n"] for each in (row.value, row.candidate, row.reference) if each is not None)
    return row.spec.label, *arms, value, str(n), {None: "", True: "better", False: "worse"}[better]


def _text(shown: Json, unit: Unit, write: Callable[[float, float, float, Unit], str] = interval) -> str:
    return write(*ends_of(shown), unit)


def show_heatmap(context: CommandContext, heatmap: Heatmap) -> None:
    """The heat map, with its control beside it where the terminal is wide enough, in the colours that it has."""
    from afterword.evaluate.report.heatmap import heatmap_terminal

    out = context.out
    beside = out.is_terminal and out.width in WIDE
    out.print(heatmap_terminal(heatmap, beside=beside, basic=out.color_system == "standard"), soft_wrap=not beside)


def show_verdict(context: CommandContext, verdict: Verdict, title: str = "verdict") -> None:
    """Pass or no, and why."""
    if not verdict.reasons:
        context.out.print(f"{title}: there was nothing to judge")
        return
    word = "[green]pass[/]" if verdict.passed else "[red]no[/]"
    context.out.print(f"{title} {word} on {verdict.candidate}")
    for reason in verdict.reasons:
        context.out.print(f"  {escape(reason)}")
