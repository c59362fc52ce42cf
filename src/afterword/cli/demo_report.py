"""Reports the results of the demo: on the terminal, as `report.html` and as `report.json`.

Owns words and layout, and which examples are shown; the figures come from `demo_findings`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.markup import escape
from rich.panel import Panel

from afterword.cli.context import CommandContext
from afterword.cli.demo_control import shown
from afterword.cli.demo_findings import DemoFindings, percent
from afterword.cli.report_view import show_heatmap
from afterword.records import Feedback, Interaction, Json, Skip, Turn
from afterword.store import Store
from afterword.store.files import write_whole

if TYPE_CHECKING:
    from afterword.evaluate.report.heatmap import Heatmap

SHOWN = 3
"""Answers side by side on the terminal."""
IN_A_FILE = 100
"""Columns that two answers side by side take where nobody knows the width."""


def measure_example(store: Store, found: DemoFindings) -> Heatmap | None:
    """The heat map of one complaint that was learned from, beside an off-topic message of the same user.

    Another complaint would be no control here: this user wants the same thing every time.
    """
    from afterword.evaluate.report.heatmap import ControlText, measure_heatmap, stored_row

    learned = (store.get(Interaction, identifier) for identifier in found.candidate.interactions)
    for interaction in learned:
        turn = store.get(Turn, interaction.turn)
        if interaction.kind == "follow_up" and interaction.polarity < 0 and len(turn.completion_ids or ()) >= 16:
            aside = next(store.rows(Skip, reason="off_topic"), None)
            text = (store.get(Feedback, aside.feedback).text if aside else None) or None
            measured = measure_heatmap(turn, interaction.hindsight, text, model=found.candidate.base)
            control = ControlText(text, aside.feedback) if text and aside else None
            store.write(stored_row(measured, interaction.id, control, found.candidate.base))
            return measured
    return None


def write_reports(
    found: DemoFindings, report: Json, heatmap: Heatmap | None, losses: Sequence[float], to: Path
) -> None:
    """`report.json` and `report.html` in the folder `to`."""
    text = json.dumps(report, indent=2, ensure_ascii=False)
    write_whole(to / "report.json", text + "\n")
    write_whole(to / "report.html", _page(found, report, heatmap, losses))


def _page(found: DemoFindings, report: Json, heatmap: Heatmap | None, losses: Sequence[float]) -> str:
    from afterword.evaluate.report.heatmap import heatmap_fragment
    from afterword.evaluate.report.report_html import Section, render_report

    sections = [Section("What the users get", _trait_html(report))]
    if heatmap is not None:
        sections.append(Section("What one complaint says about each token", heatmap_fragment(heatmap)))
    return render_report(found.candidate, found.report, found.verdict, losses=losses, sections=sections)


def _trait_html(report: Json) -> str:
    """The trait before and after, and the answers behind it."""
    from afterword.evaluate.report.pages import intervals, render

    sides = [(kind, report[side]) for kind, side in (("served", "before"), ("candidate", "after"))]
    rows = [(kind, (share["value"], share["low"], share["high"])) for kind, share in sides]
    telling = _telling(report["answers"])
    return render(
        "trait.html",
        report=report,
        picture=intervals(rows, 0.0, 1.0, None, "Share of held-out answers with the trait, before and after"),
        numbers=[{"kind": kind, "value": percent(share)} for kind, share in sides],
        shown=telling,
        rest=[row for row in report["answers"] if row not in telling],
        facts=report["unrelated"]
        and [
            {"kind": kind, "value": percent(report["unrelated"][side])}
            for kind, side in (("served", "before"), ("candidate", "after"))
        ],
        fact=report["unrelated"] and shown(report["unrelated"]["answers"]),
    )


def show(found: DemoFindings, report: Json, heatmap: Heatmap | None, context: CommandContext, directory: Path) -> None:
    """Print the changes for a person, on stdout."""
    out = context.out
    out.print()
    out.print(f"[bold {'green' if found.better else 'yellow'}]{escape(report['conclusion'])}[/]")
    out.print(f"[dim]the trait: {escape(found.persona.wants)}[/]\n")
    rows = [
        (f"shows the trait (of {report['before']['n']} held-out questions)", percent(report["before"]),
         percent(report["after"]), f"{report['pairs']['gained']} gained, {report['pairs']['lost']} lost"),
        ("mean grade", report["grades"]["before"], report["grades"]["after"], ""),
    ]  # fmt: skip
    if (facts := report["unrelated"]) is not None:
        label = f"answers a question that has nothing to do with it rightly (of {facts['before']['n']})"
        rows.append((label, percent(facts["before"]), percent(facts["after"]), ""))
    context.table("", ("", "before", "after", "pairs"), rows)
    out.print()
    _show_yield(found, report, context)
    for row in _telling(report["answers"]):
        grades = [f"{side} ({row[f'grade_{side}']:.2f})" for side in ("before", "after")]
        _show_pair(row["prompt"], row, grades, context)
    if facts is not None and (fact := shown(facts["answers"])) is not None:
        titles = [f"{side} ({'right' if fact[f'right_{side}'] else 'wrong'})" for side in ("before", "after")]
        _show_pair(f"{fact['question']} (nothing to do with the wish)", fact, titles, context)
    if heatmap is not None:
        show_heatmap(context, heatmap)
        out.print()
    word = "[green]yes[/]" if found.verdict.passed else "[red]no[/]"
    over = " (released by an override, which the verdict records)" if found.verdict.override else ""
    out.print(f"[bold]The gate says {word}[/]{over}")
    for reason in found.verdict.reasons:
        out.print(f"  {escape(reason)}")
    _show_cost(report, context)
    out.print(f"report: {directory / 'report.html'}, {directory / 'report.json'}")
    out.print(f"\nTry it: [bold]afterword serve --dir {escape(str(directory))}[/]")


def _show_yield(found: DemoFindings, report: Json, context: CommandContext) -> None:
    talk = report["simulation"]
    skipped = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in found.skips.items())
    held = found.interactions.get("holdout", 0)
    context.out.print(
        f"{talk['conversations']} conversations, {talk['turns']} answers; learned from {report['interactions']} "
        f"interactions, {held} held out" + (f", skipped: {skipped}" if skipped else "")
    )
    if talk["failed"]:
        context.out.print(f"[yellow]{talk['failed']} conversations broke off: {escape(talk['first_failure'])}[/]")
    context.out.print()


def _telling(rows: Sequence[Json]) -> list[Json]:
    """Pairs of different topics: a question that did not work first if there is one, then ones that changed most."""
    ordered = sorted(rows, key=lambda row: row["grade_before"] - row["grade_after"])
    picked: list[Json] = []
    for row in [*ordered[-1:], *ordered]:
        if row["topic"] not in {p["topic"] for p in picked}:
            picked.append(row)
    return picked[1:SHOWN] + picked[:1]


def _show_pair(question: str, row: Json, titles: Sequence[str], context: CommandContext) -> None:
    across = context.out.width if context.out.is_terminal else IN_A_FILE
    width = max(30, across // 2 - 2)
    panels = [
        Panel(escape(row[side]), title=title, width=width, border_style=colour)
        for side, title, colour in zip(("before", "after"), titles, ("dim", "green"), strict=True)
    ]
    context.out.print(f"[bold]{escape(question)}[/]")
    context.out.print(Columns(panels, padding=(0, 1)))


def _show_cost(report: Json, context: CommandContext) -> None:
    stages = ", ".join(f"{name} {spent['wall']:.0f} s" for name, spent in report["stages"].items())
    parts = [f"{report['seconds']:.0f} s ({stages})"]
    if report["cpu_seconds"] is not None:
        parts += [f"{report['cpu_seconds']:.0f} CPU s", f"{report['peak_memory_bytes'] / 2**30:.1f} GiB at most"]
    context.out.print("[dim]" + "; ".join(parts) + "[/]")
