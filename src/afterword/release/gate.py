"""Decides on a report: every margin of `afterword.metrics` becomes one sentence with its numbers. Pure.

Owns the thresholds and the rule; never measures, reads a file or writes a row. A required suite that is missing or
failed is a "no".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Any

from afterword.config import Finite, check_section
from afterword.errors import UsageError
from afterword.metrics import SUITES, Margin, MetricSpec, current, difference, interval, margins, requirement
from afterword.records import Report, Verdict, content_hash, new_id

REQUIRED = tuple(suite.name for suite in SUITES.values() if suite.required)


class _Checked:
    def __post_init__(self) -> None:
        check_section("gate", self)


_FIELDS: list[Any] = [
    ("required", tuple[str, ...], field(default=REQUIRED)),
    *((m.setting, int if isinstance(m.limit, int) else Finite, field(default=m.limit)) for _, _, m in margins()),
]
_Fields: Any = make_dataclass("_Fields", _FIELDS, bases=(_Checked,), frozen=True, kw_only=True)


class GateThresholds(_Fields):  # type: ignore[misc]
    """`[gate]`: the suites that are `required`, and one limit for each margin of `afterword.metrics`.

    Shares are 0 .. 1; docs/gate.md lists every key with its default and the reason for it.

    Raises:
        ConfigError: A limit is not finite.
    """


@dataclass(frozen=True, slots=True)
class AppliedMargin:
    """One margin of one metric, with the limit that the thresholds set."""

    suite: str
    metric: MetricSpec
    margin: Margin
    limit: float

    def holds(self, number: float) -> bool:
        """Whether the end of the interval that the margin is about lies on the right side of the limit."""
        if self.margin.side == "above":
            return number > self.limit
        return number >= self.limit if self.margin.side == "at least" else number <= self.limit


def bounds(thresholds: GateThresholds) -> tuple[AppliedMargin, ...]:
    """Every margin with its limit, in the order of the table."""
    return tuple(
        AppliedMargin(suite.name, metric, margin, getattr(thresholds, margin.setting))
        for suite, metric, margin in margins()
    )


def decide(report: Report, thresholds: GateThresholds | None = None) -> Verdict:
    """Judge a report.

    Args:
        report: The report; metrics under names of earlier versions are read too.
        thresholds: `[gate]`; the defaults without it.

    Returns:
        A verdict that passes only when every margin holds and nothing required is missing. Its reasons are sentences
        that end with ": ok" or ": no", those with "no" first.
    """
    limits = thresholds or GateThresholds()
    findings = [*_missing(report, limits), *_judged(report, limits)]
    passed = bool(findings) and all(ok for ok, _ in findings)
    ordered = sorted(findings, key=lambda finding: finding[0])
    reasons = tuple(f"{sentence}: {'ok' if ok else 'no'}" for ok, sentence in ordered)
    identity = content_hash(report.id, passed, reasons)
    return Verdict(id=f"ver-{identity}", candidate=report.candidate, report=report.id, passed=passed, reasons=reasons)


def undecided(report: Report, thresholds: GateThresholds | None = None) -> bool:
    """Whether more held-out interactions alone could turn the "no" of a report into a "yes".

    So it is when every line that does not hold is of `holdout`, and the measured value itself lies on its right side,
    or the line is about the number of interactions or conversations.
    """
    limits = thresholds or GateThresholds()
    if any(True for _ in _missing(report, limits)):
        return False
    failed = 0
    for bound in bounds(limits):
        values = report.suites.get(bound.suite)
        if values is None or all(ok for ok, _ in _judge(bound, current(values), report)):
            continue
        failed += 1
        shown: Any = current(values).get(bound.metric.name)
        value = shown.get("value") if isinstance(shown, dict) else None
        if bound.suite != "holdout" or not isinstance(value, int | float):
            return False
        if bound.metric.unit != "count" and not bound.holds(float(value)):
            return False
    return failed > 0


def overridden(verdict: Verdict, *, by: str, why: str) -> Verdict:
    """A new verdict by which a person lets a refused candidate through; name and reason are recorded.

    Raises:
        UsageError: When the name or the reason is empty.
    """
    if not by.strip() or not why.strip():
        raise UsageError(f"an override needs a name and a reason, got by={by!r}, why={why!r}", param="override")
    return replace(verdict, id=new_id("ver"), override={"by": by.strip(), "why": why.strip(), "verdict": verdict.id})


def _missing(report: Report, limits: GateThresholds) -> Iterator[tuple[bool, str]]:
    for suite in limits.required:
        if suite not in report.suites:
            yield False, f"Suite {suite}: required and missing"
    for suite, values in report.suites.items():
        if "error" in values:
            yield False, f"Suite {suite}: failed ({values['error']})"


def _judged(report: Report, limits: GateThresholds) -> Iterator[tuple[bool, str]]:
    for bound in bounds(limits):
        values = report.suites.get(bound.suite)
        if values is not None and "error" not in values:
            yield from _judge(bound, current(values), report)


def _judge(bound: AppliedMargin, values: dict[str, Any], report: Report) -> Iterator[tuple[bool, str]]:
    spec, margin = bound.metric, bound.margin
    shown: Any = values.get(spec.name)
    if shown is None and not spec.required:
        return
    try:
        ends = {end: float(shown[end]) for end in ("value", "low", "high")}
        n = int(shown["n"])
    except (TypeError, KeyError, ValueError):
        state = "missing" if shown is None else f"invalid ({shown!r:.80})"
        yield False, f"{spec.label}: {bound.suite}.{spec.name} is {state} in the report, evaluate again"
        return
    number = ends[margin.end]
    ok = math.isfinite(number) and bound.holds(number)
    need = requirement(spec, margin, bound.limit, ends["value"])
    yield (
        ok,
        f"{spec.label}: {_measured(spec, ends, n)}, {need}{'' if ok else _hint(bound, ends['value'], values, report)}",
    )


def _measured(spec: MetricSpec, ends: dict[str, float], n: int) -> str:
    text = (difference if spec.difference else interval)(ends["value"], ends["low"], ends["high"], spec.unit)
    return text if spec.unit == "count" and ends["value"] == n else f"{text} (n = {n})"


def _hint(bound: AppliedMargin, value: float, values: dict[str, Any], report: Report) -> str:
    """How many interactions would show a gain that is there but does not stand out yet; why a judge decided nothing."""
    whys: dict[str, Any] = report.about.get("judge_undecided") or {}
    if bound.margin.setting == "max_judge_failed" and whys:
        why, number = max(whys.items(), key=lambda item: item[1])
        return f" (most often, {number} times: {why})"
    if bound.margin.side != "above" or value <= bound.limit:
        return ""
    try:
        needed = float(values["needed"]["value"])
    except (TypeError, KeyError, ValueError):
        return ""
    return f" ({needed:.0f} interactions show a true gain of this size four times out of five)"
