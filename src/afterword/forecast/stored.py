"""Predicts the gain of a planned round from stored interactions, before `cycle` trains.

Scores answers as the gate does: by the task's own check where each interaction has one, else by the hindsight score of
the frozen base. Measures on as few prompts as the budget allows, and on none where no calibration could use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from afterword.chat.render import encode_content
from afterword.chat.turn_prompt import turn_prompt
from afterword.config import EvaluateConfig, ForecastConfig, TrainConfig, current_names
from afterword.errors import NothingToDo
from afterword.evaluate.comparison.comparison import Check
from afterword.evaluate.comparison.heldout import CONTEXT, LONGEST_HINDSIGHT, HeldOut, clusters_of
from afterword.evaluate.scoring.task_checks import check_of
from afterword.forecast.calibration import LEAST, PointSet, select
from afterword.forecast.contexts import TEACHER_CONTEXTS, TeacherContext
from afterword.forecast.gap import NOTHING, Advance, ContextGap, GapMeasurement, Shown
from afterword.forecast.points import CalibrationPoint, Scale
from afterword.forecast.predict import predict_gain
from afterword.forecast.student import Asked, Ids, Student, training_tokens
from afterword.learn.hindsight_score import score
from afterword.learn.loss.terms import Term
from afterword.learn.parts.contexts import turn_hindsight
from afterword.learn.parts.teachers import BASE
from afterword.learn.recipes.from_config import recipe_of
from afterword.learn.recipes.recipe import Recipe
from afterword.model.generation.drawing import DrawnAnswer
from afterword.model.loading import base_hash, resolve_model
from afterword.records import (
    Candidate,
    Interaction,
    Json,
    Prediction,
    TrainingPlan,
    Turn,
    new_id,
)
from afterword.store import Store
from afterword.store.attribution import ConversationRoots
from afterword.train.data.examples import Example

WORDING = 48
"""Tokens that a template's own words take at most."""


def _silent(done: int, total: int | None, step: str) -> None:
    """Reports nothing."""


@dataclass(frozen=True, slots=True)
class StoredSource:
    """Stored interactions with hindsight."""

    items: Sequence[HeldOut]
    checks: Mapping[str, Check]
    longest: int

    @property
    def name(self) -> str:
        """For messages."""
        return "the selection"

    @property
    def unit(self) -> Scale:
        """Shares where each interaction's task has a check."""
        return "share" if all(item.task in self.checks for item in self.items) else "nats"

    @property
    def asked(self) -> list[Asked]:
        """The prompts as they were served."""
        return [
            Asked(item.interaction.id, item.turn.messages, item.turn.tools, item.turn.prompt_ids) for item in self.items
        ]

    @property
    def clusters(self) -> list[str]:
        """Users where there are enough, else conversations."""
        return clusters_of(list(self.items))

    @property
    def slices(self) -> list[str]:
        """Tasks."""
        return [item.task or "(none)" for item in self.items]

    def first(self) -> list[DrawnAnswer] | None:
        """The served answers; None where one has no token ids."""
        turns = [item.turn for item in self.items]
        if not all(turn.on_policy for turn in turns):
            return None
        return [DrawnAnswer(list(turn.completion_ids or ()), []) for turn in turns]

    def scores(
        self, student: Student, picked: Sequence[int], answers: Sequence[DrawnAnswer], texts: Sequence[str]
    ) -> list[float]:
        """Marks of the checks, or hindsight scores in nats a token."""
        items = [self.items[i] for i in picked]
        if self.unit == "share":
            return [self.checks[str(item.task)](item, text) for item, text in zip(items, texts, strict=True)]
        pairs = [pair for item, answer in zip(items, answers, strict=True) for pair in _pairs(student, item, answer)]
        found = student.log_probs(pairs)
        return [score(found[2 * i], found[2 * i + 1], pairs[2 * i][1]) for i in range(len(items))]

    def shows(self, context: TeacherContext, place: int, text: str, peer: str | None) -> Shown:
        """The interaction's own hindsight."""
        one = self.items[place].interaction
        return Shown(one.hindsight, one.kind, one.polarity) if context.where.privileged else NOTHING

    def example(self, student: Student, place: int, answer: DrawnAnswer, shown: Shown) -> Example:
        """The interaction as it is trained; under another one's text (the control) with that text."""
        item = self.items[place]
        if shown.text == item.interaction.hindsight:
            return Example(item.interaction, item.turn)
        changed = {"hindsight": shown.text, "kind": shown.kind, "polarity": shown.polarity}
        return Example(Interaction.from_dict({**item.interaction.to_dict(), **changed}), item.turn)

    def solved(self, score: float) -> bool:
        """Peers are in the hindsight already."""
        return False


