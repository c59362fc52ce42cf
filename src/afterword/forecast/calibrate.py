"""Runs the designed grid of a calibration: gap, training and gain for each task, context, student and seed.

Every finished training appends one point, and a call skips the points that are there: an interrupted grid goes on where
it was. Gap and gain share no prompt, so their errors are independent. The student "base+task" first learns that task.
"""

from __future__ import annotations

import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any

from afterword import __version__
from afterword.errors import ConfigError, NothingToDo
from afterword.evaluate.stats.statistics import mean
from afterword.forecast.contexts import TEACHER_CONTEXTS, TeacherContext, teacher_context
from afterword.forecast.gap import GapMeasurement, TaskSource
from afterword.forecast.points import CalibrationPoint, append_point, read_points
from afterword.forecast.student import Asked, Student, context_recipe, training_tokens
from afterword.forecast.tasks import TaskItem, VerifiableTask, task_of
from afterword.learn.recipes import Recipe, recipe
from afterword.model.lora import Delta
from afterword.records import Interaction, Turn
from afterword.train.data.examples import Example
from afterword.train.loop import train_candidate
from afterword.train.monitoring.alerts import OFF

GRID = Path(__file__).with_name("grid.toml")
"""The grid that comes with the package."""
HELD_OUT_SEED = 1_000_003
METHODS = ("sdpo", "grpo", "sft")
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
    skip: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Task, or its kind ("persona"), -> contexts that say nothing there."""

    def cells(self) -> Iterator[tuple[GridStudent, str, int, tuple[str, ...]]]:
        """(student, task, seed, contexts); the seeds go round last, so that a part of the grid is whole designs."""
        for seed in self.seeds:
            for student in self.students:
                for task in self.tasks:
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
        students = tuple(GridStudent(**one) for one in data.pop("students"))
        skip = {name: tuple(some) for name, some in data.pop("skip", {}).items()}
        lists: dict[str, Any] = {key: tuple(data.pop(key)) for key in ("tasks", "contexts", "seeds") if key in data}
        grid = Grid(students=students, skip=skip, **lists, **data)
    except (OSError, tomllib.TOMLDecodeError, TypeError, KeyError) as error:
        raise ConfigError(f"cannot read the grid {str(path)!r}: {error}", param="grid") from error
    for name in grid.contexts:
        if not teacher_context(name).where.privileged:
            raise ConfigError(f"the context {name!r} shows nothing: training on it changes nothing", param="grid")
    for name in (*grid.tasks, *(s.learned for s in students if s.learned)):
        task_of(name)
    return grid


def run_grid(
    grid: Grid, points: Path, work: Path, *, device: str = "auto", minutes: float | None = None,
    say: Say = lambda text: None,
) -> int:  # fmt: skip
    """Measure what is missing in `points`.

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
            loaded = who, Student(who.model, _learned(who, grid, work, device, say), device=device)
        try:
            cell = _Cell(grid, who, loaded[1], task_of(name), seed, work, device, missing)
        except NothingToDo as error:
            say(f"{name}, {who.name}, seed {seed}: {error.message}")
            continue
        for context in missing:
            if minutes is not None and time.monotonic() - started > 60 * minutes:
                return made
            try:
                point = cell.point(teacher_context(context))
            except NothingToDo as error:  # no prompt that the context says anything about
                say(f"{name}, {context}, {who.name}, seed {seed}: {error.message}")
                continue
            append_point(points, point)
            made += 1
            spent = sum(point.seconds.values())
            say(
                f"{name}, {context}, {who.name}, seed {seed}: gap {point.gap:+.3f}, gain {point.gain:+.3f} "
                f"({spent:.0f} s of CPU time)"
            )
    return made


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
        source = TaskSource(task, task.items("train", grid.prompts, seed))
        self.measurement = GapMeasurement(student, source, seed=seed, peers=peers)
        self.shared = student.work.seconds - before, student.work.tokens - tokens
        before = student.work.seconds
        self.heldout = heldout_items(task, grid.heldout, seed)
        self.before = mean_marks(student, task, self.heldout, grid.samples, seed, None)
        self.asking = student.work.seconds - before

    def point(self, context: TeacherContext) -> CalibrationPoint:
        """Measure the gap, train, measure the gain."""
        student, grid, began, tokens = self.student, self.grid, self.student.work.seconds, self.student.work.tokens
        gap = self.measurement.measure(context, shuffled=False)
        examples = self.measurement.examples(context)
        how = grid_recipe(grid, context)
        prepared = student.encode(examples, how)
        if len(prepared.rows) < grid.batch:
            raise NothingToDo(f"the context says something about {len(prepared.rows)} of {gap.prompts} prompts")
        gap_tokens, measured = student.work.tokens - tokens + self.shared[1], student.work.seconds
        out = self.work / "adapters" / f"{self.task.name}-{context.name}-{self.who.name}-{self.seed}".replace(":", "-")
        steps = _train(examples, how, self.who.model, student.parent, out, self.seed, self.device)
        trained = student.work.seconds
        after = mean_marks(student, self.task, self.heldout, grid.samples, self.seed, student.adapter(out))
        gains = [b - a for a, b in zip(self.before, after, strict=True)]
        shown = mean(gains, seed=self.seed)
        shutil.rmtree(out, ignore_errors=True)
        return CalibrationPoint(
            task=self.task.name, context=context.name, student=self.who.name, family=self.who.family,
            base_hash=student.base_hash, seed=self.seed, unit="share", gap=gap.gap["value"], gap_se=gap.gap_se,
            gain=shown["value"], gain_se=standard_error(gains), prompts=gap.prompts, heldout=len(gains), steps=steps,
            train_tokens=training_tokens(prepared.rows, how), gap_tokens=gap_tokens,
            context_tokens=gap.observables.get("context_tokens", 0.0), observables=gap.observables,
            seconds={"gap": round(measured - began + self.shared[0], 1), "train": round(trained - measured, 1),
                     "evaluate": round(student.work.seconds - trained + self.asking, 1)},
            version=__version__,
        )  # fmt: skip


