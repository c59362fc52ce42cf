"""Runs the designed grid of a calibration: gap, training and gain for each task, context, student and seed.

Every finished training appends one point, and a call skips the points that are there: an interrupted grid goes on where
it was. Gap and gain share no prompt, so their errors are independent. The student "base+task" first learns that task.
"""

from __future__ import annotations

import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from afterword import __version__
from afterword.errors import ConfigError, NothingToDo
from afterword.evaluate.comparison.heldout import CONTEXT, LONGEST_HINDSIGHT
from afterword.forecast.contexts import TEACHER_CONTEXTS, TeacherContext, teacher_context
from afterword.forecast.gap import GapMeasurement, TaskSource
from afterword.forecast.points import CalibrationPoint, append_point, read_points
from afterword.forecast.small import make_small_model, read_config
from afterword.forecast.student import Asked, Ids, Student, context_recipe, training_tokens
from afterword.forecast.tasks import TaskItem, VerifiableTask, task_of
from afterword.learn.hindsight_score import score
from afterword.learn.parts.contexts import fit_hindsight
from afterword.learn.recipes import Recipe
from afterword.model.generation.drawing import DrawnAnswer
from afterword.model.lora import Delta
from afterword.train.data.examples import Example
from afterword.train.loop import train_candidate
from afterword.train.monitoring.alerts import OFF

GRID = Path(__file__).with_name("grid.toml")
"""The grid that comes with the package."""
HELD_OUT_SEED = 1_000_003
FEWEST_NATS = 8
"""Prompts with words of a user that a point in nats needs."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GridStudent:
    """A student of the grid."""

    name: str
    model: str
    """Built-in name, folder or hub id."""
    family: str
    learned: str | None = None
    """Task that its adapter learned before the grid; None starts from the base."""
    made_from: str | None = None
    """Configuration beside the grid from which the model is trained first (`forecast.small`); `model` names its folder
    below the work folder."""
    tasks: tuple[str, ...] | None = None
    """Tasks of this student alone; None takes the grid's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A designed grid: every combination of student, task, context and seed, and how each is trained."""

    students: tuple[GridStudent, ...]
    tasks: tuple[str, ...]
    contexts: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    prompts: int = 64
    heldout: int = 48
    samples: int = 2
    """Answers to each held-out prompt, before and after."""
    lr: float = 1e-3
    epochs: int = 1
    fresh: int = 1
    batch: int = 4
    folder: Path = GRID.parent
    """Of the grid's file."""
    skip: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Task, or its kind ("persona"), -> contexts that say nothing there."""

    def cells(self) -> Iterator[tuple[GridStudent, str, int, tuple[str, ...]]]:
        """(student, task, seed, contexts); the seeds go round last, so that a part of the grid is whole designs."""
        for seed in self.seeds:
            for student in self.students:
                for task in student.tasks or self.tasks:
                    left = {*self.skip.get(task, ()), *self.skip.get(task.partition(":")[0], ())}
                    yield student, task, seed, tuple(c for c in self.contexts if c not in left)

    @property
    def size(self) -> int:
        """Trainings."""
        return sum(len(contexts) for *_, contexts in self.cells())


def read_grid(path: Path = GRID) -> Grid:
    """A grid from a TOML file.

    Raises:
        ConfigError: The file cannot be read, or names an unknown key, task or context.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        students = tuple(
            GridStudent(**{**one, "tasks": tuple(one["tasks"]) if "tasks" in one else None})
            for one in data.pop("students")
        )
        skip = {name: tuple(some) for name, some in data.pop("skip", {}).items()}
        lists: dict[str, Any] = {key: tuple(data.pop(key)) for key in ("tasks", "contexts", "seeds") if key in data}
        grid = Grid(students=students, skip=skip, folder=path.parent, **lists, **data)
    except (OSError, tomllib.TOMLDecodeError, TypeError, KeyError) as error:
        raise ConfigError(f"cannot read the grid {str(path)!r}: {error}", param="grid") from error
    for name in grid.contexts:
        if not teacher_context(name).where.privileged:
            raise ConfigError(f"the context {name!r} shows nothing: training on it changes nothing", param="grid")
    own = [name for student in students for name in (*(student.tasks or ()), *filter(None, [student.learned]))]
    for name in (*grid.tasks, *own):
        task_of(name)
    for student in students:
        if student.made_from is not None:
            read_config(grid.folder / student.made_from)
    return grid


