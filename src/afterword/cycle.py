"""Runs the loop: collect, measure, select, train, evaluate, decide, publish; once (`run_cycle`) or on and on (`watch`).

Each stage reads rows and writes one later kind of row; the gateway sees the Release row and swaps the adapter. The
caller shows progress and events. Modules that need torch are imported when their stage begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from afterword.config import CycleConfig, EvaluateConfig, ForecastConfig, TrainConfig, trains_episodes
from afterword.errors import (
    AfterwordError,
    ConflictError,
    ModelError,
    NothingToDo,
    StoreError,
    UpstreamError,
    UsageError,
)
from afterword.feedback.collect.collect import Funnel, collect
from afterword.feedback.collect.workers import processes
from afterword.feedback.select.plan import plan_training
from afterword.feedback.select.review_queue import ReviewSettings
from afterword.feedback.select.select import Selection, SelectSettings, select
from afterword.feedback.settings import CollectSettings
from afterword.records import (
    Candidate,
    Interaction,
    Json,
    Prediction,
    Release,
    Report,
    RoundAttempt,
    TrainingPlan,
    Verdict,
    WorkRequest,
    content_hash,
    new_id,
)
from afterword.release.gate import GateThresholds, decide, undecided
from afterword.release.publish import publish, start_canary
from afterword.release.settings import CanarySettings
from afterword.sampling import start_engine
from afterword.store import Store
from afterword.store.channels import covers
from afterword.store.locks import EVALUATE, alone, cycle_lock


class Advance(Protocol):
    """Reports how far a stage is."""

    def __call__(self, done: int, total: int | None, step: str = "") -> None:
        """`done` of `total` (None: unknown), in the part of the stage that `step` names."""


def _no_advance(done: int, total: int | None, step: str = "") -> None:
    """Reports nothing."""


GROWTH, LOOKS = 1.25, 4
"""An undecided candidate is judged again when so many times more interactions are held out; so often in all."""
FORECASTING = "forecasting"
"""The stage that may skip a round."""
RETRY_AFTER = 3600.0
"""Seconds until `watch` tries interactions again whose round failed because of a model server or the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a round; the defaults are the vetted ones."""

    directory: Path
    """Data directory."""
    model: str = "smollm2-135m-instruct"
    """Base model: built-in name, folder or hub id."""
    name: str = "afterword"
    """Versions are NAME@v000001 and so on."""
    channel: str = "default"
    engine: str | None = None
    """A running model server that can load adapters; None starts one for the evaluation."""
    device: str = "auto"
    dtype: str = "auto"
    collect: CollectSettings = field(default_factory=CollectSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    review: ReviewSettings = field(default_factory=ReviewSettings)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    gate: GateThresholds = field(default_factory=GateThresholds)
    forecast: ForecastConfig = field(default_factory=ForecastConfig)
    canary: CanarySettings | None = None
    """Release to a share of the users first; None releases to everyone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Receives the progress of the stages: `bar(title, unit)` gives a context with a function (done, total)."""

    bar: Callable[[str, str], AbstractContextManager[Advance]] = lambda *_: nullcontext(_no_advance)
    note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Rows that one round made; `release` is None when the gate rejected the candidate."""

    funnel: Funnel
    candidate: Candidate
    report: Report
    verdict: Verdict
    release: Release | None

    def to_dict(self) -> Json:
        """All rows, JSON-compatible."""
        rows = (self.candidate, self.report, self.verdict, self.release)
        names = ("candidate", "report", "verdict", "release")
        return {"funnel": self.funnel.to_dict()} | {
            name: row.to_dict() if row else None for name, row in zip(names, rows, strict=True)
        }


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """`watch` looked at the store. A round starts when `new` reaches `needed` and no canary runs."""

    new: int
    """Interactions of ready slices that no round has tried yet."""
    needed: int
    not_ready: int
    """Interactions of slices without enough signal."""
    canary: str | None
    """Adapter of the running canary."""


@dataclass(frozen=True, slots=True)
class Postponed:
    """Another process works on the data directory; the next look tries the same interactions again."""

    error: ConflictError


@dataclass(frozen=True, slots=True)
class Failed:
    """The round failed; `attempt` keeps the same interactions from starting another one, after a restart too unless
    it could not be stored."""

    error: AfterwordError
    attempt: RoundAttempt


