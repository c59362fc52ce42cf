"""Commands for the stages of the cycle: collect, train, evaluate, cycle, heatmap (release is in `releases`)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.cli.dry_run import next_training, show_selection
from afterword.cli.forecast import predicted_section
from afterword.cli.progress import step_bar
from afterword.cli.releases import canary_flag, canary_of, channel_flag, channel_of, chosen, show_release
from afterword.cli.report_view import show_heatmap, show_metrics, show_verdict
from afterword.cli.server_state import running_server, served_model, served_name
from afterword.cli.watch_view import WatchView
from afterword.config import Config, CycleConfig, EvaluateConfig, ForecastConfig, ServeConfig, TrainConfig
from afterword.cycle import (
    Event,
    Failed,
    Postponed,
    Progress,
    Round,
    Settings,
    collect_stage,
    decide_stage,
    evaluate_stage,
    measure_stage,
    recipe_stage,
    run_cycle,
    select_stage,
    train_stage,
    watch,
)
from afterword.errors import ConflictError, GateRefused, NothingToDo, StoreError, UsageError
from afterword.feedback.collect.collect import Funnel
from afterword.feedback.select.review_queue import ReviewSettings
from afterword.feedback.select.select import SelectSettings
from afterword.feedback.settings import CollectSettings
from afterword.records import Candidate, Interaction, Report, SignalRatio, Turn, Verdict
from afterword.release.gate import GateThresholds, decide
from afterword.store import Store
from afterword.store.files import write_whole
from afterword.store.locks import WATCH, alone

MONITORS = {
    "Gradient norm before clipping": "grad_norm",
    "Signal: log-probability of the answer under the teacher over the student (nats a token)": "signal",
    "Entropy of the student (nats)": "entropy_student",
    "Entropy of the student over the teacher's (nats)": "entropy_gap",
    "Overlap of the likeliest tokens": "overlap",
    "Tokens of an answer": "length",
}
"""What a report's page shows of the training, beside the loss."""


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    collect = commands.add_parser("collect", parents=[common])
    collect.set_defaults(run=run_collect)

    measure = commands.add_parser("measure", parents=[common])
    measure.set_defaults(run=run_measure)

    train = commands.add_parser("train", parents=[common])
    train.add_argument("--recipe", dest="train.recipe", help="its name (default follow-ups)")
    train.add_argument("--lr", dest="train.learning_rate", type=float, help="learning rate (default: the recipe's)")
    train.add_argument("--epochs", dest="train.epochs", type=int, help="epochs (default: the recipe's)")
    train.add_argument("--passes", dest="train.passes", type=int, help=argparse.SUPPRESS)  # its name until 0.2
    train.add_argument("--seed", dest="train.seed", type=int, help="of order and initial values (default 0)")
    train.add_argument(
        "--max-interactions", dest="train.max_interactions", type=int, help="the newest are taken (default 512)"
    )
    train.add_argument(
        "--max-tokens", dest="train.max_tokens", type=int, metavar="N",
        help="exclude interactions with more tokens in prompt and answer",
    )  # fmt: skip
    train.add_argument(
        "--off-policy", dest="train.off_policy", action="store_true", default=None,
        help="also train on turns without served token ids (imported logs)",
    )  # fmt: skip
    train.add_argument(
        "--revise", dest="train.revise", choices=("off", "context", "target"),
        help="regenerate disliked answers: better ones are shown to the teacher, or imitated off-policy (sft)",
    )  # fmt: skip
    train.add_argument(
        "--dry-run", action="store_true", help="only print the training plan: interactions, users and exclusions"
    )
    train.set_defaults(run=run_train)

    evaluate = commands.add_parser("evaluate", parents=[common])
    evaluate.add_argument("candidate", nargs="?", help="default: the newest")
    evaluate.add_argument(
        "--suite", action="append", metavar="NAME",
        help="run only this suite, without a verdict; repeatable (docs/evaluation.md)",
    )  # fmt: skip
    evaluate.add_argument("--html", type=Path, metavar="FILE", help="also write the report as a page")
    evaluate.set_defaults(run=run_evaluate)

    cycle = commands.add_parser("cycle", parents=[common])
    cycle.add_argument("--watch", action="store_true", help="repeat whenever enough new interactions arrive")
    canary_flag(cycle)
    cycle.set_defaults(run=run_cycle_command)
    for stage in (train, evaluate, cycle):
        channel_flag(stage)

    heatmap = commands.add_parser("heatmap", parents=[common])
    heatmap.add_argument(
        "turn", nargs="?",
        help="its id or a prefix of it (default: the turn of the newest interaction with hindsight)",
    )  # fmt: skip
    heatmap.add_argument("--html", type=Path, metavar="FILE", help="write a page in place of coloured text")
    heatmap.add_argument("--text", metavar="WORDS", help="text in place of the user's next message")
    heatmap.add_argument("--control", metavar="WORDS", help="control text in place of a message about another answer")
    heatmap.set_defaults(run=run_heatmap)