def run_grid(
    grid: Grid, points: Path, work: Path, *, device: str = "auto", minutes: float | None = None,
    say: Say = lambda text: None,
) -> int:  # fmt: skip
    """Measure the missing points of the grid.

    Args:
        grid: The design.
        points: File of points; created, appended to.
        work: Folder for adapters and runs; the adapters of students with `learned` stay in it.
        device: Where to compute.
        minutes: Start no training after so long; None runs to the end.
        say: Gets a sentence for each point.

    Returns:
        Trainings of this call.
    """
    started, made = time.monotonic(), 0
    done = {(p.key, p.seed) for p in read_points(points)} if points.is_file() else set()
    loaded: tuple[GridStudent, Student] | None = None
    for who, name, seed, contexts in grid.cells():
        missing = [c for c in contexts if ((name, c, who.name, "share"), seed) not in done]
        if not missing:
            continue
        if minutes is not None and time.monotonic() - started > 60 * minutes:
            break
        if loaded is None or loaded[0] != who:
            model = _model(who, grid, work, say)
            loaded = who, Student(model, _learned(who, grid, work, device, say), device=device)
        try:
            cell = _Cell(grid, who, loaded[1], task_of(name), seed, work, device, missing)
        except NothingToDo as error:
            say(f"{name}, {who.name}, seed {seed}: {error.message}")
            continue
        for context in missing:
            if minutes is not None and time.monotonic() - started > 60 * minutes:
                return made
            try:
                measured = cell.points(teacher_context(context))
            except NothingToDo as error:  # no prompt that the context says anything about
                say(f"{name}, {context}, {who.name}, seed {seed}: {error.message}")
                continue
            for point in measured:  # the share last: by it a later call knows that the training is done
                append_point(points, point)
            point = measured[-1]
            made += 1
            spent = sum(point.seconds.values())
            say(
                f"{name}, {context}, {who.name}, seed {seed}: gap {point.gap:+.3f}, gain {point.gain:+.3f} "
                f"({spent:.0f} s of CPU time)"
            )
    return made