def standard_error(values: Sequence[float]) -> float:
    """Of the mean. Marks that never differ keep the error of one that does: nothing is known exactly."""
    n = len(values)
    return max(stdev(values), 1 / n) / n**0.5 if n > 1 else float("inf")


def heldout_items(task: VerifiableTask, number: int, seed: int) -> list[TaskItem]:
    """Held-out prompts of a seed."""
    return task.items("heldout", number, HELD_OUT_SEED + seed)


def mean_marks(
    student: Student, task: VerifiableTask, items: Sequence[TaskItem], samples: int, seed: int,
    adapter: dict[str, Delta] | None,
) -> list[float]:  # fmt: skip
    """Mean mark of `samples` answers to each prompt; the same seeds for every adapter."""
    prompts = [student.prompt(Asked(item.id, item.messages)) for item in items for _ in range(samples)]
    answers = student.draw(prompts, task.max_tokens, seed=HELD_OUT_SEED + seed, adapter=adapter)
    marks = [task.score(items[i // samples], student.text(answer)) for i, answer in enumerate(answers)]
    return [sum(marks[i * samples : (i + 1) * samples]) / samples for i in range(len(items))]


# ---- other methods on the same tasks


def method_run(
    method: str, measurement: GapMeasurement, items: Sequence[TaskItem], **settings: Any
) -> tuple[list[Example], Recipe]:
    """Examples and recipe of a single-turn training on a verifiable task, for `train_candidate`.

    Args:
        method: "sdpo" (self-distillation from right peers and feedback), "grpo" (the checker's marks) or "sft"
            (reference answers).
        measurement: The student's first answers; of a task gym:* for "grpo" and "sft".
        items: Its prompts.
        settings: Fields of the recipe.

    Raises:
        ConfigError: The method is unknown.
        NothingToDo: The task has no reference answers for "sft".
    """
    if method == "sdpo":
        return measurement.examples(TEACHER_CONTEXTS["peer_feedback"]), recipe("sdpo", **settings)
    if method == "grpo":
        student, name = measurement.student, measurement.source.name
        examples = [
            student.example(asked, answer, text="", kind="executed", polarity=0, task=name)
            for asked, answer in zip(measurement.source.asked, measurement.first.answers, strict=True)
            if answer.tokens
        ]
        return examples, recipe("grpo", **{"verifier": "afterword.forecast.tasks:gym_reward", **settings})
    if method == "sft":
        if not all(item.reference for item in items):
            raise NothingToDo(f"{measurement.source.name} has no reference answers to imitate: use sdpo")
        made = [_demonstration(item, measurement.source.name) for item in items]
        return made, recipe("sft", **{"include_off_policy": True, **settings})
    raise ConfigError(f"unknown method {method!r}: use one of {', '.join(METHODS)}", param="method")


def _demonstration(item: TaskItem, task: str) -> Example:
    """The reference answer as if it had been served, to be imitated off-policy."""
    answer = {"role": "assistant", "content": item.reference}
    turn = Turn(id=f"{item.id}#r", messages=item.messages, answer=answer, finish_reason="stop", task=task)
    interaction = Interaction(
        id=f"{item.id}#r", turn=turn.id, feedback=(), kind="accepted", hindsight="", polarity=1, weight=1.0,
        split="train", task=task, on_policy=False,
    )  # fmt: skip
    return Example(interaction, turn)