def _dry_settings(context: CommandContext) -> Settings:
    """As for a run; without a model where the upstream does not say which it serves."""
    try:
        return stage_settings(context)
    except UsageError as error:
        if error.param != "serve.model":
            raise
        context.say(f"[yellow]not checked against the model:[/] {escape(error.message)}")
        return replace(stage_settings(context, model=False), model="")


def stage_settings(context: CommandContext, *, model: bool = True) -> Settings:
    """Settings of the stages; `model` False for one that needs none, so that the running server is not asked."""
    config = context.config
    serve = config.get(ServeConfig)
    server = running_server(context.dir)
    return Settings(
        directory=context.dir,
        model=served_model(context) if model else serve.model,
        name=served_name(context),
        engine=server["upstream"] if server and serve.upstream is None else serve.upstream,
        device=serve.device,
        dtype=serve.dtype,
        collect=config.get(CollectSettings),
        select=config.get(SelectSettings),
        review=config.get(ReviewSettings),
        train=_train_config(config),
        evaluate=config.get(EvaluateConfig),
        gate=config.get(GateThresholds),
        forecast=config.get(ForecastConfig),
        channel=channel_of(context),
        canary=canary_of(context),
    )


def _train_config(config: Config) -> TrainConfig:
    """What was private when it was collected is private when it is trained."""
    train = config.get(TrainConfig)
    if train.redact is not None or "redact" in train.options:
        return train
    return replace(train, redact=config.get(CollectSettings).redact)


def stage_progress(context: CommandContext) -> Progress:
    """Bars and notes on stderr."""
    return Progress(
        bar=lambda title, unit: step_bar(context, title, unit),
        note=lambda text: context.say(f"[dim]{escape(text)}[/]"),
    )


def run_collect(context: CommandContext) -> int:
    """Decide about new feedback and print the funnel."""
    with context.open_store() as store:
        settings = stage_settings(context, model=False)
        funnel = collect_stage(store, settings, stage_progress(context))
        if context.json:
            context.emit(funnel.to_dict())
            return 0
        for depth, name, number in _funnel_rows(funnel):
            context.out.print(f"{'  ' * depth}{number:>7}  {escape(name)}")
        if advised := next_training(store, settings):
            context.say(advised)
        elif funnel.train:
            context.say("Too few interactions wait to be learned; `afterword train --dry-run` says why.")
    return 0


