"""The loop in one place: collect -> train -> evaluate -> decide -> publish. The table of contents of the system.

Each stage reads rows and writes one later kind of row; they meet only in the store. The gateway sees the Release
row by itself and swaps the adapter while it serves. Rooms that need torch are imported when their stage begins, so
that a server can import this module without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afterword.config import EvaluateConfig, TrainConfig
from afterword.errors import NothingToDo
from afterword.feedback.collect.collect import collect
from afterword.feedback.collect.funnel import Funnel
from afterword.feedback.collect.workers import processes
from afterword.feedback.select.review_queue import ReviewSettings
from afterword.feedback.select.select import Selection, SelectSettings, select
from afterword.feedback.settings import CollectSettings
from afterword.records import Candidate, Json, Release, Report, Verdict
from afterword.release.gate import GateThresholds, decide
from afterword.release.publish import publish, start_canary
from afterword.release.settings import CanarySettings
from afterword.sampling import start_engine
from afterword.store import Store
from afterword.store.locks import EVALUATE, alone

Advance = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a round needs to know; the defaults are the vetted setting."""

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
    canary: CanarySettings | None = None
    """Release to a share of the users first; None releases to everyone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a stage tells how far it is: `bar(title, unit)` gives a context with a function (done, total)."""

    bar: Callable[[str, str], AbstractContextManager[Advance]] = lambda *_: nullcontext(lambda done, total: None)
    note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round made; `release` is None when the gate said no."""

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


def run_cycle(
    store: Store, settings: Settings, progress: Progress | None = None, selection: Selection | None = None
) -> Round:
    """One round. NothingToDo says what is missing; a "no" of the gate is a round without a release."""
    progress = progress or Progress()
    running = store.canary(settings.channel)
    if running is not None:
        raise NothingToDo(f"the canary of {running.adapter} runs: the next round begins when it is decided")
    recipe_stage(settings)
    funnel = collect_stage(store, settings, progress)
    _measured(store, settings, progress)
    candidate = train_stage(store, settings, progress, selection)
    report = evaluate_stage(store, candidate, settings, progress)
    verdict = decide_stage(store, report, settings)
    release = None
    if verdict.passed:
        release = release_stage(store, candidate, verdict, settings)
    return Round(funnel=funnel, candidate=candidate, report=report, verdict=verdict, release=release)


def next_round(store: Store, settings: Settings, progress: Progress) -> Selection:
    """What a round could learn now, of slices with enough interpretable signal only; decides what came in before."""
    collect_stage(store, settings, progress)
    _measured(store, settings, progress)
    return select_stage(store, settings, ready=True)


def _measured(store: Store, settings: Settings, progress: Progress) -> None:
    if settings.select.min_signal > 0:
        measure_stage(store, settings, progress)


def recipe_stage(settings: Settings) -> Json:
    """The recipe that a training would take, described; ConfigError for one that cannot be trained."""
    from afterword.learn.recipes import describe
    from afterword.learn.recipes.from_config import checked

    made = checked(settings.train)
    if settings.train.revise != "off":
        from afterword.train.generation.revise import check_revision

        check_revision(settings.train.revise, made)
    if made.verifier:
        from afterword.train.generation.generation import load_verifier

        load_verifier(made.verifier)
    described: Json = describe(made)
    return described


def collect_stage(store: Store, settings: Settings, progress: Progress | None = None) -> Funnel:
    """Turns and Feedback -> Interactions and Skips."""
    with (progress or Progress()).bar("collecting", "rows of feedback") as advance:
        # Of how many is not told: to count the undecided takes as long as to read them.
        return collect(store, settings.collect, progress=lambda rows: advance(rows, None), processes=processes())


def measure_stage(store: Store, settings: Settings, progress: Progress) -> int:
    """Interactions -> Relevances: the model's own signal under the user's words and under others; how many."""
    from afterword.evaluate import relevance

    with progress.bar("measuring", "steps") as advance:
        return relevance.measure_stage(store, model=settings.model, device=settings.device, progress=advance)


def select_stage(store: Store, settings: Settings, *, ready: bool = False) -> Selection:
    """Which interactions may be learned now; with `ready` only those of slices with enough interpretable signal."""
    found = select(store, settings.select, settings.review, channel=settings.channel)
    waiting = [one.task for one in found.slices if not one.ready(settings.select)]
    if ready and waiting:
        tasks = [one.task for one in found.slices if one.task not in waiting]
        return select(store, settings.select, settings.review, channel=settings.channel, tasks=tasks)
    return found


def train_stage(store: Store, settings: Settings, progress: Progress, selection: Selection | None = None) -> Candidate:
    """Interactions -> Candidate."""
    from afterword.train import stage

    selection = selection or select_stage(store, settings)
    with progress.bar("training", "steps") as advance:
        return stage.train_stage(
            store,
            settings.directory,
            settings.train,
            model=settings.model,
            channel=settings.channel,
            device=settings.device,
            weights=selection.weights,
            selection=selection.to_dict(),
            progress=lambda metrics: advance(metrics.step, metrics.steps),
            note=progress.note,
        )


def evaluate_stage(store: Store, candidate: Candidate, settings: Settings, progress: Progress, **extra: Any) -> Report:
    """Candidate -> Report, paired with what is served now."""
    from afterword.evaluate import stage

    stage.require_work(store, candidate, extra.get("suites") or settings.evaluate.suites, settings.channel)
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
            progress=advance,
            **extra,
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
    """URL of the model server that answers for both arms: the running one, or one for as long as it is needed."""
    if settings.engine is not None:
        yield settings.engine
        return
    log = settings.directory / "logs" / "evaluate-engine.log"
    with start_engine(settings.model, device=settings.device, dtype=settings.dtype, log_path=log) as engine:
        yield engine.url
