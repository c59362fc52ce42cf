"""The page of a candidate: verdict first, then what was measured, in pairs and with intervals, then the answers.

Owns the order and the words of the page; the look is `html`'s, the numbers are the report's. Everything that came
from a user or a model is escaped; `Section.html` is the caller's own HTML and is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from afterword.evaluate.report.html import Interval, curve, escape, intervals, page
from afterword.evaluate.report.labels import ABOUT, ROWS, Row, label_of
from afterword.records import Candidate, Json, Report, Verdict

SHOWN = 4
"""Answers that are shown open in each of the two lists."""


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
    """One self-contained HTML page. `losses` is the training loss by step, `monitors` whatever else was
    watched, by its name."""
    body = [
        _head(candidate, report, verdict),
        _tiles(report),
        _reasons(verdict),
        _changes(report),
        *(f"<h2>{escape(section.title)}</h2>{section.html}" for section in sections),
        *(_suite(name, report.suites[name]) for name in sorted(report.suites, key=_place)),
        _examples(report),
        _own_examples(report),
        _training(losses, monitors or {}),
        _meta(candidate, report, verdict),
    ]
    return page(f"Candidate {candidate.id}", "\n".join(part for part in body if part))


def _head(candidate: Candidate, report: Report, verdict: Verdict) -> str:
    when = datetime.fromtimestamp(report.created_at, UTC).strftime("%d %B %Y, %H:%M UTC")
    against = f"<code>{escape(report.against)}</code>" if report.against else "the base model"
    failed = sum(_is_failure(reason) for reason in verdict.reasons)
    title = "The gate says yes" if verdict.passed else "The gate says no"
    if verdict.passed:
        line = "Better on held-out interactions, and no worse beyond the stated margins anywhere else."
    else:
        line = f"{failed or 'Some'} of {len(verdict.reasons)} checks did not hold; what is served stays served."
    if verdict.override:
        line += f" Overridden by {escape(verdict.override.get('by'))}: {escape(verdict.override.get('why'))}."
    return (
        f"<p class=kicker>Afterword · {when}</p><header class='verdict {'yes' if verdict.passed else 'no'}'>"
        f"<h1>{title}</h1><p>{line}</p><small>Candidate <code>{escape(candidate.id)}</code>, "
        f"{len(candidate.interactions)} interactions, against {against}</small></header>"
    )


def _is_failure(reason: str) -> bool:
    """Every reason of the gate begins with "ok: " or "no: "."""
    return reason.startswith("no: ")


def _tiles(report: Report) -> str:
    holdout, forgetting = report.suites.get("holdout", {}), report.suites.get("forgetting", {})
    tiles = [
        _tile(figures[f"{name}_before"], figures[f"{name}_after"], name)
        for figures in (holdout,) for name in _checks(figures)
    ]  # fmt: skip
    for figures, key, style, says in (
        (holdout, "need_drop", "change", "less correction needed, nats a token"),
        (forgetting, "drift", "number", "drift from the base, nats a token"),
        (forgetting, "loss_rise", "percent", "loss rise on general text"),
    ):
        if key in figures:
            value, low, high = _interval(figures[key])
            between = f"{_number(low, style)} to {_number(high, style)}"
            tiles.append(f"<div class=tile><b>{_number(value, style)}</b><small>{says}<br>{between}</small></div>")
    return f"<div class=tiles>{''.join(tiles)}</div>" if tiles else ""


def _tile(before: Json, after: Json, name: str) -> str:
    _, low, high = _interval(after)
    shown = f"{_number(before['value'], 'share')} → {_number(after['value'], 'share')}"
    between = f"after: {_number(low, 'share')} to {_number(high, 'share')}, n = {after['n']}"
    return f"<div class=tile><b>{shown}</b><small>{escape(name)}, before and after<br>{between}</small></div>"


def _reasons(verdict: Verdict) -> str:
    refused = [reason for reason in verdict.reasons if _is_failure(reason)]
    held = [reason for reason in verdict.reasons if not _is_failure(reason)]
    first = _list(refused, "no") if refused else _list(held[:SHOWN], "yes")
    rest = held if refused else held[SHOWN:]
    says = f"{len(rest)} checks that hold" if refused else f"{len(rest)} more checks that hold"
    more = f"<details><summary>{says}</summary>{_list(rest, 'yes')}</details>" if rest else ""
    return f"<h2>Why</h2>{first}{more}"


def _list(reasons: Sequence[str], kind: str) -> str:
    items = "".join(f"<li class={kind}>{escape(reason[4:])}</li>" for reason in reasons)
    return f"<ul class=reasons>{items}</ul>"


def _place(suite: str) -> int:
    """Suites in the order of their table, others after them: a report that was stored has forgotten its own."""
    return list(ROWS).index(suite) if suite in ROWS else len(ROWS)


def _checks(figures: Json) -> list[str]:
    """Names of the caller's programs: they have a figure before, after, and for the difference."""
    names = [key.removesuffix("_before") for key in figures if key.endswith("_before")]
    return [name for name in names if f"{name}_after" in figures]