Event = WatchStatus | Round | Postponed | Failed


class SettingsSource(Protocol):
    """Reads the settings of the next look; with `model` it may ask the running server which model it serves."""

    def __call__(self, *, model: bool) -> Settings: ...


def run_cycle(store: Store, settings: Settings, progress: Progress | None = None) -> Round:
    """Run one round on everything that is new. A candidate that the gate rejects is a round without a release. Where
    nothing is new to train, a candidate that the gate left undecided is judged again.

    Raises:
        NothingToDo: A canary runs, or too few interactions wait.
        ConflictError: Another process runs a cycle on the channel, a training or an evaluation.
    """
    if (canary := store.canary(settings.channel)) is not None:
        raise NothingToDo(f"the canary of {canary.adapter} runs: the next round starts after its decision")
    recipe_stage(settings)
    with _working(settings, progress or Progress()) as work:
        funnel = collect_stage(store, settings, work.progress)
        _measure_if_needed(store, settings, work.progress)
        try:
            return _learn(store, settings, work.progress, funnel, select_stage(store, settings))
        except NothingToDo:
            if (candidate := undecided_candidate(store, settings)) is None:
                raise
            return _judge(store, settings, work.progress, funnel, candidate)


def watch(store: Store, settings: SettingsSource, when: CycleConfig, progress: Progress) -> Iterator[Event]:
    """Run a round whenever `when.min_new` new interactions wait in ready slices; look every `when.interval` seconds.

    Yields:
        A WatchStatus for each look, then the Round, Postponed or Failed of a round that began.

    Raises:
        UsageError: The recipe cannot be trained; raised by this call, before the first look.
    """
    recipe_stage(settings(model=False))
    return _watch(store, settings, when, progress)


def _watch(store: Store, settings: SettingsSource, when: CycleConfig, progress: Progress) -> Iterator[Event]:
    unstored: list[RoundAttempt] = []
    looked: set[tuple[str, int]] = set()
    while True:
        now = settings(model=False)
        outcome = _outcome_hash(now)
        if now.select.min_signal > 0:  # measuring needs the model; nothing else does before the round
            now = settings(model=True)
        funnel = collect_stage(store, now, progress)
        _measure_if_needed(store, now, progress)
        selection = select_stage(store, now, ready=True)
        new = (
            selection.worded
            - trained_on(store)
            - _attempted(store, outcome, unstored, forecast=now.forecast.before_cycle)
        )
        _serve_requests(store, settings, progress)
        canary = store.canary(now.channel)
        yield WatchStatus(len(new), when.min_new, selection.left["other_slice"], canary.adapter if canary else None)
        if canary is None and len(new) >= when.min_new:
            attempt = RoundAttempt(id=new_id("att"), settings=outcome, interactions=tuple(sorted(selection.worded)))
            event = _round_of_watch(store, settings, progress, funnel, selection, attempt)
            if isinstance(event, Failed) and store.find(RoundAttempt, event.attempt.id) is None:
                unstored.append(event.attempt)
            yield event
        elif canary is None and (waiting := undecided_candidate(store, now)) is not None:
            look = (waiting.id, store.count(Interaction, split="holdout"))
            if look not in looked:  # a look that failed is tried again when there is more to see
                looked.add(look)
                yield _look_again(store, settings, progress, funnel, waiting)
        time.sleep(when.interval)


def _serve_requests(store: Store, settings: SettingsSource, progress: Progress) -> None:
    """Score the answers for which somebody asked in the console; without requests no model is loaded."""
    if next(store.rows(WorkRequest, kind="heatmap", limit=1), None) is None:
        return
    from afterword.evaluate.report.heatmap import measure_requested

    try:
        now = settings(model=True)
        with progress.bar("heat maps", "answers"):
            measure_requested(store, model=now.model, device=now.device)
    except (ModelError, UsageError) as error:
        progress.note(f"heat maps cannot be measured: {error.message}")


def _look_again(
    store: Store, settings: SettingsSource, progress: Progress, funnel: Funnel, candidate: Candidate
) -> Event:
    """Judge an undecided candidate again; a failure is not remembered in the store."""
    try:
        now = settings(model=True)
        with _working(now, progress) as work:
            return _judge(store, now, work.progress, funnel, candidate)
    except ConflictError as error:
        return Postponed(error)
    except AfterwordError as error:
        attempt = RoundAttempt(
            id=new_id("att"), settings=_outcome_hash(now), interactions=(), candidate=candidate.id, error=error.kind
        )
        return Failed(error, attempt)