def _pairs(student: Student, item: HeldOut, answer: DrawnAnswer) -> tuple[tuple[Ids, Ids], tuple[Ids, Ids]]:
    """(prompt, answer) without and with the hindsight, as the suite `holdout` scores them."""
    turn, ids = item.turn, tuple(answer.tokens) or (student.ends[0],)
    prompt = tuple(turn_prompt(student.tokenizer, turn).ids)
    seen = turn_hindsight(
        student.tokenizer, CONTEXT, turn, item.interaction.hindsight, room=student.limit - len(ids),
        longest=LONGEST_HINDSIGHT,
    )  # fmt: skip
    hinted = prompt if seen is None else tuple(seen.prompt.ids)
    return (prompt, ids), (hinted, ids)


@dataclass(frozen=True, slots=True)
class NoPrediction:
    """Why a round is not predicted; it starts all the same."""

    why: str


def predict_round(
    store: Store,
    directory: Path,
    plan: TrainingPlan,
    points: Sequence[CalibrationPoint],
    settings: ForecastConfig,
    evaluate: EvaluateConfig,
    *,
    heldout: int,
    device: str = "auto",
    advance: Advance = _silent,
) -> Prediction | NoPrediction:
    """Measure the gap of a planned round and predict its gain. Writes nothing.

    Args:
        store: With the plan's interactions.
        directory: The data directory, for the parent's adapter.
        plan: The plan of the round.
        points: The calibration's.
        settings: `[forecast]`.
        evaluate: `[evaluate]`, for the checks and the length of answers.
        heldout: Held-out interactions that the gate will compare.
        device: Where to compute.
        advance: Called with (done, total, step).
    """
    recipe, term = _term(plan)
    if term is None:
        return NoPrediction(_NOTHING_SHOWN.format(recipe.name))
    items = _items(store, plan)
    source = _source(items, evaluate)
    if not items:
        return NoPrediction(_NO_WORDS)
    base = base_hash(resolve_model(plan.model))
    rows = select(points, unit=source.unit, base_hash=base)
    if not PointSet.of(rows).usable:
        return NoPrediction(
            f"no calibration for {plan.model} in {source.unit} ({len(rows)} of {LEAST} configurations): "
            "`afterword forecast calibrate` measures one"
        )
    parent = store.get(Candidate, plan.parent) if plan.parent else None
    student = Student(plan.model, store.artifacts.folder(parent.path) if parent else None, device=device)
    tokens = _training_tokens(store, student, plan, recipe)
    most = _affordable(student, source, settings, tokens)
    if most < settings.min_prompts:
        return NoPrediction(
            f"{most} prompts would cost {settings.cost:.0%} of this training, forecast.min_prompts is "
            f"{settings.min_prompts}"
        )
    source = StoredSource(items[-most:], source.checks, source.longest)
    return _predicted(student, source, term, points, heldout, tokens, plan, advance)


def _predicted(
    student: Student,
    source: StoredSource,
    term: Term,
    points: Sequence[CalibrationPoint],
    heldout: int,
    tokens: int,
    plan: TrainingPlan,
    advance: Advance,
) -> Prediction:
    measurement = _measurement(student, source, term, plan, advance)
    gap = measurement.measure(_own(term), shuffled=False, observe=False)
    found = predict_gain(gap.measured(student), points, heldout=heldout)
    cost: Json = {
        "measured_tokens": student.work.tokens,
        "training_tokens": tokens,
        "cpu_minutes": round(tokens * student.work.seconds / max(1, student.work.tokens) / 60, 2),
    }
    return Prediction(
        id=new_id("pre"), base_hash=student.base_hash, unit=source.unit, context=term.context.name,
        advice=found.advice, says=found.says, gap=found.gap, gain=found.gain, gate_probability=found.gate_probability,
        prompts=gap.prompts, cost=cost,
    )  # fmt: skip


