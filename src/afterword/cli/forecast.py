"""Commands of the forecast: measure a gap, predict its gain, run a calibration, fit its points."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afterword.cli.context import CommandContext
from afterword.cli.progress import step_bar
from afterword.cli.server_state import served_model
from afterword.config import ServeConfig, trains_episodes
from afterword.cycle import Settings, plan_stage
from afterword.errors import NothingToDo
from afterword.feedback.select.select import select
from afterword.records import Candidate, Json, Prediction, PredictionOutcome, TrainingPlan
from afterword.store import Store
from afterword.store.files import write_whole

if TYPE_CHECKING:
    from afterword.evaluate.report.report_html import Section
    from afterword.forecast.gap import ContextGap
    from afterword.forecast.points import CalibrationPoint
    from afterword.forecast.student import Student


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    forecast = commands.add_parser("forecast", parents=[common])
    verbs = forecast.add_subparsers(dest="verb", metavar="gap|predict|calibrate|fit", required=True)
    asked = argparse.ArgumentParser(add_help=False)
    asked.add_argument(
        "--task", metavar="TASK",
        help="gym:FAMILY (extra tasks) or persona:NAME; default: the interactions that `train` would take",
    )  # fmt: skip
    asked.add_argument("--slice", metavar="NAME", help="without --task: interactions of this slice alone")
    asked.add_argument(
        "--context", action="append", metavar="NAME", help="what the teacher reads, also several times; default: all"
    )
    asked.add_argument("--prompts", type=int, default=64, metavar="N", help="prompts to measure on (default 64)")
    asked.add_argument("--adapter", type=Path, metavar="FOLDER", help="the adapter that the student starts from")
    asked.add_argument("--seed", type=int, default=0, help="of prompts and answers (default %(default)s)")
    gap = verbs.add_parser("gap", parents=[common, asked], help="measure gaps at learning rate zero")
    gap.add_argument("--no-shuffled", action="store_true", help="leave out the control with other prompts' texts")
    gap.set_defaults(run=run_gap)
    predict = verbs.add_parser("predict", parents=[common, asked], help="predict gain, cost and verdict of a training")
    predict.add_argument("--heldout", type=int, default=64, metavar="N", help="held-out interactions of the gate")
    predict.add_argument("--points", type=Path, metavar="FILE", help="points of the calibration")
    predict.set_defaults(run=run_predict)
    calibrate = verbs.add_parser(
        "calibrate", parents=[common], help="run a grid of real trainings; goes on where it was"
    )
    calibrate.add_argument("--grid", type=Path, metavar="FILE", help="the design (default: the one of the package)")
    calibrate.add_argument(
        "--points", type=Path, metavar="FILE", help="points to append to (DIR/forecast/points.jsonl)"
    )
    calibrate.add_argument("--minutes", type=float, metavar="M", help="begin no training after so long")
    calibrate.set_defaults(run=run_calibrate)
    fit = verbs.add_parser("fit", parents=[common], help="fit gain = a + b * gap to the points again")
    fit.add_argument("--points", type=Path, metavar="FILE", help="points of the calibration")
    fit.add_argument("--unit", choices=("share", "nats"), default="share", help="unit of gap and gain")
    fit.add_argument("--html", type=Path, metavar="FILE", help="also write figures as a page")
    fit.set_defaults(run=run_fit)


def _points(context: CommandContext) -> list[CalibrationPoint]:
    """The points that `--points` names, else those of the package and of the data directory."""
    from afterword.forecast.points import known_points, read_points

    return read_points(context.args.points) if context.args.points else known_points(context.dir)


def _measured(context: CommandContext, contexts: Sequence[str], *, shuffled: bool) -> tuple[Any, list[Any], Any]:
    """The student, a gap for each context, and the measurement behind them."""
    from afterword.forecast.contexts import teacher_context
    from afterword.forecast.gap import GapMeasurement, TaskSource
    from afterword.forecast.student import Student
    from afterword.forecast.tasks import task_of

    args, chosen = context.args, [teacher_context(name) for name in contexts]
    task = task_of(args.task)
    items = task.items("train", args.prompts, args.seed)
    device = context.config.get(ServeConfig).device
    with step_bar(context, "measuring the gap", "contexts") as advance:
        student = Student(served_model(context), args.adapter, device=device)
        measurement = GapMeasurement(
            student, TaskSource(task, items), seed=args.seed, peers=any(one.peers for one in chosen)
        )
        gaps = []
        for number, one in enumerate(chosen, 1):
            gaps.append(measurement.measure(one, shuffled=shuffled))
            advance(number, len(chosen), one.name)
    return student, gaps, measurement


def _contexts(context: CommandContext) -> list[str]:
    from afterword.forecast.contexts import TEACHER_CONTEXTS

    return context.args.context or list(TEACHER_CONTEXTS)


def run_gap(context: CommandContext) -> int:
    """Measure the gap under each context, with its controls."""
    if context.args.task is None:
        return _stored_gap(context)
    student, gaps, _ = _measured(context, _contexts(context), shuffled=not context.args.no_shuffled)
    return _show_gaps(context, student, gaps, context.args.task)


def _stored_gap(context: CommandContext) -> int:
    """The gap of what `train` would take now, by slice."""
    from afterword.cli.stages import stage_settings  # which shows predictions in its pages
    from afterword.forecast.stored import measure_selection

    with context.open_store() as store:
        settings = stage_settings(context)
        plan = _plan(context, store, settings)
        student, gaps = measure_selection(
            store, context.dir, plan, settings.evaluate, prompts=context.args.prompts, device=settings.device
        )
    code = _show_gaps(context, student, gaps, context.args.slice or "the selection")
    if not context.json:
        rows = [(name, _shown(one), one["n"]) for name, one in gaps[-1].slices.items()]
        context.table(f"gap by slice ({gaps[-1].unit})", ("slice", "gap", "prompts"), rows)
    return code


def _plan(context: CommandContext, store: Store, settings: Settings) -> TrainingPlan:
    """What `train` would take, of one slice where --slice names it."""
    name = context.args.slice
    tasks = None if name is None else [name]
    episodes = trains_episodes(settings.train)
    selection = select(
        store, settings.select, settings.review, channel=settings.channel, tasks=tasks, episodes=episodes
    )
    return plan_stage(store, settings, selection)


def _show_gaps(context: CommandContext, student: Student, gaps: Sequence[ContextGap], name: str) -> int:
    cost = {"tokens": student.work.tokens, "cpu_minutes": round(student.work.seconds / 60, 2)}
    if context.json:
        context.emit({"task": name, "contexts": [gap.to_dict() for gap in gaps], "cost": cost})
        return 0
    rows = [
        (g.context, _shown(g.gap), _shown(g.raw), _shown(g.regression), _shown(g.shuffled), f"{g.redrawn}/{g.prompts}",
         _number(g.observables.get("overlap")), _number(g.observables.get("entropy_gap")), g.needed)
        for g in gaps
    ]  # fmt: skip
    context.table(
        f"{name}: the student scores {gaps[0].student:.3f} ({gaps[0].unit})",
        ("context", "gap", "raw", "chance", "shuffled", "shown", "overlap", "entropy gap", "prompts needed"), rows,
    )  # fmt: skip
    context.say(f"{cost['tokens']} tokens, {cost['cpu_minutes']} minutes of CPU time")
    return 0


def run_predict(context: CommandContext) -> int:
    """Say for each context whether a training on it is worth its cost."""
    if context.args.task is None:
        return _stored_prediction(context)
    from afterword.forecast.calibrate import grid_recipe, read_grid
    from afterword.forecast.contexts import teacher_context
    from afterword.forecast.predict import predict_gain
    from afterword.forecast.student import training_tokens

    points = _points(context)
    names = [name for name in _contexts(context) if teacher_context(name).where.privileged]
    if not names:
        raise NothingToDo("the context 'none' teaches nothing: name another one with --context")
    student, gaps, measurement = _measured(context, names, shuffled=False)
    grid, spent = read_grid(), student.work.seconds / max(1, student.work.tokens)
    shown: list[Json] = []
    for gap in gaps:
        where = teacher_context(gap.context)
        how = grid_recipe(grid, where)
        tokens = training_tokens(student.encode(measurement.examples(where), how).rows, how)
        prediction = predict_gain(gap.measured(student), points, heldout=context.args.heldout)
        cost = {"tokens": tokens, "cpu_minutes": round(tokens * spent / 60, 2)}
        shown.append(prediction.to_dict() | {"cost": cost})
    cost = {"tokens": student.work.tokens, "cpu_minutes": round(student.work.seconds / 60, 2)}
    if context.json:
        context.emit({"task": context.args.task, "predictions": shown, "cost": cost})
        return 0
    rows = [
        (row["context"], _shown(row["gap"]), _shown(row["gain"]), _number(row["gate_probability"]),
         row["cost"]["tokens"], row["cost"]["cpu_minutes"], row["advice"])
        for row in shown
    ]  # fmt: skip
    columns = ("context", "gap", "gain", "gate passes", "tokens", "CPU minutes", "advice")
    context.table(f"{context.args.task}: a training on these prompts", columns, rows)
    for told in shown:
        context.out.print(f"{told['context']}: {told['says']}")
    return 0


def _stored_prediction(context: CommandContext) -> int:
    """The prediction that `cycle` would ask for now; not stored."""
    from afterword.cli.stages import stage_settings
    from afterword.forecast.stored import NoPrediction, predict_round

    with context.open_store() as store:
        settings = stage_settings(context)
        plan = _plan(context, store, settings)
        found = predict_round(
            store, context.dir, plan, _points(context), settings.forecast, settings.evaluate,
            heldout=context.args.heldout, device=settings.device,
        )  # fmt: skip
    if isinstance(found, NoPrediction):
        raise NothingToDo(f"no prediction: {found.why}")
    if context.json:
        context.emit(found.to_dict())
        return 0
    context.out.print(found.says)
    context.say(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.cost.items()))
    return 0


def run_calibrate(context: CommandContext) -> int:
    """Run the trainings of the grid that have no point yet."""
    from afterword.forecast.calibrate import GRID, read_grid, run_grid
    from afterword.forecast.points import OWN

    grid = read_grid(context.args.grid or GRID)
    points = context.args.points or context.dir / OWN
    device = context.config.get(ServeConfig).device
    context.say(f"{grid.size} trainings in all; points go to {points}")
    made = run_grid(
        grid, points, context.dir / "forecast", device=device, minutes=context.args.minutes, say=context.say
    )
    if context.json:
        context.emit({"points": str(points), "trainings": made, "size": grid.size})
    else:
        context.say(f"{made} trainings were measured. Next: `afterword forecast fit --points {points}`.")
    return 0


def run_fit(context: CommandContext) -> int:
    """Fit the points; with --html the figures as a page."""
    from afterword.forecast.calibration import fit
    from afterword.forecast.figures import calibration_page, error_rows, line_rows

    points = _points(context)
    found = fit(points, unit=context.args.unit)
    if context.args.html:
        write_whole(context.args.html, calibration_page(points, found))
        context.say(f"figures written to {context.args.html}")
    if context.json:
        context.emit(found)
        return 0
    context.table(
        f"gain = a + b * gap, {found['configurations']} configurations",
        ("family", "configurations", "slope", "intercept", "scatter", "R2"), line_rows(found),
    )  # fmt: skip
    columns = ("left out", "configurations", "law", "mean gain", "overlap ratio", "90 % intervals that hold")
    context.table("mean absolute error on what the fit did not see", columns, error_rows(found))
    return 0


def predicted_section(store: Store, candidate: Candidate) -> list[Section]:
    """The prediction made before a candidate was trained, for its page; empty without one."""
    from markupsafe import Markup

    from afterword.evaluate.report.report_html import Section

    outcome = next(iter(store.rows(PredictionOutcome, candidate=candidate.id)), None)
    prediction = store.find(Prediction, outcome.prediction) if outcome else None
    if outcome is None or prediction is None:
        return []
    gain = "not measured" if outcome.gain is None else f"{outcome.gain:+.3f}"
    told = Markup("<p>{}</p><p>Measured gain: {} ({}).</p>").format(
        prediction.says, gain, "the gate passed" if outcome.passed else "the gate refused"
    )
    return [Section("Predicted before the training", str(told))]


def _shown(one: Json | None) -> str:
    return "-" if one is None else f"{one['value']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
