"""A report and a verdict in the terminal: every figure with its interval, every reason with its numbers.

Owns the words and columns; the page of a report is `evaluate.report_html`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from afterword.cli.context import Context
from afterword.records import Json, Report, Verdict

if TYPE_CHECKING:
    from afterword.evaluate.report.heatmap import Heatmap

WIDE = range(100, 1000)
"""Columns of a terminal in which two maps stand side by side; more is no terminal."""


def show_figures(context: Context, report: Report) -> None:
    """Every suite's figures with their intervals; paired differences that are beyond chance (corrected) are marked."""
    sure = {
        (row["suite"], row["figure"]): "better" if row["better"] else "worse"
        for row in report.about.get("changes", ())
    }  # fmt: skip
    for suite, figures in report.suites.items():
        if "error" in figures:
            context.out.print(f"[red]{escape(suite)} failed: {escape(figures['error'])}[/]")
            continue
        seconds = report.about.get("seconds_by_suite", {}).get(suite)
        context.table(
            suite if seconds is None else f"{suite} ({seconds:.1f} s)",
            ("figure", "value", "95 % interval", "n", ""),
            [
                (name, f"{shown['value']:.4g}", _between(shown), shown["n"], sure.get((suite, name), ""))
                for name, shown in figures.items()
            ],
        )
        context.out.print()


def show_heatmap(context: Context, heatmap: Heatmap) -> None:
    """The heat map, with its control beside it where the terminal is wide enough, in the colours that it has."""
    from afterword.evaluate.report.heatmap import heatmap_terminal

    out = context.out
    beside = out.is_terminal and out.width in WIDE
    out.print(heatmap_terminal(heatmap, beside=beside, basic=out.color_system == "standard"), soft_wrap=not beside)


def _between(shown: Json) -> str:
    if shown["low"] == shown["value"] == shown["high"]:
        return ""
    return f"{shown['low']:.4g} to {shown['high']:.4g}"


def show_verdict(context: Context, verdict: Verdict, title: str = "verdict") -> None:
    """Pass or no, and why."""
    if not verdict.reasons:
        context.out.print(f"{title}: there was nothing to judge")
        return
    word = "[green]pass[/]" if verdict.passed else "[red]no[/]"
    context.out.print(f"{title} {word} on {verdict.candidate}")
    for reason in verdict.reasons:
        context.out.print(f"  {escape(reason)}")