def measure_selection(
    store: Store, directory: Path, plan: TrainingPlan, evaluate: EvaluateConfig, *, prompts: int, device: str = "auto"
) -> tuple[Student, list[ContextGap]]:
    """The gaps of a planned round under nothing and under the recipe's own context, with controls, by slice.

    Args:
        store: With the plan's interactions.
        directory: The data directory, for the parent's adapter.
        plan: The plan of the round.
        evaluate: `[evaluate]`, for the checks and the length of answers.
        prompts: Most interactions to measure on; the newest.
        device: Where to compute.

    Raises:
        NothingToDo: No planned interaction has words, or the recipe's teacher reads nothing.
    """
    recipe, term = _term(plan)
    if term is None:
        raise NothingToDo(f"{_NOTHING_SHOWN.format(recipe.name)}: there is no gap to measure")
    items = _items(store, plan)
    if not items:
        raise NothingToDo(f"{_NO_WORDS}: there is no gap to measure")
    parent = store.get(Candidate, plan.parent) if plan.parent else None
    student = Student(plan.model, store.artifacts.folder(parent.path) if parent else None, device=device)
    measurement = _measurement(student, _source(items[-prompts:], evaluate), term, plan)
    return student, [measurement.measure(TEACHER_CONTEXTS["none"]), measurement.measure(_own(term))]


_NOTHING_SHOWN = "the recipe {!r} shows its teacher nothing that an interaction brings"
_NO_WORDS = "no planned interaction carries words"


def _term(plan: TrainingPlan) -> tuple[Recipe, Term | None]:
    """The plan's recipe, and its term whose teacher reads the interactions' own words."""
    recipe = recipe_of(TrainConfig(**current_names("train", plan.settings)))
    found = (t for t in recipe.terms if t.teacher is not None and t.context.privileged and t.context.text is None)
    return recipe, next(found, None)


def _source(items: Sequence[HeldOut], evaluate: EvaluateConfig) -> StoredSource:
    return StoredSource(items, {task: check_of(spec) for task, spec in evaluate.checks.items()}, evaluate.max_tokens)


def _own(term: Term) -> TeacherContext:
    """The term's context; `StoredSource` brings the texts."""
    return TeacherContext(term.context.name, "the recipe's own", term.context, "", lambda *_: "")


def _measurement(
    student: Student, source: StoredSource, term: Term, plan: TrainingPlan, advance: Advance = _silent
) -> GapMeasurement:
    seed = int(plan.settings.get("seed", 0))
    return GapMeasurement(student, source, seed=seed, base_teacher=term.teacher == BASE, advance=advance)


def _items(store: Store, plan: TrainingPlan) -> list[HeldOut]:
    """The planned interactions with words, in the plan's order."""
    roots, excluded = ConversationRoots(store), {one.interaction for one in plan.excluded}
    rows = [store.get(Interaction, name) for name in plan.interactions if name not in excluded]
    worded = [(row, store.get(Turn, row.turn)) for row in rows if row.hindsight.strip()]
    return [HeldOut(interaction=row, turn=turn, conversation=roots.of(turn)) for row, turn in worded]


def _training_tokens(store: Store, student: Student, plan: TrainingPlan, recipe: Recipe) -> int:
    examples = [
        Example(row, store.get(Turn, row.turn)) for row in (store.get(Interaction, name) for name in plan.interactions)
    ]
    return training_tokens(student.encode(examples, recipe).rows, recipe)


def _affordable(student: Student, source: StoredSource, settings: ForecastConfig, tokens: int) -> int:
    """Prompts that the budget pays for, by the mean cost of one: the student again and its teacher, the first answer
    where none was served, and for the hindsight score three answers with and without the hindsight."""
    scored = 3 if source.unit == "nats" else 0
    drawn = 1 if source.first() is not None else 2
    total = 0
    for asked, item in zip(source.asked, source.items, strict=True):
        answer = max(source.longest, len(item.turn.completion_ids or ()))
        plain = len(student.prompt(asked)) + answer
        shown = plain + len(encode_content(student.tokenizer, item.interaction.hindsight)) + WORDING
        total += (drawn + scored) * plain + (1 + scored) * shown
    return min(settings.prompts, len(source.items), int(settings.cost * tokens * len(source.items) / total))
