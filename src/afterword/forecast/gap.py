"""Measures the gap between a student and its self-teacher under several contexts, at learning rate zero.

gap = mean score of the teacher's answers minus that of the student's, drawn anew ("none"). A context that is shown for
failures alone is compared with the same failures drawn again, so chance recovery (regression to the mean) is in
neither. Intervals come from a bootstrap over prompts. After arXiv 2605.30070.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import stdev
from typing import Protocol

from afterword.errors import NothingToDo
from afterword.evaluate.stats.power import detectable, interactions_needed
from afterword.evaluate.stats.statistics import mean, paired_share
from afterword.forecast.contexts import TeacherContext
from afterword.forecast.points import Scale
from afterword.forecast.predict import MeasuredGap
from afterword.forecast.student import Asked, Student, context_recipe
from afterword.forecast.tasks import RIGHT, TaskItem, VerifiableTask
from afterword.learn.parts.contexts import others
from afterword.model.generation.drawing import DrawnAnswer
from afterword.records import Json
from afterword.train.data.examples import Example

Z = 1.959964
Advance = Callable[[int, int | None, str], None]


@dataclass(frozen=True, slots=True)
class Shown:
    """The teacher's privileged text about one answer; empty without one."""

    text: str
    kind: str = ""
    polarity: int = -1


NOTHING = Shown("")