def _suite(name: str, figures: Json) -> str:
    title = f"<h2>{escape(name.replace('-', ' ').capitalize())}</h2><p class=dim>{escape(ABOUT.get(name, ''))}</p>"
    if "error" in figures:
        return f"{title}<p class=error>Failed: {escape(figures['error'])}</p>"
    rows = list(_lines(name, figures))
    key = "<p class='key dim'><span class=served>served</span><span class=candidate>candidate</span></p>"
    return f"{title}{key}<div class=rows>{''.join(rows)}</div>{_wins(figures)}"


def _lines(name: str, figures: Json) -> Iterator[str]:
    for check in _checks(figures):
        yield _pair(f"{check} (decided by a program)", figures[f"{check}_before"], figures[f"{check}_after"], "share")
    known = ROWS.get(name) or tuple(Row(key, key.replace("_", " ")) for key in figures)
    for row in known:
        if f"{row.key}_served" in figures and f"{row.key}_candidate" in figures:
            pair = figures[f"{row.key}_served"], figures[f"{row.key}_candidate"]
            yield _pair(row.label, *pair, row.style, figures.get(row.key))
        elif f"{row.key}_served" in figures and row.key in figures:
            yield _pair(row.label, figures[f"{row.key}_served"], figures[row.key], row.style)
        elif row.key in figures:
            yield _single(row.label, figures[row.key], row.style)


def _pair(label: str, served: Json, candidate: Json, style: str, difference: Json | None = None) -> str:
    """Both arms on one scale; `difference` is the paired one, which is what the gate looks at."""
    rows = (("served", _interval(served)), ("candidate", _interval(candidate)))
    low, high = (0.0, 1.0) if style == "share" else _range([interval for _, interval in rows])
    picture = intervals(rows, low, high, 0.0 if low < 0 < high else None, f"{label}: served and candidate")
    numbers = "".join(f"<span class={kind}>{_with_interval(interval, style)}</span>" for kind, interval in rows)
    if difference is not None:
        signed = "percent" if style == "share" else "change"
        numbers += f"<small>difference {_with_interval(_interval(difference), signed)}</small>"
    return f"<div class=name>{escape(label)}</div><div>{picture}</div><div class=num>{numbers}</div>"


def _single(label: str, figure: Json, style: str) -> str:
    interval = _interval(figure)
    zero = 1.0 if style == "ratio" else 0.0
    low, high = _range([interval, (zero, zero, zero)])
    picture = intervals((("candidate", interval),), low, high, zero, label)
    text = _with_interval(interval, style)
    return f"<div class=name>{escape(label)}</div><div>{picture}</div><div class=num><span>{text}</span></div>"


def _range(found: Sequence[Interval]) -> tuple[float, float]:
    """A scale that holds all finite ends, with a little air."""
    ends = [end for interval in found for end in interval if math.isfinite(end)] or [0.0, 1.0]
    air = 0.06 * (max(ends) - min(ends)) or 0.5
    return min(ends) - air, max(ends) + air


def _interval(figure: Any) -> Interval:
    """(value, low, high); an end that is not known (null in JSON) is infinite."""
    value, low, high = (figure.get(key) for key in ("value", "low", "high"))
    return (
        math.nan if value is None else float(value),
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
    )


def _with_interval(interval: Interval, style: str) -> str:
    value, low, high = interval
    if low == value == high:
        return _number(value, style)
    return f"{_number(value, style)} <small>[{_number(low, style)}, {_number(high, style)}]</small>"


def _number(value: float, style: str) -> str:
    if not math.isfinite(value):
        return "unknown"
    if style == "share":
        return f"{100 * value:.0f} %"
    if style == "percent":
        return f"{100 * value:+.1f} %".replace("-", "−")
    return (f"{value:+.3f}" if style == "change" else f"{value:.3f}").replace("-", "−")