def _round_of_watch(
    store: Store,
    settings: SettingsSource,
    progress: Progress,
    funnel: Funnel,
    selection: Selection,
    attempt: RoundAttempt,
) -> Event:
    """Learn from the selection of the look; store the attempt with its outcome."""
    stage = ""
    try:
        now = settings(model=True)
        with _working(now, progress) as work:
            try:
                made = _learn(store, now, work.progress, funnel, selection)
            finally:
                stage = work.stage
    except ConflictError as error:
        return Postponed(error)
    except AfterwordError as error:
        passing = isinstance(error, UpstreamError | StoreError)
        attempt = replace(attempt, created_at=time.time(), stage=stage, error=error.kind, transient=passing)
        with suppress(StoreError):  # of a full disk, which is then the error of the round as well
            store.write(attempt)
        return Failed(error, attempt)
    learned = _learned(now.directory, made.candidate, attempt)
    store.write(replace(attempt, candidate=made.candidate.id, interactions=learned))
    return made


def _learned(directory: Path, candidate: Candidate, attempt: RoundAttempt) -> tuple[str, ...]:
    """The interactions that the run dealt with: of a killed run that the round finished, only the planned ones."""
    from afterword.train.run_state import read_run, run_folder

    run = read_run(run_folder(directory, candidate.id))
    if run is None or run.started_at >= attempt.created_at:
        return attempt.interactions
    return tuple(name for name in attempt.interactions if name in set(run.plan.interactions))


def _attempted(store: Store, outcome: str, unstored: Sequence[RoundAttempt], *, forecast: bool) -> set[str]:
    """Interactions that started a round under settings with this hash, of stored and `unstored` attempts.

    Rounds whose candidate learned from a user erased since do not count; failures of a model server or the database
    count for `RETRY_AFTER` seconds. Rounds that the forecast skipped count while it is asked.
    """
    gone, now = store.tainted(), time.time()
    return {
        name
        for row in (*store.rows(RoundAttempt, settings=outcome), *unstored)
        if row.settings == outcome and row.candidate not in gone
        if not row.transient or now - row.created_at < RETRY_AFTER
        if forecast or row.stage != FORECASTING
        for name in row.interactions
    }


def _outcome_hash(settings: Settings) -> str:
    """Hash of the channel and of the settings that decide how a round ends; without keys of servers."""
    evaluate = asdict(settings.evaluate) | {"judge_key": None}
    return content_hash(settings.channel, settings.model, asdict(settings.train), evaluate)


def trained_on(store: Store) -> set[str]:
    """Interactions that some candidate was trained on, whatever the gate decided. After an erasure its candidates do
    not count, so that the interactions of other users are learned again."""
    gone = store.tainted()
    return {name for row in store.rows(Candidate) if row.id not in gone for name in row.interactions}


def undecided_candidate(store: Store, settings: Settings) -> Candidate | None:
    """The newest candidate, if the gate said no for want of held-out interactions and there are `GROWTH` times as many
    now; at most `LOOKS` times (`evaluate.stats.group_sequential.level_of_look` keeps the error rate)."""
    report = store.newest(Report)
    candidate = store.find(Candidate, report.candidate) if report else None
    newest = store.newest(Candidate)
    release = store.release(settings.channel)
    if report is None or candidate is None or newest is None or newest.id != candidate.id:
        return None
    seen = set(report.about.get("held_out", ()))
    verdicts = list(store.rows(Verdict, report=report.id))
    judged = seen and verdicts and not any(verdict.passed or verdict.override for verdict in verdicts)
    same_served = report.against == (release.candidate if release else None)
    if not judged or not same_served or candidate.id in store.tainted() or report.about.get("look", 1) >= LOOKS:
        return None
    if not undecided(report, settings.gate):
        return None
    now = sum(
        covers(settings.channel, user=row.user, team=row.team, task=row.task) and row.id not in seen
        for row in store.usable("holdout")
    )
    return candidate if now >= (GROWTH - 1) * len(seen) else None


