"""Renders the page of a candidate: verdict first, then every metric in pairs with intervals, then the answers.

Owns what the page shows and in which order; the look is in `templates/`, names and units are `afterword.metrics`'.
Everything from a user or a model is escaped; `Section.html` is the caller's own HTML and is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from afterword.evaluate.report.pages import Interval, curve, intervals, render
from afterword.metrics import (
    SUITES,
    UNITS,
    MetricRow,
    Unit,
    current,
    difference,
    ends_of,
    interval,
    number,
    read_reason,
    rows_of,
    spec_of,
)
from afterword.records import Candidate, Json, Report, Verdict

SHOWN = 4
"""Reasons, and answers of each list, that are shown open."""
FACTS: tuple[Unit, ...] = ("count", "p", "MiB")
"""Units of metrics that are told in a line instead of a picture."""
TILES = (("holdout", "hindsight_kl_drop"), ("forgetting", "drift"), ("forgetting", "loss_rise"))


@dataclass(frozen=True, slots=True)
class Section:
    """Something more for the page, for example a heat map."""

    title: str
    html: str
    """Trusted: made by the caller, who escapes what came from outside."""


def render_report(
    candidate: Candidate,
    report: Report,
    verdict: Verdict,
    *,
    losses: Sequence[float] = (),
    monitors: Mapping[str, Sequence[float]] | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """One self-contained HTML page.

    Args:
        candidate: Whose page it is.
        report: The report; reports of earlier versions are supported.
        verdict: The gate's decision.
        losses: Training loss by step.
        monitors: Name -> further training metrics, by step.
        sections: More for the page, before the suites.
    """
    values = _values(candidate, report, verdict, sections)
    return str(render(
        "report.html", title=f"Candidate {candidate.id}", heading="h1", examples=_examples(report),
        training=_training(losses, monitors or {}), **values,
    ))  # fmt: skip


def report_fragment(
    candidate: Candidate, report: Report, verdict: Verdict, *, sections: Sequence[Section] = (), most: int = 12
) -> Markup:
    """The same without a page around it, for a page with `pages.report_css`.

    Args:
        candidate: Whose report it is.
        report: What was measured.
        verdict: What the gate decided.
        sections: More, before the suites.
        most: Pairs of answers of each group.
    """
    examples = _examples(report)
    for group in examples["groups"] if examples else ():
        group["more"], group["found"] = max(len(group["found"]) - most, 0), group["found"][:most]
    values = _values(candidate, report, verdict, sections)
    return render("report_body.html", heading="h2", examples=examples, training=None, **values)


def _values(candidate: Candidate, report: Report, verdict: Verdict, sections: Sequence[Section]) -> Json:
    read = [read_reason(reason) for reason in verdict.reasons]
    return {
        "shown": SHOWN,
        "head": _head(candidate, report, verdict),
        "tiles": list(_tiles(report)),
        "refused": [text for holds, text in read if not holds],
        "held": [text for holds, text in read if holds],
        "changes": _changes(report),
        "sections": [{"title": section.title, "html": Markup(section.html)} for section in sections],
        "suites": [_suite(name, report.suites[name]) for name in sorted(report.suites, key=_place)],
        "own_examples": _own_examples(report),
        "provenance": _provenance(candidate, report, verdict),
    }


def _head(candidate: Candidate, report: Report, verdict: Verdict) -> Json:
    failed = sum(not read_reason(reason)[0] for reason in verdict.reasons)
    if verdict.passed:
        line = "Better on held-out interactions, and no worse beyond the stated margins anywhere else."
    else:
        line = f"{failed or 'Some'} of {len(verdict.reasons)} checks did not hold; what is served stays served."
    return {
        "when": datetime.fromtimestamp(report.created_at, UTC).strftime("%d %B %Y, %H:%M UTC"),
        "passed": verdict.passed,
        "line": line,
        "override": verdict.override and {key: verdict.override.get(key) for key in ("by", "why")},
        "candidate": candidate.id,
        "interactions": len(candidate.interactions),
        "against": report.against,
    }


def _tiles(report: Report) -> Iterator[Json]:
    """The numbers to look at first: the caller's programs before and after, then the target and two guards."""
    for row in rows_of("holdout", report.suites.get("holdout", {})):
        if row.paired and f"{row.spec.name}_before" in report.suites["holdout"]:
            before, (value, low, high) = ends_of(row.reference)[0], ends_of(row.candidate)
            yield {
                "number": f"{100 * before:.0f} % → {100 * value:.0f} %",
                "label": f"{row.spec.name}, before and after",
                "between": _minus(f"after: {_between(low, high, 'share')}, n = {row.candidate['n']}"),
            }
    for suite, name in TILES:
        spec, shown = spec_of(suite, name), current(report.suites.get(suite, {})).get(name)
        if shown is not None:
            value, low, high = ends_of(shown)
            yield {
                "number": _minus(number(value, spec.unit, signed=spec.difference, named=spec.unit == "percent")),
                "label": spec.label + ("" if spec.unit == "percent" else f", {UNITS[spec.unit].name}"),
                "between": _minus(_between(low, high, spec.unit)),
            }


def _between(low: float, high: float, unit: Unit) -> str:
    return f"{number(low, unit, named=False)} to {number(high, unit, named=False)}"


def _place(suite: str) -> int:
    """Suites in the order of their table, others after them: a stored report has lost its own order."""
    return list(SUITES).index(suite) if suite in SUITES else len(SUITES)