def run_measure(context: CommandContext) -> int:
    """Score every interaction that has no score yet, and print how the ratios lie."""
    with context.open_store() as store:
        fresh = measure_stage(store, stage_settings(context), stage_progress(context))
        ratios = sorted(row.ratio for row in store.rows(SignalRatio))
    if not ratios:
        raise NothingToDo("there is no interaction with words to measure: run `afterword collect` first")
    least = context.config.get(SelectSettings).min_signal
    figures: dict[str, float] = {
        "measured": fresh,
        "all": len(ratios),
        "below_min_signal": sum(r < least for r in ratios),
    }
    figures |= {f"p{q}": round(ratios[min(len(ratios) * q // 100, len(ratios) - 1)], 4) for q in (10, 50, 90)}
    if context.json:
        context.emit(figures)
    else:
        context.table("signal under the user's words / under other words", ("figure", "value"), figures.items())
    return 0


def _funnel_rows(funnel: Funnel) -> list[tuple[int, str, int]]:
    """(indent, what, how many): each level splits the one above it."""
    rows = [(0, "turns captured", funnel.captured), (0, "new feedback looked at", funnel.feedback)]
    rows += [(1, "became part of an interaction", funnel.kept)]
    rows += [(1, f"skipped: {reason}", number) for reason, number in funnel.skipped.most_common()]
    rows += [(1, f"waiting: {reason}", number) for reason, number in funnel.waiting.most_common()]
    rows += [(0, "new interactions", funnel.interactions), (1, "to train on", funnel.train)]
    rows += [(1, "held out", funnel.holdout)]
    rows += [(0, "of them only say yes (nothing to distil)", funnel.without_hindsight)]
    rows += [(0, "of them without served token ids", funnel.off_policy)]
    return [*rows, (0, "feedback held until its turn is known", funnel.held)]


def run_train(context: CommandContext) -> int:
    """Train a candidate on new interactions."""
    with context.open_store() as store:
        if context.args.dry_run:
            settings = _dry_settings(context)
            recipe = recipe_stage(settings)
            show_selection(context, store, select_stage(store, settings), settings, recipe)
            return 0
        candidate = train_stage(store, stage_settings(context), stage_progress(context))
    if os.environ.get("RANK", "0") == "0":  # of several processes that train together one speaks
        _show_candidate(context, candidate)
    return 0


def _show_candidate(context: CommandContext, candidate: Candidate) -> None:
    if context.json:
        context.emit(candidate.to_dict())
        return
    figures = {k: v for k, v in candidate.metrics.items() if isinstance(v, int | float | str)}
    context.table(
        f"candidate {candidate.id}", ("figure", "value"),
        [("adapter", context.dir / candidate.path), ("interactions", len(candidate.interactions)),
         ("parent", candidate.parent or "base"), *figures.items()],
    )  # fmt: skip
    context.say("Next: `afterword evaluate`.")


def run_evaluate(context: CommandContext) -> int:
    """Measure, decide, print; exit 3 when the gate says no. With --suite the verdict covers those suites alone and is
    only shown, not stored.
    """
    suites, settings = context.args.suite, stage_settings(context)
    if suites and context.args.html:
        raise UsageError("--html shows a whole report with its verdict: leave out --suite, or take --json.")
    with context.open_store() as store:
        candidate = chosen(context, store)
        report = evaluate_stage(store, candidate, settings, stage_progress(context), suites=suites)
        if suites:
            verdict = decide(report, replace(settings.gate, required=()))
        else:
            verdict = decide_stage(store, report, settings)
        if context.args.html:
            _write_page(context, store, context.args.html, candidate, report, verdict)
    if context.json:
        context.emit({"report": report.to_dict(), "verdict": verdict.to_dict()})
    else:
        show_metrics(context, report)
        show_verdict(context, verdict, "bounds of these suites" if suites else "verdict")
    return 0 if verdict.passed or not verdict.reasons else GateRefused.exit_code


def _write_page(
    context: CommandContext, store: Store, path: Path, candidate: Candidate, report: Report, verdict: Verdict
) -> None:
    from afterword.evaluate.report.report_html import render_report
    from afterword.train.monitoring.metrics import read_metrics

    steps = read_metrics(context.dir / "runs" / candidate.id)
    watched = {name: [float(getattr(step, key)) for step in steps] for name, key in MONITORS.items()}
    sections = predicted_section(store, candidate)
    page = render_report(
        candidate, report, verdict, sections=sections, losses=[step.loss for step in steps], monitors=watched
    )
    write_whole(path, page)
    context.say(f"report written to {path}")


def run_cycle_command(context: CommandContext) -> int:
    """Run one round, or with --watch one after another."""
    if context.args.watch:
        return _watch(context)
    with context.open_store() as store:
        result = run_cycle(store, stage_settings(context), stage_progress(context))
    if context.json:
        context.emit(result.to_dict())
    else:
        show_verdict(context, result.verdict)
        if result.release:
            show_release(context, result.release)
    return 0 if result.release else GateRefused.exit_code


def _watch(context: CommandContext) -> int:
    when, least = context.config.get(CycleConfig), context.config.get(SelectSettings).min_effective
    with context.open_store(create=True) as store, _seen_as_watch(context):
        view = WatchView(context, when.interval)
        events = watch(store, partial(stage_settings, context), when, view.progress(stage_progress(context)))
        context.say(
            f"watching: a round starts at {when.min_new} new interactions, of tasks with an effective number of "
            f"{least:g} or more (Ctrl-C stops)"
        )
        with view:
            for event in events:
                view.show(event)
                _show_event(context, event)
    return 0


@contextmanager
def _seen_as_watch(context: CommandContext) -> Iterator[None]:
    """Others see that a watch runs. A second one on the directory works, too, and is told of the first."""
    with ExitStack() as held:
        try:
            held.enter_context(alone(context.dir, WATCH, "cycle --watch"))
        except (ConflictError, StoreError) as error:
            context.say(f"[yellow]warning:[/] {escape(error.message)}")
        yield


def _show_event(context: CommandContext, event: Event) -> None:
    match event:
        case Round() if context.json:
            context.emit(event.to_dict())
        case Round():
            show_verdict(context, event.verdict)
        case Postponed():
            context.say(f"[yellow]this round waits:[/] {escape(event.error.message)}")
        case Failed():
            context.say(f"[yellow]this round ended:[/] {escape(event.error.message)}")


def run_heatmap(context: CommandContext) -> int:
    """Token advantages of a turn under what the user wrote next (or --text), with other words as the control."""
    from afterword.evaluate.report.heatmap import (
        ControlText,
        control_for,
        heatmap_html,
        measure_heatmap,
        stored_row,
    )

    page: Path | None = context.args.html
    if page is not None and (page.is_dir() or not page.absolute().parent.is_dir()):
        raise UsageError(f"cannot write {str(page)!r}: name a file in an existing folder", param="html")
    with context.open_store() as store:
        turn = store.get(Turn, context.args.turn or _newest_turn(store))
        told = None if context.args.text else _hindsight(store, turn)
        hindsight = told.hindsight if told else context.args.text
        given = context.args.control
        control = ControlText(given) if given else control_for(store, turn, hindsight)
    model = served_model(context)
    measured = measure_heatmap(turn, hindsight, control.text if control else None, model=model)
    if told is not None and not given:
        try:
            with context.open_store() as store:
                store.write(stored_row(measured, told.id, control, model))
        except StoreError as error:  # a folder that cannot be written; the map is shown all the same
            context.say(f"[yellow]not kept for the console:[/] {escape(error.message)}")
    if page is not None:
        write_whole(page, heatmap_html(measured))
        context.say(f"heat map written to {escape(str(page))}")
    if context.json:
        context.emit(measured.to_dict())
    elif page is None:
        show_heatmap(context, measured)
    return 0


def _newest_turn(store: Store) -> str:
    """The turn of the newest interaction with hindsight."""
    found = next((row.turn for row in store.rows(Interaction, newest=True) if row.hindsight), None)
    if found is None:
        raise NothingToDo(
            "there is no interaction with hindsight: run `afterword collect` after a user's reaction, or name a turn "
            "and say with --text what a user might have written."
        )
    return found


def _hindsight(store: Store, turn: Turn) -> Interaction:
    found = next((i for i in store.rows(Interaction, turn=turn.id) if i.hindsight), None)
    if found is None:
        raise NothingToDo(
            f"turn {turn.id} has no interaction with hindsight. Run `afterword collect`, see `afterword turns show "
            f"{turn.id}` for what became of its feedback, or say with --text what a user might have written."
        )
    return found