def _learn(store: Store, settings: Settings, progress: Progress, funnel: Funnel, selection: Selection) -> Round:
    """Predict, train, evaluate, decide and release."""
    prediction = forecast_stage(store, settings, progress, selection)
    candidate = train_stage(store, settings, progress, selection)
    made = _judge(store, settings, progress, funnel, candidate)
    if prediction is not None:
        from afterword.forecast.outcomes import outcome_of

        store.write(outcome_of(prediction, candidate, made.report, made.verdict))
    return made


def _judge(store: Store, settings: Settings, progress: Progress, funnel: Funnel, candidate: Candidate) -> Round:
    """Evaluate, decide and release."""
    report = evaluate_stage(store, candidate, settings, progress)
    verdict = decide_stage(store, report, settings)
    release = release_stage(store, candidate, verdict, settings) if verdict.passed else None
    return Round(funnel=funnel, candidate=candidate, report=report, verdict=verdict, release=release)


@dataclass(slots=True)
class _Work:
    """A round that runs: `progress` notes each stage in the lock, where `status` reads it."""

    progress: Progress
    stage: str = "starting"


@contextmanager
def _working(settings: Settings, progress: Progress) -> Iterator[_Work]:
    with alone(settings.directory, cycle_lock(settings.channel), "a cycle") as note_stage:

        def bar(title: str, unit: str) -> AbstractContextManager[Advance]:
            work.stage = title
            note_stage(title)
            return progress.bar(title, unit)

        work = _Work(Progress(bar=bar, note=progress.note))
        yield work


def recipe_stage(settings: Settings) -> Json:
    """The recipe that a training would take, described; ConfigError for one that cannot be trained."""
    from afterword.learn.recipes import describe
    from afterword.learn.recipes.from_config import recipe_of

    described: Json = describe(recipe_of(settings.train))
    return described


def collect_stage(store: Store, settings: Settings, progress: Progress | None = None) -> Funnel:
    """Turns and Feedback -> Interactions and Skips."""
    with (progress or Progress()).bar("collecting", "rows of feedback") as advance:
        # No total: counting the undecided rows takes as long as reading them.
        return collect(store, settings.collect, progress=lambda rows: advance(rows, None), processes=processes())


def _measure_if_needed(store: Store, settings: Settings, progress: Progress) -> None:
    """Measure when the selection asks for a least signal."""
    if settings.select.min_signal > 0:
        measure_stage(store, settings, progress)


def measure_stage(store: Store, settings: Settings, progress: Progress) -> int:
    """Interactions -> Relevances: the model's signal under the user's words and under control texts.

    Returns:
        Number of new Relevances.
    """
    from afterword.evaluate import signal_ratio

    with progress.bar("measuring", "steps") as advance:
        return signal_ratio.measure_stage(store, model=settings.model, device=settings.device, progress=advance)


def select_stage(store: Store, settings: Settings, *, ready: bool = False) -> Selection:
    """Select the interactions to learn from; with `ready` only slices with enough interpretable signal."""
    episodes = trains_episodes(settings.train)
    selection = select(store, settings.select, settings.review, channel=settings.channel, episodes=episodes)
    waiting = [one.task for one in selection.slices if not one.ready(settings.select)]
    if ready and waiting:
        tasks = [one.task for one in selection.slices if one.task not in waiting]
        return select(store, settings.select, settings.review, channel=settings.channel, tasks=tasks, episodes=episodes)
    return selection


def plan_stage(
    store: Store, settings: Settings, selection: Selection | None = None, start: Candidate | None = None
) -> TrainingPlan:
    """The plan of the next training; raises NothingToDo, see `plan_training`. Nothing is written.

    It goes on from `start`, or from the adapter that is served.
    Without a model in `settings` nothing is encoded: the plan counts, but knows no exclusions.
    """
    from afterword.train.stage import StoreEncoder

    encoder = StoreEncoder(store, settings.train, settings.model)
    selection = selection or select_stage(store, settings)
    return plan_training(store, settings.train, selection, channel=settings.channel, encoder=encoder, start=start)