def _wins(figures: Json) -> str:
    if "wins" not in figures or "losses" not in figures:
        return ""
    wins, losses = int(figures["wins"]["value"]), int(figures["losses"]["value"])
    p = figures["sign_p"]["value"]
    return (
        f"<p class=dim>Better on {wins}, worse on {losses} of {figures['wins']['n']} (exact sign test p = {p:.2g}).</p>"
    )


def _examples(report: Report) -> str:
    if not report.examples:
        return ""
    changed = [(e.get("score_candidate", 0.0) - e.get("score_served", 0.0), e) for e in report.examples]
    changed.sort(key=lambda pair: -pair[0])
    better = [e for gain, e in changed if gain > 0 and e["before"] != e["after"]]
    worse = [e for gain, e in reversed(changed) if gain < 0 and e["before"] != e["after"]]
    same = len(changed) - len(better) - len(worse)
    parts = ["<h2>Answers side by side</h2>"]
    for title, found in (("Changed for the better", better), ("Changed for the worse", worse)):
        parts.append(f"<h3>{title}: {len(found)}</h3>")
        parts += [_example(example) for example in found[:SHOWN]]
        if found[SHOWN:]:
            rest = "".join(_example(example) for example in found[SHOWN:])
            parts.append(f"<details><summary>{len(found) - SHOWN} more</summary>{rest}</details>")
    return "".join(parts) + (f"<p class=dim>{same} did not change or were not scored.</p>" if same else "")


def _example(example: Json) -> str:
    said = example["follow_up"]
    follow_up = f"<p class=dim>The user wrote next: <q>{escape(said)}</q></p>" if said else ""
    sides = "".join(
        f"<div class={side}><small>{title}{_score(example, arm)}</small>"
        f"<p class=text>{escape(example[side]) or '<i>(empty)</i>'}</p></div>"
        for side, title, arm in (("before", "Served", "served"), ("after", "Candidate", "candidate"))
    )
    asked = f"<div class=ask>{escape(example['prompt'])}</div>"
    return f"<div class=example>{asked}{follow_up}<div class=sides>{sides}</div></div>"


def _score(example: Json, arm: str) -> str:
    """The scores of one arm: the hindsight's, and whatever else a suite noted for it."""
    noted = {k.removesuffix(f"_{arm}"): v for k, v in example.items() if k.endswith(f"_{arm}") and v is not None}
    return "".join(f" · {escape(name)} {_number(float(value), 'number')}" for name, value in noted.items())


def _own_examples(report: Report) -> str:
    """Answers to a suite's own prompts that changed: what was lost or won there."""
    parts = []
    for suite, rows in report.about.get("changed", {}).items():
        shown = "".join(
            f"<div class=example><div class=ask>{escape(row['prompt'])}</div><p class=dim>{escape(row['says'])}</p>"
            "<div class=sides>"
            + "".join(
                f"<div class={side}><small>{title}</small><p class=text>{escape(row[side]) or '(empty)'}</p></div>"
                for side, title in (("before", "Served"), ("after", "Candidate"))
            )
            + "</div></div>"
            for row in rows
        )
        parts.append(f"<details><summary>{escape(suite)}: {len(rows)} answers changed sides</summary>{shown}</details>")
    return f"<h3>Answers to the suites' own prompts</h3>{''.join(parts)}" if parts else ""


def _changes(report: Report) -> str:
    """What is beyond chance over all suites, corrected for how many figures there are."""
    rows = report.about.get("changes")
    if rows is None:
        return ""
    said = [
        f"{escape(row['suite'])}: {escape(label_of(row['suite'], row['figure']))} "
        f"(p = {row['adjusted']:.2g}), <b>{'better' if row['better'] else 'worse'}</b>"
        for row in rows
    ]
    body = "; ".join(said) if said else "none"
    return f"<p class=dim>Changed beyond chance, corrected for all figures together (Holm): {body}.</p>"


def _training(losses: Sequence[float], monitors: Mapping[str, Sequence[float]]) -> str:
    if not losses:
        return ""
    further = "".join(
        f"<figure><figcaption class=dim>{escape(name)}</figcaption>{curve(values, 'steps')}</figure>"
        for name, values in monitors.items()
    )
    more = f"<h3>What was watched</h3><div class=monitors>{further}</div>" if further else ""
    return f"<h2>Training</h2><p class=dim>Loss at each step.</p>{curve(losses, 'steps')}{more}"


def _meta(candidate: Candidate, report: Report, verdict: Verdict) -> str:
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
    cells = "".join(f"<tr><td>{k}</td><td><code>{escape(v)}</code></td></tr>" for k, v in rows.items() if v is not None)
    return f"<h2>Provenance</h2><table class=meta>{cells}</table>"