def _model(who: GridStudent, grid: Grid, work: Path, say: Say) -> str:
    """The base model, which is made first where the grid has its configuration."""
    if who.made_from is None:
        return who.model
    folder = work / "models" / who.model
    if not folder.exists():
        say(f"{who.name}: the model is trained from {who.made_from}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_small_model(read_config(grid.folder / who.made_from), folder, say=say)
    return str(folder)


def _learned(who: GridStudent, grid: Grid, work: Path, device: str, say: Say) -> Path | None:
    """The adapter that a student starts from, trained once on hints and edits of its task."""
    if who.learned is None:
        return None
    folder = work / "students" / who.name.replace("/", "-").replace(":", "-")
    if not folder.exists():
        say(f"{who.name}: learns {who.learned} first")
        student = Student(who.model, device=device)
        task = task_of(who.learned)
        source = TaskSource(task, task.items("train", grid.prompts, HELD_OUT_SEED))
        measurement = GapMeasurement(student, source, seed=0)
        context = TEACHER_CONTEXTS["hints"]
        _train(measurement.examples(context), grid_recipe(grid, context), who.model, None, folder, 0, device)
    return folder


def grid_recipe(grid: Grid, context: TeacherContext) -> Recipe:
    """Self-distillation of a context, as the grid trains it."""
    return context_recipe(
        context.where, lr=grid.lr, epochs=grid.epochs, fresh=grid.fresh, batch=grid.batch, redact="off"
    )


def _train(
    examples: Sequence[Example], how: Recipe, model: str, parent: Path | None, out: Path, seed: int, device: str
) -> int:
    """Train into `out`; a killed run is resumed. Returns its optimiser steps."""
    run = out.with_name(f"{out.name}-run")
    result = train_candidate(
        examples, model=model, out=out, recipe=how, run_dir=run, parent=parent, seed=seed, device=device, rules=OFF
    )
    shutil.rmtree(run, ignore_errors=True)
    return int(result.metrics.get("steps", 0))


class _Cell:
    """One student, task and seed: what all of its contexts share."""

    def __init__(
        self, grid: Grid, who: GridStudent, student: Student, task: VerifiableTask, seed: int, work: Path, device: str,
        contexts: Sequence[str],
    ) -> None:  # fmt: skip
        self.grid, self.who, self.student, self.task, self.seed = grid, who, student, task, seed
        self.work, self.device = work, device
        before, tokens = student.work.seconds, student.work.tokens
        peers = any(teacher_context(c).peers for c in contexts)
        self.items = task.items("train", grid.prompts, seed)
        source = TaskSource(task, self.items)
        self.measurement = GapMeasurement(student, source, seed=seed, peers=peers)
        self.shared = student.work.seconds - before, student.work.tokens - tokens
        before = student.work.seconds
        self.heldout = heldout_items(task, grid.heldout, seed)
        self.before = heldout_answers(student, task, self.heldout, grid.samples, seed, None)
        self.marked = self._marks(self.before)
        self.asking = student.work.seconds - before

    def points(self, context: TeacherContext) -> list[CalibrationPoint]:
        """Measure the gap, train, measure the gain: a point in nats where users say something, and one in shares."""
        student, grid, began, tokens = self.student, self.grid, self.student.work.seconds, self.student.work.tokens
        gap = self.measurement.measure(context, shuffled=False)
        examples = self.measurement.examples(context)
        how = grid_recipe(grid, context)
        prepared = student.encode(examples, how)
        if len(prepared.rows) < grid.batch:
            raise NothingToDo(f"the context says something about {len(prepared.rows)} of {gap.prompts} prompts")
        gap_tokens, measured = student.work.tokens - tokens + self.shared[1], student.work.seconds
        nats_gap = self._nats_gap()
        out = self.work / "adapters" / f"{self.task.name}-{context.name}-{self.who.name}-{self.seed}".replace(":", "-")
        steps = _train(examples, how, student.model, student.parent, out, self.seed, self.device)
        trained = student.work.seconds
        after = heldout_answers(student, self.task, self.heldout, grid.samples, self.seed, student.adapter(out))
        gains = [b - a for a, b in zip(self.marked, self._marks(after), strict=True)]
        nats_gain = self._nats_gain(after)
        shutil.rmtree(out, ignore_errors=True)
        share = CalibrationPoint(
            task=self.task.name, context=context.name, student=self.who.name, family=self.who.family,
            base_hash=student.base_hash, seed=self.seed, unit="share", gap=gap.gap["value"], gap_se=gap.gap_se,
            gain=sum(gains) / len(gains), gain_se=standard_error(gains), prompts=gap.prompts, heldout=len(gains),
            steps=steps, train_tokens=training_tokens(prepared.rows, how), gap_tokens=gap_tokens,
            context_tokens=gap.observables.get("context_tokens", 0.0), observables=gap.observables,
            seconds={"gap": round(measured - began + self.shared[0], 1), "train": round(trained - measured, 1),
                     "evaluate": round(student.work.seconds - trained + self.asking, 1)},
            version=__version__,
        )  # fmt: skip
        if min(len(nats_gap), len(nats_gain)) < FEWEST_NATS:
            return [share]
        nats = replace(
            share, unit="nats", gap=sum(nats_gap) / len(nats_gap), gap_se=standard_error(nats_gap),
            gain=sum(nats_gain) / len(nats_gain), gain_se=standard_error(nats_gain), prompts=len(nats_gap),
            heldout=len(nats_gain),
        )  # fmt: skip
        return [nats, share]

    def _marks(self, answers: Sequence[Sequence[DrawnAnswer]]) -> list[float]:
        """Mean mark of each held-out prompt."""
        return [
            sum(self.task.score(item, self.student.text(answer)) for answer in some) / len(some)
            for item, some in zip(self.heldout, answers, strict=True)
        ]

    def _nats_gap(self) -> list[float]:
        """Hindsight score of the teacher's answers minus that of the student's second ones, each under what the user
        would say of the student's first one; prompts without such words or without a teacher's answer are left out."""
        one, rows = self.measurement, []
        for i, answer in one.taught.items():
            item = one.source.asked[i]
            said = self.task.follow_up(self.items[i], one.first.texts[i])
            if said:
                rows += [(item, said, answer), (item, said, one.again.answers[i])]
        scores = hindsight_scores(self.student, rows)
        return [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]

    def _nats_gain(self, after: Sequence[Sequence[DrawnAnswer]]) -> list[float]:
        """The same of the answers after the training and before it, on held-out prompts, as the gate scores them."""
        rows: list[tuple[Asked, str, DrawnAnswer]] = []
        if self.grid.samples < 2:  # the answer that the user speaks about would be the one that is scored
            return []
        for item, old, new in zip(self.heldout, self.before, after, strict=True):
            said = self.task.follow_up(item, self.student.text(old[0]))
            if said:
                asked = Asked(item.id, item.messages)
                rows += [(asked, said, new[-1]), (asked, said, old[-1])]
        scores = hindsight_scores(self.student, rows)
        return [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]


def hindsight_scores(student: Student, rows: Sequence[tuple[Asked, str, DrawnAnswer]]) -> list[float]:
    """Hindsight score (nats a token) of each answer under what a user said, by the frozen base."""
    pairs: list[tuple[Ids, Ids]] = []
    for asked, said, answer in rows:
        ids = tuple(answer.tokens) or (student.ends[0],)
        seen = fit_hindsight(
            student.tokenizer, CONTEXT, asked.messages, {}, said, room=student.limit - len(ids),
            longest=LONGEST_HINDSIGHT,
        )  # fmt: skip
        prompt = student.prompt(asked)
        pairs += [(prompt, ids), (prompt if seen is None else tuple(seen.prompt.ids), ids)]
    found = student.log_probs(pairs) if pairs else []
    return [score(found[2 * i], found[2 * i + 1], pairs[2 * i][1]) for i in range(len(rows))]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean. Marks that never differ keep the error of one that does: nothing is known exactly."""
    n = len(values)
    return max(stdev(values), 1 / n) / n**0.5 if n > 1 else float("inf")


def heldout_items(task: VerifiableTask, number: int, seed: int) -> list[TaskItem]:
    """Held-out prompts of a seed."""
    return task.items("heldout", number, HELD_OUT_SEED + seed)


def heldout_answers(
    student: Student, task: VerifiableTask, items: Sequence[TaskItem], samples: int, seed: int,
    adapter: dict[str, Delta] | None,
) -> list[list[DrawnAnswer]]:  # fmt: skip
    """`samples` answers to each prompt; the same seeds for every adapter."""
    prompts = [student.prompt(Asked(item.id, item.messages)) for item in items for _ in range(samples)]
    answers = student.draw(prompts, task.max_tokens, seed=HELD_OUT_SEED + seed, adapter=adapter)
    return [answers[i * samples : (i + 1) * samples] for i in range(len(items))]