def forecast_stage(
    store: Store, settings: Settings, progress: Progress, selection: Selection | None = None
) -> Prediction | None:
    """Predict the gain of a round; None without a calibration, and where a killed run is to be finished.

    Raises:
        NothingToDo: The round is hopeless, or nothing can be trained.
    """
    from afterword.forecast.points import known_points
    from afterword.train.run_state import interrupted_run

    points = known_points(settings.directory) if settings.forecast.before_cycle else []
    if not settings.forecast.before_cycle or interrupted_run(store, settings.directory) is not None:
        return None
    if not points:
        progress.note("no prediction: no calibration is known (`afterword forecast calibrate` measures one)")
        return None
    from afterword.forecast.predict import skip_reason
    from afterword.forecast.stored import NoPrediction, predict_round

    plan = plan_stage(store, settings, selection)
    rows = store.usable("holdout")
    heldout = sum(covers(settings.channel, user=row.user, team=row.team, task=row.task) for row in rows)
    with progress.bar(FORECASTING, "steps") as advance:
        found = predict_round(
            store,
            settings.directory,
            plan,
            points,
            settings.forecast,
            settings.evaluate,
            heldout=min(heldout, settings.evaluate.max_interactions),
            device=settings.device,
            advance=advance,
        )
    if isinstance(found, NoPrediction):
        progress.note(f"no prediction: {found.why}")
        return None
    store.write(found)
    progress.note(found.says)
    why = skip_reason(found.advice, found.gate_probability, settings.forecast.least_probability)
    if why is not None:
        raise NothingToDo(
            f"the round is skipped: {found.says}; {why}. `--set forecast.before_cycle=false` trains anyway"
        )
    return found


def train_stage(
    store: Store,
    settings: Settings,
    progress: Progress,
    selection: Selection | None = None,
    start: Candidate | None = None,
) -> Candidate:
    """Interactions -> Candidate, which goes on from `start` or from the adapter that is served."""
    from afterword.train import stage

    with progress.bar("training", "steps") as advance:
        return stage.train_stage(
            store,
            settings.directory,
            lambda: plan_stage(store, settings, selection, start),
            device=settings.device,
            progress=lambda metrics: advance(metrics.step, metrics.steps),
            note=progress.note,
        )


def evaluate_stage(store: Store, candidate: Candidate, settings: Settings, progress: Progress, **extra: Any) -> Report:
    """Candidate -> Report, paired with the adapter that is served now."""
    from afterword.evaluate import stage

    suites = extra.get("suites") or settings.evaluate.suites
    stage.require_work(store, candidate, suites, settings.channel)
    folds = fold_stage(store, candidate, settings, progress) if "holdout" in suites else {}
    with (
        alone(settings.directory, EVALUATE, "an evaluation"),
        model_server(settings) as url,
        progress.bar("evaluating", "steps") as advance,
    ):
        return stage.evaluate_stage(
            store,
            settings.directory,
            candidate,
            settings.evaluate,
            engine=url,
            channel=settings.channel,
            progress=lambda step, done, total: advance(done, total, step),
            folds=folds,
            limits={name: limit for name, limit in vars(settings.gate).items() if name != "required"},
            **extra,
        )


def fold_stage(
    store: Store, candidate: Candidate, settings: Settings, progress: Progress
) -> dict[Path, tuple[str, ...]]:
    """The adapters of cross-fitting with their training interactions; none unless `evaluate.folds` is set."""
    if not settings.evaluate.folds:
        return {}
    from afterword.train.folds import train_folds

    with progress.bar("cross-fitting", "steps") as advance:
        return train_folds(
            store,
            settings.directory,
            candidate,
            settings.evaluate.folds,
            device=settings.device,
            progress=lambda metrics: advance(metrics.step, metrics.steps),
            note=progress.note,
        )


def decide_stage(store: Store, report: Report, settings: Settings) -> Verdict:
    """Report -> Verdict."""
    verdict = decide(report, settings.gate)
    store.write(verdict)
    return verdict


def release_stage(store: Store, candidate: Candidate, verdict: Verdict, settings: Settings) -> Release:
    """Verdict -> Release, to everyone or to a share of the users first."""
    if settings.canary is None:
        return publish(store, candidate, verdict, settings.channel, settings.name)
    return start_canary(store, candidate, verdict, settings.canary, settings.channel, settings.name)


@contextmanager
def model_server(settings: Settings) -> Iterator[str]:
    """Give the URL of the model server of both arms: the running one, or one that is started for the evaluation."""
    if settings.engine is not None:
        yield settings.engine
        return
    log = settings.directory / "logs" / "evaluate-engine.log"
    with start_engine(
        settings.model, device=settings.device, dtype=settings.dtype, log_path=log, extra=["--background"]
    ) as engine:
        yield engine.url
