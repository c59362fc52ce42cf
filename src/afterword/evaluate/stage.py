"""Evaluates a candidate of the store: Candidate row in, one Report row out, nothing else written.

Chooses the rows that are measured and the place of the cache; `run` measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from afterword.config import EvaluateConfig
from afterword.errors import NothingToDo
from afterword.evaluate.comparison.comparison import Check, Progress
from afterword.evaluate.comparison.heldout import (
    CONVERSATIONS,
    ContextFit,
    HeldOut,
    earlier_wins,
    held_out,
    require,
    silent_prompts,
    trained_on,
)
from afterword.evaluate.comparison.substitutes import Substitute, from_earlier_round, from_folds
from afterword.evaluate.run import chosen, evaluate_candidate
from afterword.evaluate.stats.group_sequential import level_of_look
from afterword.model.loading import load_tokenizer, model_sizes, resolve_model
from afterword.records import Candidate, Report
from afterword.sharing import BACKGROUND
from afterword.store import Store

CACHE = "cache/evaluate"
"""Below the data directory; may be deleted at any time."""
UNSEEN = 128
"""Interactions that substitutes are measured on, at most."""
TRAINED = 512
"""Training interactions that are searched for what must not come out."""


def require_work(store: Store, candidate: Candidate, suites: Iterable[str], channel: str = "default") -> None:
    """NothingToDo or UsageError before a model server is started for nothing."""
    names = chosen(suites)
    _served(store, candidate, channel)
    require(held_out(store, 1, channel), names)


def _served(store: Store, candidate: Candidate, channel: str) -> Candidate | None:
    """What `channel` serves now. NothingToDo when that is the candidate."""
    release = store.release(channel)
    served = store.get(Candidate, release.candidate) if release and release.candidate else None
    if served is not None and served.id == candidate.id:
        raise NothingToDo(
            f"channel {channel!r} serves {candidate.id} already: a candidate is compared with another version"
        )
    return served


def evaluate_stage(
    store: Store,
    directory: Path,
    candidate: Candidate,
    settings: EvaluateConfig,
    *,
    engine: str,
    channel: str = "default",
    device: str = "auto",
    checks: Mapping[str, Check] | None = None,
    suites: Iterable[str] | None = None,
    folds: Mapping[Path, Sequence[str]] | None = None,
    limits: Mapping[str, float] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Compare a candidate with the model that its channel serves now, and write the report.

    Args:
        store: Where the rows are.
        directory: The data directory, with the adapter folders and the cache.
        candidate: The candidate.
        settings: `[evaluate]`.
        engine: URL of a model server that reads this machine's folders.
        channel: Whose requests it is for.
        device: Where the base model scores.
        checks: Programs of the caller by name; reported only.
        suites: Names; those of the settings without it.
        folds: Adapter folder -> interactions it was trained on, of the adapters trained for cross-fitting.
        limits: `[gate]`: limits other than the defaults.
        progress: Called with (suite and its step, done, total).

    Raises:
        NothingToDo: No held-out interaction that the base can read, or the candidate is served already.
        AdapterError: A folder is missing or changed.
        ModelError: The base is missing.
    """
    BACKGROUND.step_back()
    served = _served(store, candidate, channel)
    longest, vocabulary = model_sizes(resolve_model(candidate.base))
    fit = ContextFit(load_tokenizer(candidate.base), longest, settings.max_tokens, vocabulary)
    items = held_out(store, settings.max_interactions, channel, fit.fits)
    too_long = fit.excluded
    names = chosen(settings.suites if suites is None else suites)
    if too_long and not items and not CONVERSATIONS.isdisjoint(names):
        raise NothingToDo(
            f"all {too_long} held-out interactions exceed the context of {candidate.base} ({fit.longest} tokens), or "
            "its chat template rejects them: wait for shorter conversations"
        )
    look = _look(store, candidate, served, items)
    substitutes: list[Substitute] = []
    if folds:
        substitutes = from_folds(store, candidate, folds, UNSEEN, channel, fit.fits)
    elif settings.borrow:
        substitutes = from_earlier_round(store, candidate, UNSEEN, channel, fit.fits)
    report = evaluate_candidate(
        candidate=candidate,
        candidate_path=store.artifacts.folder(candidate.path),
        served_path=None if served is None else store.artifacts.folder(served.path),
        served_candidate=served,
        interactions=items,
        model=candidate.base,
        upstream=engine,
        settings=settings,
        checks=checks,
        wins=earlier_wins(store, channel, settings.max_interactions, fit.fits),
        trained=trained_on(store, candidate, TRAINED),
        substitutes=substitutes,
        more_prompts=silent_prompts(store, candidate, settings.min_answers, channel, fit.reads),
        limits=limits,
        level=level_of_look(look),
        suites=suites,
        cache=directory / CACHE,
        device=device,
        progress=progress,
    )
    shown = {"too_long": too_long, "held_out": [item.interaction.id for item in items], "look": look}
    report = replace(report, about={**report.about, **shown})
    store.write(report)
    return report


def _look(store: Store, candidate: Candidate, served: Candidate | None, items: Sequence[HeldOut]) -> int:
    """Number of this look at the candidate against what is served, from 1; the same interactions are the same look."""
    against = None if served is None else served.id
    now = [item.interaction.id for item in items]
    looks: list[object] = []
    for report in store.rows(Report, candidate=candidate.id):
        measured = "error" not in report.suites.get("holdout", {"error": ""})
        if measured and report.against == against and (seen := report.about.get("held_out", report.id)) not in looks:
            looks.append(seen)
    return looks.index(now) + 1 if now in looks else len(looks) + 1