def _suite(name: str, values: Json) -> Json:
    known = name in SUITES
    shown: Json = {
        "title": name.replace("-", " ").capitalize(),
        "about": SUITES[name].about if known else "",
        "error": values.get("error"),
        "rows": [],
        "facts": [],
        "details": [],
    }
    for row in rows_of(name, values) if shown["error"] is None else ():
        if not row.paired and row.spec.unit in FACTS:
            shown["facts"].append(f"{row.spec.label}: {number(ends_of(row.value)[0], row.spec.unit)}")
        else:
            detail = known and not row.spec.direction and not row.spec.margins
            shown["details" if detail else "rows"].append(_line(row))
    return shown


def _line(row: MetricRow) -> Json:
    """A metric as a picture and its numbers: both arms on one scale, or the only value against no change."""
    unit = row.spec.unit
    if row.paired:
        unit = UNITS[unit].arms or unit
        arms = (("served", ends_of(row.reference)), ("candidate", ends_of(row.candidate)))
        low, high = (0.0, 1.0) if unit == "share" else _scale([ends for _, ends in arms])
        picture = intervals(
            arms, low, high, 0.0 if low < 0 < high else None, f"{row.spec.label}: {row.against} and candidate"
        )
        numbers = [{"kind": kind, **_text(ends, unit)} for kind, ends in arms]
        if row.against != "served":
            numbers[0]["value"] = f"{row.against}: {numbers[0]['value']}"
        told = None if row.value is None else _minus(difference(*ends_of(row.value), row.spec.unit))
        return {"label": row.spec.label, "picture": picture, "numbers": numbers, "difference": told}
    ends = ends_of(row.value if row.value is not None else row.candidate or row.reference)
    same = 1.0 if unit == "ratio" else 0.0
    low, high = _scale([ends, (same, same, same)])
    picture = intervals((("candidate", ends),), low, high, same, row.spec.label)
    number = {"kind": "", **_text(ends, unit, signed=row.spec.difference)}
    return {"label": row.spec.label, "picture": picture, "numbers": [number], "difference": None}


def _scale(found: Sequence[Interval]) -> tuple[float, float]:
    """A scale that holds all finite ends, with a little air."""
    ends = [end for each in found for end in each if math.isfinite(end)] or [0.0, 1.0]
    air = 0.06 * (max(ends) - min(ends)) or 0.5
    return min(ends) - air, max(ends) + air


def _text(ends: Interval, unit: Unit, *, signed: bool = False) -> Json:
    value, _, between = _minus(interval(*ends, unit, signed=signed)).partition(" [")
    return {"value": value, "between": f"[{between}" if between else ""}


def _minus(text: str) -> str:
    """With the sign that is as wide as a plus."""
    return text.replace("-", "\u2212")


def _examples(report: Report) -> Json | None:
    """Answers side by side, those that changed most first."""
    if not report.examples:
        return None
    changed = [(e.get("score_candidate", 0.0) - e.get("score_served", 0.0), e) for e in report.examples]
    changed.sort(key=lambda pair: -pair[0])
    better = [e for gain, e in changed if gain > 0 and e["before"] != e["after"]]
    worse = [e for gain, e in reversed(changed) if gain < 0 and e["before"] != e["after"]]
    groups = [
        {
            "title": f"Changed for the {title}",
            "found": [_example(one) for one in found],
            "number": len(found),
            "more": 0,
        }
        for title, found in (("better", better), ("worse", worse))
    ]
    return {"groups": groups, "same": len(changed) - len(better) - len(worse)}


def _example(example: Json) -> Json:
    sides = [
        {"side": side, "title": title, "text": example[side], "scores": _scores(example, arm)}
        for side, title, arm in (("before", "Served", "served"), ("after", "Candidate", "candidate"))
    ]
    return {"prompt": example["prompt"], "follow_up": example.get("follow_up"), "says": "", "sides": sides}


def _scores(example: Json, arm: str) -> list[str]:
    """The scores of one arm: the hindsight's, and whatever else a suite noted for it."""
    noted = {
        key.removesuffix(f"_{arm}"): value
        for key, value in current(example).items()
        if key.endswith(f"_{arm}") and value is not None
    }
    return [
        f"{spec_of('holdout', name).label} {_minus(number(float(value), spec_of('holdout', name).unit, named=False))}"
        for name, value in noted.items()
    ]


def _own_examples(report: Report) -> list[Json]:
    """Answers to a suite's own prompts that changed: what was lost or won there."""
    return [
        {
            "suite": suite,
            "found": [
                {**_example({**row, "follow_up": None}), "says": spec_of(suite, row["says"]).label} for row in rows
            ],
        }
        for suite, rows in report.about.get("changed", {}).items()
    ]


def _changes(report: Report) -> list[Json] | None:
    """What is beyond chance over all suites, corrected for how many metrics there are."""
    rows = report.about.get("changes")
    if rows is None:
        return None
    return [
        {
            "suite": row["suite"],
            "label": spec_of(row["suite"], row.get("metric") or row["figure"]).label,
            "p": f"{row['adjusted']:.2g}",
            "better": row["better"],
        }
        for row in rows
    ]


def _training(losses: Sequence[float], monitors: Mapping[str, Sequence[float]]) -> Json | None:
    if not losses:
        return None
    further = [{"name": name, "curve": curve(values, "steps")} for name, values in monitors.items()]
    return {"losses": curve(losses, "steps"), "monitors": further}


def _provenance(candidate: Candidate, report: Report, verdict: Verdict) -> list[tuple[str, Any]]:
    rows = {
        "candidate": candidate.id,
        "adapter": candidate.path,
        "content": report.about.get("adapter_hash"),
        "base": candidate.base,
        "parent": candidate.parent or "none",
        "recipe": candidate.recipe.get("name"),
        "report": report.id,
        "verdict": verdict.id,
        "sampling": report.about.get("sampling"),
        "seconds": report.about.get("seconds"),
    }
    return [(name, value) for name, value in rows.items() if value is not None]