class GapSource(Protocol):
    """Prompts, scores of answers to them, and the teacher's privileged texts."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def unit(self) -> Scale:
        """Of the scores."""

    @property
    def asked(self) -> Sequence[Asked]:
        """The prompts."""

    @property
    def clusters(self) -> Sequence[str]:
        """Conversation or user of each prompt."""

    @property
    def slices(self) -> Sequence[str]:
        """Slice of each prompt."""

    @property
    def longest(self) -> int:
        """Length bound of an answer."""

    def first(self) -> list[DrawnAnswer] | None:
        """The student's first answers where they exist already; None draws them."""

    def scores(
        self, student: Student, picked: Sequence[int], answers: Sequence[DrawnAnswer], texts: Sequence[str]
    ) -> list[float]:
        """Score of an answer to each of the prompts `picked`."""

    def shows(self, context: TeacherContext, place: int, text: str, peer: str | None) -> Shown:
        """The privileged text of the context about an answer to the prompt at `place`."""

    def example(self, student: Student, place: int, answer: DrawnAnswer, shown: Shown) -> Example:
        """The training example: an answer to the prompt at `place` with the privileged text about it."""

    def solved(self, score: float) -> bool:
        """True for the score of a right answer, which may be shown as a peer's."""


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Prompts of a verifiable task."""

    task: VerifiableTask
    items: Sequence[TaskItem]
    unit: Scale = "share"

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def asked(self) -> list[Asked]:
        """The prompts."""
        return [Asked(item.id, item.messages) for item in self.items]

    @property
    def clusters(self) -> list[str]:
        """Every prompt stands for itself."""
        return [item.id for item in self.items]

    @property
    def slices(self) -> list[str]:
        """One slice."""
        return [self.task.name] * len(self.items)

    @property
    def longest(self) -> int:
        """The task's length bound."""
        return self.task.max_tokens

    def first(self) -> list[DrawnAnswer] | None:
        """None exist."""
        return None

    def scores(
        self, student: Student, picked: Sequence[int], answers: Sequence[DrawnAnswer], texts: Sequence[str]
    ) -> list[float]:
        """The checker's marks."""
        return [self.task.score(self.items[i], text) for i, text in zip(picked, texts, strict=True)]

    def shows(self, context: TeacherContext, place: int, text: str, peer: str | None) -> Shown:
        """The context's text, "" for an answer that is right already."""
        return Shown(context.shows(self.task, self.items[place], text, peer), context.kind)

    def example(self, student: Student, place: int, answer: DrawnAnswer, shown: Shown) -> Example:
        """The student's own answer."""
        kind = shown.kind or "follow_up"
        return student.example(
            self.asked[place], answer, text=shown.text, kind=kind, polarity=shown.polarity, task=self.name
        )

    def solved(self, score: float) -> bool:
        """A full mark."""
        return score >= RIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextGap:
    """The gap under one context. Numbers with an interval are {value, low, high, n}; n counts prompts."""

    context: str
    unit: Scale
    gap: Json
    """Teacher minus resampled student; 0 for prompts that the context shows nothing about."""
    gap_se: float
    spread: float
    """Standard deviation over prompts."""
    raw: Json
    """Teacher minus the first answers, as the paper measures it: with chance recovery in it."""
    regression: Json
    """Of which this much is chance: the same prompts drawn again without context."""
    shuffled: Json | None
    """The gap when each prompt is shown another one's text; None where it was not measured."""
    student: float
    teacher: float
    """Mean scores over all prompts; those that the context shows nothing about keep the student's."""
    prompts: int
    redrawn: int
    """Prompts that the context shows something about."""
    needed: int
    """Prompts after which a true gap of this size is found four times out of five."""
    detectable: float | None
    """Smallest true gap that these prompts show as often."""
    slices: dict[str, Json] = field(default_factory=dict)
    """The gap by slice."""
    observables: dict[str, float] = field(default_factory=dict)
    """Teacher-forced measurements on the student's first answers."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Prompts that could not be encoded under the context, by reason."""

    def to_dict(self) -> Json:
        """JSON-compatible."""
        return asdict(self)

    def measured(self, student: Student) -> MeasuredGap:
        """As `predict.predict_gain` reads it."""
        return MeasuredGap(
            context=self.context, unit=self.unit, base=student.model, base_hash=student.base_hash, gap=self.gap,
            gap_se=self.gap_se, spread=self.spread, student=self.student, teacher=self.teacher, prompts=self.prompts,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DrawnScores:
    """Answers to some prompts, their texts and scores."""

    answers: list[DrawnAnswer]
    texts: list[str]
    scores: list[float]


class GapMeasurement:
    """One pass at learning rate zero over the prompts of a source: draws the student once for all contexts."""

    def __init__(
        self, student: Student, source: GapSource, *, seed: int = 0, peers: bool = False, base_teacher: bool = False,
        advance: Advance = lambda done, total, step: None,
    ) -> None:  # fmt: skip
        """Draw the student's first answers, the control, and peers where a context needs them.

        Args:
            student: The weights.
            source: The prompts.
            seed: Of all draws and bootstraps.
            peers: Also draw answers that may be shown as another attempt.
            base_teacher: The teacher has the base's weights, not the student's start.
            advance: Called with (done, total, step).

        Raises:
            NothingToDo: There is no prompt.
        """
        if not source.asked:
            raise NothingToDo(f"{source.name} has no prompt to measure a gap on")
        self.student, self.source, self.seed, self.advance = student, source, seed, advance
        self.base_teacher = base_teacher
        self.taught: dict[int, DrawnAnswer] = {}
        """The teacher's answers of the last `measure`, by place."""
        self.prompts = [student.prompt(asked) for asked in source.asked]
        everything = list(range(len(self.prompts)))
        served = source.first()
        self.first = (
            self._drawn(everything, self.prompts, 1, "student") if served is None else self._scored(everything, served)
        )
        self.again = self._drawn(everything, self.prompts, 2, "student again")
        # Not the control's answers: a peer exists where one was right, which would favour the control there.
        found = self._drawn(everything, self.prompts, 3, "peers") if peers else None
        self.peers = [
            found.texts[i] if found is not None and source.solved(found.scores[i]) else None for i in everything
        ]

    def _drawn(
        self, picked: Sequence[int], prompts: Sequence[tuple[int, ...]], number: int, step: str, *, base: bool = False
    ) -> DrawnScores:
        self.advance(0, None, step)
        drawn = self.student.draw(prompts, self.source.longest, seed=self.seed * 64 + number, base=base)
        return self._scored(picked, drawn)

    def _scored(self, picked: Sequence[int], answers: list[DrawnAnswer]) -> DrawnScores:
        texts = [self.student.text(answer) for answer in answers]
        return DrawnScores(answers, texts, self.source.scores(self.student, picked, answers, texts))

    def shown(self, context: TeacherContext) -> list[Shown]:
        """The privileged text about each of the student's first answers."""
        return [self.source.shows(context, i, text, self.peers[i]) for i, text in enumerate(self.first.texts)]

    def measure(self, context: TeacherContext, *, shuffled: bool = True, observe: bool = True) -> ContextGap:
        """The gap under one context.

        Args:
            context: The teacher's context.
            shuffled: Also draw the teacher under other prompts' texts (the second control).
            observe: Also score the student's answers under the context.
        """
        shown = self.shown(context)
        picked, prompts, excluded = self._teacher_prompts(context, shown)
        base = self.base_teacher
        if not context.where.privileged:  # drawn anew, it is the control itself
            picked, prompts, base = list(range(len(self.prompts))), self.prompts, False
        theirs: dict[int, float] = {}
        self.taught = {}
        if picked:
            teacher = self._drawn(picked, prompts, 4, f"teacher: {context.name}", base=base)
            theirs = dict(zip(picked, teacher.scores, strict=True))
            self.taught = dict(zip(picked, teacher.answers, strict=True))
        own_text = context.where.privileged and context.where.text is None
        control = self._shuffled(context, shown) if shuffled and own_text and picked else None
        observed: dict[str, float] = {}
        if observe and picked and context.where.privileged:
            observed = self._observed(context)
        return self._gap(context, theirs, control, observed, excluded)

    def _gap(
        self,
        context: TeacherContext,
        theirs: dict[int, float],
        control: dict[int, float] | None,
        observed: dict[str, float],
        excluded: dict[str, int],
    ) -> ContextGap:
        first, again, n = self.first.scores, self.again.scores, len(self.prompts)
        gaps = [theirs[i] - again[i] if i in theirs else 0.0 for i in range(n)]
        raw = [theirs[i] - first[i] if i in theirs else 0.0 for i in range(n)]
        chance = [again[i] - first[i] if i in theirs else 0.0 for i in range(n)]
        gap = self._interval(gaps)
        spread = stdev(gaps) if n > 1 and all(map(math.isfinite, gaps)) else math.nan
        least = detectable(n, spread) if math.isfinite(spread) and spread > 0 else math.inf
        groups: dict[str, list[int]] = defaultdict(list)
        for i, name in enumerate(self.source.slices):
            groups[name].append(i)
        student = sum(first[i] + again[i] for i in range(n)) / (2 * n)
        found = {"pass_rate": student, "redrawn": len(theirs) / n}
        return ContextGap(
            context=context.name,
            unit=self.source.unit,
            gap=gap,
            gap_se=(gap["high"] - gap["low"]) / (2 * Z),
            spread=spread,
            raw=self._interval(raw),
            regression=self._interval(chance),
            shuffled=None if control is None else self._interval(
                [control[i] - again[i] if i in control else 0.0 for i in range(n)]
            ),
            student=student,
            teacher=student + gap["value"],
            prompts=n,
            redrawn=len(theirs),
            needed=interactions_needed(abs(gap["value"]), spread) if math.isfinite(spread) else 0,
            detectable=least if math.isfinite(least) else None,
            slices={name: self._interval([gaps[i] for i in places], places) for name, places in groups.items()},
            observables=observed | found,
            excluded=excluded,
        )  # fmt: skip

    def _interval(self, values: Sequence[float], places: Sequence[int] | None = None) -> Json:
        """Mean with its bootstrap interval over clusters of prompts. Marks that never differ get Tango's interval: a
        bootstrap would have no width, as if a few prompts could rule out any gap."""
        picked = range(len(self.prompts)) if places is None else places
        clusters = [self.source.clusters[i] for i in picked]
        if not all(map(math.isfinite, values)):
            return {"value": math.nan, "low": -math.inf, "high": math.inf, "n": len(values)}
        if not any(values) and self.source.unit == "share":
            alike = [False] * len(values)
            return paired_share(alike, alike, clusters)
        return mean(list(values), clusters, seed=self.seed)

    def _teacher_prompts(
        self, context: TeacherContext, shown: Sequence[Shown]
    ) -> tuple[list[int], list[tuple[int, ...]], dict[str, int]]:
        """The prompts that the context says something about, as its teacher reads them."""
        if not context.where.privileged:
            return [], [], {}
        picked = [i for i, one in enumerate(shown) if one.text.strip() and self.first.answers[i].tokens]
        recipe = context_recipe(context.where, dtype=self.student.recipe.dtype)
        examples = [self._example(i, shown[i]) for i in picked]
        prepared = self.student.encode(examples, recipe)
        rows = {row.interaction: row for row in prepared.rows}
        place = {example.interaction.id: i for example, i in zip(examples, picked, strict=True)}
        kept = [(place[name], tuple(row.reads(context.where))) for name, row in rows.items()]
        return [i for i, _ in kept], [ids for _, ids in kept], prepared.reasons

    def _example(self, place: int, shown: Shown) -> Example:
        return self.source.example(self.student, place, self.first.answers[place], shown)

    def examples(self, context: TeacherContext) -> list[Example]:
        """The training examples under the context: the student's first answers with a privileged text."""
        shown = self.shown(context)
        return [self._example(i, s) for i, s in enumerate(shown) if s.text.strip() and self.first.answers[i].tokens]

    def _shuffled(self, context: TeacherContext, shown: Sequence[Shown]) -> dict[int, float] | None:
        """Scores of a teacher that reads another prompt's text; None where all texts are alike."""
        told = [i for i, one in enumerate(shown) if one.text.strip()]
        given = others([shown[i].text for i in told], self.seed)
        swapped = [NOTHING] * len(shown)
        for i, other in zip(told, given, strict=True):
            if other is not None:
                swapped[i] = shown[told[other]]
        picked, prompts, _ = self._teacher_prompts(context, swapped)
        if not picked:
            return None
        found = self._drawn(picked, prompts, 5, f"shuffled: {context.name}", base=self.base_teacher)
        return dict(zip(picked, found.scores, strict=True))

    def _observed(self, context: TeacherContext) -> dict[str, float]:
        recipe = context_recipe(context.where, dtype=self.student.recipe.dtype)
        prepared = self.student.encode(self.examples(context), recipe)
        return self.student.observe(prepared, recipe, self.seed) if prepared.rows else {}
