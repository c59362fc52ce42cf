"""Trains the adapters of cross-fitting: as a candidate was trained, each without its share of the conversations.

They judge and are never served. They lie in the run's folder, which goes when one of its users is erased.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from afterword.learn.recipes.from_config import recipe_of
from afterword.records import Candidate, Interaction, TrainingPlan, Turn, content_hash
from afterword.store import Store
from afterword.store.attribution import ConversationRoots
from afterword.store.locks import TRAIN, alone
from afterword.train.loop import train_candidate
from afterword.train.monitoring.alerts import OFF, STRICT
from afterword.train.monitoring.metrics import StepMetrics
from afterword.train.run_state import read_run, run_folder
from afterword.train.runtime.distributed import init_distributed
from afterword.train.stage import plan_settings, revised_examples

CONVERSATIONS = 4
"""A fold leaves out at least so many conversations; with fewer there are no folds."""


def train_folds(
    store: Store,
    directory: Path,
    candidate: Candidate,
    folds: int,
    *,
    device: str = "auto",
    progress: Callable[[StepMetrics], None] = lambda metrics: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[Path, tuple[str, ...]]:
    """Train `folds` adapters by the candidate's own plan; finished ones are found again.

    Args:
        store: Where the rows are.
        directory: The data directory.
        candidate: The candidate that they stand in for.
        folds: How many adapters; each conversation is left out of one of them.
        device: Where they are trained.
        progress: Called with the metrics of each step.
        note: Called with each sentence for a person.

    Returns:
        Adapter folder -> ids of the interactions that it was trained on; empty, with a note, where the plan is gone or
        the conversations are too few.

    Raises:
        ConflictError: While a training works on the directory.
    """
    folder = run_folder(directory, candidate.id)
    run = read_run(folder)
    if run is None:
        note(f"no cross-fitting: the plan of {candidate.id} is not in {str(folder)!r}")
        return {}
    left_out = _left_out(store, run.plan, folds)
    if not left_out:
        note(f"no cross-fitting: {folds} folds need {folds * CONVERSATIONS} conversations")
        return {}
    found: dict[Path, tuple[str, ...]] = {}
    with alone(directory, TRAIN, "a training run"):
        for number, without in enumerate(left_out, 1):
            kept = tuple(name for name in run.plan.interactions if name not in without)
            plan = replace(run.plan, interactions=kept)
            out = folder / "folds" / f"{number}-of-{folds}"
            _train(store, directory, plan, out, device, progress, note)
            found[out] = kept
    return found


def _left_out(store: Store, plan: TrainingPlan, folds: int) -> list[set[str]]:
    """The interactions that each fold leaves out: whole conversations, in the order of their hashes."""
    roots = ConversationRoots(store)
    rows = {row.id: row.turn for _, row in store.among(Interaction, "id", list(plan.interactions))}
    turns = {turn.id: turn for _, turn in store.among(Turn, "id", list(set(rows.values())))}
    conversation = {name: roots.of(turns[turn]) for name, turn in rows.items()}
    ordered = sorted(set(conversation.values()), key=content_hash)
    if len(ordered) < folds * CONVERSATIONS:
        return []
    fold = {root: place % folds for place, root in enumerate(ordered)}
    return [{name for name, root in conversation.items() if fold[root] == number} for number in range(folds)]


def _train(
    store: Store,
    directory: Path,
    plan: TrainingPlan,
    out: Path,
    device: str,
    progress: Callable[[StepMetrics], None],
    note: Callable[[str], None],
) -> None:
    settings = plan_settings(plan)
    recipe = recipe_of(settings)
    parent = store.get(Candidate, plan.parent) if plan.parent else None
    examples, _ = revised_examples(store, directory, plan, recipe, device, init_distributed(), note)
    train_candidate(
        examples,
        model=plan.model,
        out=out,
        recipe=recipe,
        parent=store.artifacts.folder(parent.path) if parent else None,
        run_dir=out.with_name(f"{out.name}-run"),
        seed=settings.seed,
        device=device,
        progress=progress,
        rules=STRICT if settings.stop_rules else OFF,
        cache=directory / "cache" / "teacher",
    )
