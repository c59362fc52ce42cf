"""Computes the results of the demo from the rows of the store and the answers of the gateway.

Owns the comparison of the trait before and after (shares with Wilson intervals, the exact sign test on the pairs) and
the content of `report.json`; never talks to a server and prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from afterword.cli.demo_control import Control
from afterword.cli.demo_processes import Meter
from afterword.records import (
    Candidate,
    Interaction,
    Json,
    Record,
    Release,
    Report,
    Skip,
    Verdict,
)
from afterword.simulate import CheckResult, Persona, ServedAnswer, SimulationSummary, TaskPrompt
from afterword.store import Store

R = TypeVar("R", bound=Record)

SIGNIFICANT = 0.05
"""The rise counts when chance alone would do as much less often than this (two-sided, on the pairs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFindings:
    """Everything a demo learned, from the store and through the gateway."""

    persona: Persona
    seed: int
    prompts: Sequence[TaskPrompt]
    before: Sequence[ServedAnswer]
    after: Sequence[ServedAnswer]
    summary: SimulationSummary
    candidate: Candidate
    report: Report
    verdict: Verdict
    release: Release | None
    interactions: dict[str, int]
    """Split -> interactions in the store."""
    skips: dict[str, int]
    """Reason -> skips in the store."""
    quick: bool = False
    """A smoke test of the loop, too small to measure learning."""
    control: Sequence[Control] = ()
    """Questions that have nothing to do with the wish."""

    @classmethod
    def of(
        cls, store: Store, persona: Persona, seed: int, prompts: Sequence[TaskPrompt], before: Sequence[ServedAnswer],
        after: Sequence[ServedAnswer], summary: SimulationSummary, *, quick: bool = False,
        control: Sequence[Control] = (),
    ) -> Self:  # fmt: skip
        """Read the rows that the cycle left."""
        return cls(
            persona=persona, seed=seed, prompts=prompts, before=before, after=after, summary=summary,
            candidate=_newest(store, Candidate), report=_newest(store, Report), verdict=_newest(store, Verdict),
            release=store.newest(Release),
            interactions=store.tally(Interaction, "split"), skips=store.tally(Skip, "reason"),
            quick=quick, control=control,
        )  # fmt: skip

    def marks(self, answers: Sequence[ServedAnswer]) -> list[CheckResult]:
        """The persona's mark of each answer."""
        return [self.persona.mark(a.text, p.text) for a, p in zip(answers, self.prompts, strict=True)]

    @property
    def pairs(self) -> tuple[int, int]:
        """Questions where only the answer after, and only the one before, shows the trait."""
        both = [(b.passed, a.passed) for b, a in zip(self.marks(self.before), self.marks(self.after), strict=True)]
        return both.count((False, True)), both.count((True, False))

    @property
    def chance(self) -> float:
        """Exact two-sided p of the pairs."""
        from afterword.evaluate.stats.statistics import sign_test

        return sign_test(*self.pairs)

    def measured(self, arm: str) -> list[CheckResult]:
        """Marks of the evaluation's own answers to first questions, by arm ("before", "after").

        "after" is the candidate, released or rejected.
        """
        first = (example for example in self.report.examples if example["messages"] == 1)
        return [self.persona.mark(example[arm], example["prompt"]) for example in first]

    @property
    def better(self) -> bool:
        """Released, and the trait rose by more than chance."""
        gained, lost = self.pairs
        return self.release is not None and gained > lost and self.chance < SIGNIFICANT


def _newest(store: Store, kind: type[R]) -> R:
    found = store.newest(kind)
    assert found is not None, f"a cycle that ended has left a {kind.__name__}"
    return found


def share(marks: Sequence[CheckResult]) -> Json | None:
    """{value, low, high, n}: the share of passed ones with Wilson's interval; None for no marks."""
    from afterword.evaluate.stats.statistics import wilson

    return wilson(sum(mark.passed for mark in marks), len(marks)) if marks else None


def report_data(found: DemoFindings, meter: Meter) -> Json:
    """The content of `report.json`."""
    before, after = found.marks(found.before), found.marks(found.after)
    gained, lost = found.pairs
    return {
        "quick": found.quick,
        "seed": found.seed,
        "persona": found.persona.name,
        "wants": found.persona.wants,
        "model": found.candidate.base,
        "better": found.better,
        "conclusion": conclusion(found),
        "before": share(before),
        "after": share(after),
        "pairs": {"gained": gained, "lost": lost, "p": found.chance},
        "candidate": {"before": share(found.measured("before")), "after": share(found.measured("after"))},
        "unrelated": _control(found.control),
        "grades": {"before": _mean(before), "after": _mean(after)},
        "answered_by": sorted({str(a.adapter) for a in found.after}),
        "interactions": len(found.candidate.interactions),
        "splits": found.interactions,
        "skips": found.skips,
        "simulation": found.summary.to_dict(),
        "recipe": found.candidate.recipe,
        "training": found.candidate.metrics,
        "holdout": found.report.suites.get("holdout"),
        "forgetting": found.report.suites.get("forgetting"),
        "collapse": found.report.suites.get("collapse"),
        "verdict": {
            "id": found.verdict.id,
            "passed": found.verdict.passed,
            "reasons": list(found.verdict.reasons),
            "override": found.verdict.override,
        },
        "release": found.release.to_dict() if found.release else None,
        "answers": _side_by_side(found),
        "seconds": meter.seconds,
        "stages": meter.stages,
        **meter.totals(),
    }


def _control(rows: Sequence[Control]) -> Json | None:
    """Shares of right answers to questions that have nothing to do with the wish; None where none were asked."""
    from afterword.evaluate.stats.statistics import wilson

    if not rows:
        return None
    sides = {side: wilson(sum(row.right(side) for row in rows), len(rows)) for side in ("before", "after")}
    return {**sides, "answers": [row.to_dict() for row in rows]}


def _mean(marks: Sequence[CheckResult]) -> float:
    return round(sum(mark.grade for mark in marks) / len(marks), 4)


def _side_by_side(found: DemoFindings) -> list[Json]:
    rows = zip(
        found.prompts, found.before, found.after, found.marks(found.before), found.marks(found.after), strict=True
    )
    return [
        {
            "prompt": p.text, "topic": p.topic, "before": b.text, "after": a.text,
            "grade_before": mb.grade, "grade_after": ma.grade, "adapter": a.adapter,
        }
        for p, b, a, mb, ma in rows
    ]  # fmt: skip


def conclusion(found: DemoFindings) -> str:
    """The result in one sentence."""
    before, after = share(found.marks(found.before)), share(found.marks(found.after))
    change = f"{percent(before)} before, {percent(after)} after"
    if found.quick:
        return (
            f"Quick demo: every stage ran, from the first answer to one by {_answerers(found)}. {_gate_said(found)} It "
            f"is too small to say whether learning helps ({change}, on {len(found.prompts)} questions); "
            "`afterword demo` measures that."
        )
    if found.release is None:
        would = f"{percent(share(found.measured('before')))} -> {percent(share(found.measured('after')))}"
        return (
            f"The gate said no and nothing was released: users are still answered as before ({change}). On the "
            f"evaluation's first questions the candidate went {would}."
        )
    if not found.better:
        gained, lost = found.pairs
        return (
            f"{found.release.adapter} was released, but the trait did not rise beyond chance on held-out questions: "
            f"{change}, {gained} gained and {lost} lost (p = {found.chance:.2g})."
        )
    asked = len(found.prompts)
    return f"{found.release.adapter} learned it: {change}, on {asked} questions about topics never talked about."


def _gate_said(found: DemoFindings) -> str:
    if found.verdict.passed:
        return "The gate said yes."
    return "The gate said no, and an override released the candidate so that the swap ran too."


def _answerers(found: DemoFindings) -> str:
    return ", ".join(sorted({str(answer.adapter) for answer in found.after}))


def percent(figure: Json | None) -> str:
    """A share and its interval, for people."""
    if figure is None:
        return "not measured"
    return f"{100 * figure['value']:.0f} % [{100 * figure['low']:.0f}, {100 * figure['high']:.0f}]"
