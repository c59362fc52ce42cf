"""Executes a TrainingPlan and writes one Candidate; finishes a killed run before it starts a new one.

`feedback.select.plan` makes the plan, `loop` trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from afterword import __version__
from afterword.config import TrainConfig, current_names
from afterword.errors import AfterwordError, NothingToDo, UsageError
from afterword.learn.recipes.from_config import recipe_of
from afterword.learn.recipes.recipe import Recipe
from afterword.learn.recipes.validate import advice
from afterword.model.loading import load_tokenizer, model_sizes, resolve_model
from afterword.records import Candidate, Excluded, Interaction, Json, TrainingPlan, Turn
from afterword.sharing import BACKGROUND
from afterword.store import Store
from afterword.store.locks import TRAIN, alone
from afterword.train.artifact import candidate_record, summary_lines
from afterword.train.checkpoint import clear_checkpoint
from afterword.train.data.batches import plan_steps
from afterword.train.data.episode_examples import episode_examples
from afterword.train.data.examples import Example, encode_examples, newest_trainable, reads_hindsight
from afterword.train.generation.revise import revise_stage, revision_model, with_revisions
from afterword.train.loop import train_candidate
from afterword.train.monitoring.alerts import OFF, STRICT
from afterword.train.monitoring.metrics import StepMetrics
from afterword.train.run_state import interrupted_run, run_folder, write_run
from afterword.train.runtime.distributed import Distributed, init_distributed
from afterword.train.runtime.local_workers import run_workers, worker_command
from afterword.train.runtime.teacher_runtime import context_limit


class StoreEncoder:
    """Encodes stored interactions for a plan, as the run will: `feedback.select.plan.PlanEncoder`."""

    def __init__(self, store: Store, settings: TrainConfig, model: str) -> None:
        """An empty `model` is unknown: then nothing can be encoded, only counted."""
        self.store, self.model, self._recipe = store, model, recipe_of(settings)
        self.recipe, self.reads_hindsight = self._recipe.name, reads_hindsight(self._recipe)
        self.reads_episodes = self._recipe.data == "episodes"

    def newest_trainable(self, newest: Iterable[Interaction], most: int) -> list[Interaction]:
        """The first of `newest` of which `most` can be trained, including the untrainable ones between them."""
        if not self.model:
            return [row for row, _ in zip(newest, range(most), strict=False)]
        tokenizer, (_, vocabulary) = load_tokenizer(self.model), model_sizes(resolve_model(self.model))
        limit = context_limit(self._recipe, self.model, tokenizer)
        examples = self._examples(list(newest)) if self.reads_episodes else map(self._example, newest)
        chosen = newest_trainable(examples, tokenizer, self._recipe, limit=limit, vocabulary=vocabulary, most=most)
        return [example.interaction for example in chosen]

    def encode(self, rows: Sequence[Interaction], seed: int) -> tuple[tuple[Excluded, ...], int | None]:
        """The rows that cannot be trained, and the optimiser steps of a run over the others; None without a model.

        Facts that need the loaded weights (a token without a finite embedding, the model's own revisions) are unknown
        here.
        """
        if not self.model:
            return (), None
        tokenizer, (_, vocabulary) = load_tokenizer(self.model), model_sizes(resolve_model(self.model))
        limit = context_limit(self._recipe, self.model, tokenizer)
        examples = self._examples(rows)
        found = encode_examples(examples, tokenizer, self._recipe, limit=limit, vocabulary=vocabulary)
        return found.excluded, len(plan_steps(found.rows, self._recipe, seed)) if found.rows else 0

    def _examples(self, rows: Sequence[Interaction]) -> list[Example]:
        return episode_examples(self.store, rows) if self.reads_episodes else list(map(self._example, rows))

    def _example(self, row: Interaction) -> Example:
        return Example(row, self.store.get(Turn, row.turn))


def train_stage(
    store: Store,
    directory: Path,
    make_plan: Callable[[], TrainingPlan],
    *,
    device: str = "auto",
    progress: Callable[[StepMetrics], None] = lambda metrics: None,
    note: Callable[[str], None] = lambda text: None,
) -> Candidate:
    """Finish the run that was killed, or else train what `make_plan` plans, starting from its parent.

    Args:
        directory: the data directory, for the lock, `runs/`, `adapters/` and the cache of teachers.
        make_plan: called under the training lock, in the first process only.
        progress: called with the metrics of each step.
        note: called with each sentence for a person.

    Raises:
        NothingToDo: Raised by `make_plan`.
        ConflictError: while another training works on the directory.
    """
    workers = init_distributed()
    if workers.size == 1:
        with alone(directory, TRAIN, "a training run"):
            plan = _next(store, directory, make_plan, note)
            count = plan_settings(plan).workers
            if count == 1:
                return _executed(store, directory, plan, workers, device, progress, note)
        return _in_workers(store, directory, plan, count, device, progress, note)
    with ExitStack() as locks:
        # Held from the plan to the candidate's row: whoever finds a running run under the lock knows it was killed.
        take = partial(locks.enter_context, alone(directory, TRAIN, "a training run"))
        plan = _agreed(workers, partial(_next, store, directory, make_plan, note), take)
        return _executed(store, directory, plan, workers, device, progress, note)


def finish_run(
    store: Store,
    directory: Path,
    candidate: str,
    *,
    device: str = "auto",
    progress: Callable[[StepMetrics], None] = lambda metrics: None,
    note: Callable[[str], None] = lambda text: None,
) -> Candidate:
    """Execute the recorded, unfinished run that makes `candidate`: what each of several workers does.

    Args:
        directory: The data directory.
        candidate: Id of the candidate to be.
        device: "auto", "cpu" or "cuda".
        progress: Called with the metrics of each step.
        note: Called with each sentence for a person.

    Raises:
        NothingToDo: There is no such run any more.
        ConflictError: Another training works on the directory.
    """

    def plan_of() -> TrainingPlan:
        run = interrupted_run(store, directory)
        if run is None or run.plan.candidate != candidate:
            raise NothingToDo(
                f"the run of {candidate} was taken back: an interaction of it was retracted, rejected or erased. "
                "Train again: a new run leaves that interaction out."
            )
        return run.plan

    workers = init_distributed()
    with ExitStack() as locks:
        take = partial(locks.enter_context, alone(directory, TRAIN, "a training run"))
        plan = _agreed(workers, plan_of, take)
        return _executed(store, directory, plan, workers, device, progress, note)


def _in_workers(
    store: Store,
    directory: Path,
    plan: TrainingPlan,
    count: int,
    device: str,
    progress: Callable[[StepMetrics], None],
    note: Callable[[str], None],
) -> Candidate:
    """Let `count` processes execute the plan, which is recorded as running; the first of them takes the lock."""
    try:
        on_gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        if on_gpus and count > torch.cuda.device_count():
            raise UsageError(
                f"train.workers is {count}, but this machine has {torch.cuda.device_count()} GPU(s), and each process "
                'needs its own: set a smaller number, or `device = "cpu"`',
                param="train.workers",
            )
        note(f"training in {count} processes")
        run_workers(
            worker_command(store.path, plan.candidate, device, store.artifacts.url),
            count,
            run_folder(directory, plan.candidate),
            progress=progress,
            note=note,
            again=lambda: write_run(directory, plan, "running"),
        )
    except AfterwordError:
        write_run(directory, plan, "failed")  # as in `_executed`
        raise
    return store.get(Candidate, plan.candidate)


def _executed(
    store: Store,
    directory: Path,
    plan: TrainingPlan,
    workers: Distributed,
    device: str,
    progress: Callable[[StepMetrics], None],
    note: Callable[[str], None],
) -> Candidate:
    """Train what is planned and write the candidate."""
    settings = plan_settings(plan)
    folder = f"adapters/{plan.candidate}"
    parent = store.get(Candidate, plan.parent) if plan.parent else None
    try:
        recipe = recipe_of(settings)
        for sentence in advice(recipe):
            note(sentence)
        examples, revisions = revised_examples(store, directory, plan, recipe, device, workers, note)
        result = train_candidate(
            examples,
            model=plan.model,
            out=directory / folder,
            recipe=recipe,
            parent=store.artifacts.folder(parent.path) if parent else None,
            run_dir=run_folder(directory, plan.candidate),
            seed=settings.seed,
            device=device,
            progress=progress,
            rules=STRICT if settings.stop_rules else OFF,
            cache=directory / "cache" / "teacher",
        )
    except Exception:
        # It may fail again in the same way, so it must not block other settings; the same ones resume its checkpoint.
        # A kill leaves the status "running".
        if workers.is_main:
            with suppress(OSError):  # on a full disk the error that is raised says more than that of the record
                write_run(directory, plan, "failed")
        raise
    for sentence in summary_lines(result):
        note(sentence)
    if BACKGROUND.waited >= 1.0:
        note(f"Waited {BACKGROUND.waited:.0f} s for requests that were served on this machine.")
    candidate = candidate_record(result, id=plan.candidate, path=folder, parent=plan.parent)
    chosen: Json = {"selection": plan.selection} if plan.selection else {}
    if plan.replayed:
        chosen["replayed"] = plan.replayed
    candidate = replace(candidate, metrics={**candidate.metrics, **revisions, **chosen})
    if workers.is_main:
        store.artifacts.keep(folder)
        store.write(candidate)
        write_run(directory, plan, "finished")
    return candidate


def revised_examples(
    store: Store,
    directory: Path,
    plan: TrainingPlan,
    recipe: Recipe,
    device: str,
    workers: Distributed,
    note: Callable[[str], None],
) -> tuple[list[Example], Json]:
    """The examples with the model's second drafts, where the plan wants them, and the figures of that pass."""
    settings, examples = plan_settings(plan), _examples(store, plan)
    if settings.revise == "off":
        return examples, {}
    cost: Json = {}
    if workers.is_main:
        parent = store.get(Candidate, plan.parent) if plan.parent else None
        spent = revise_stage(
            store,
            examples,
            recipe,
            model=plan.model,
            parent=(parent.id, store.artifacts.folder(parent.path)) if parent else None,
            most=settings.max_revisions,
            device=device,
        )
        note(spent.sentence)
        cost = {f"revisions_{name}": round(value, 2) for name, value in asdict(spent).items()}
    workers.barrier()
    found, used = with_revisions(store, examples, settings.revise, revision_model(plan.model, plan.parent))
    if settings.revise == "target" and used < settings.min_interactions:
        raise NothingToDo(
            f"{used} revisions are better than their drafts, train.min_interactions is {settings.min_interactions}: "
            "wait for more interactions, or train with train.revise = 'context'."
        )
    return found, {"revisions": settings.revise, "revisions_used": used, **cost}


def _agreed(workers: Distributed, make: Callable[[], TrainingPlan], take: Callable[[], object]) -> TrainingPlan:
    """The plan of the first process, which takes the lock, also in the others; when it has none, none waits for it."""
    plan: TrainingPlan | None = None
    try:
        if workers.is_main:
            take()
            plan = make()
    finally:
        plan = workers.broadcast_object(plan)
    if plan is None:
        raise NothingToDo("the first process has nothing to train")
    return plan


def _next(
    store: Store, directory: Path, make_plan: Callable[[], TrainingPlan], note: Callable[[str], None]
) -> TrainingPlan:
    """The plan of the run that was killed, or a new one, recorded as running."""
    run = interrupted_run(store, directory)
    if run is None:
        plan = make_plan()
        write_run(directory, plan, "running")
        return plan
    plan = run.plan
    note(f"finishing {plan.candidate}, which was interrupted ({len(plan.interactions)} interactions)")
    if run.code_version != __version__:  # its checkpoint belongs to other code
        note(f"from its first step: version {run.code_version or '0.1'} of Afterword began it")
        clear_checkpoint(run_folder(directory, plan.candidate))
        write_run(directory, plan, "running")
    return plan


def plan_settings(plan: TrainingPlan) -> TrainConfig:
    """The plan's settings, also those that an earlier version stored."""
    return TrainConfig(**current_names("train", plan.settings))


def _examples(store: Store, plan: TrainingPlan) -> list[Example]:
    found = []
    for identifier in plan.interactions:
        interaction = store.get(Interaction, identifier)
        factor = plan.weights.get(identifier, 1.0)
        found.append(replace(interaction, weight=interaction.weight * factor))
    if any(row.episode_id for row in found):
        return episode_examples(store, found)
    return [Example(row, store.get(Turn, row.turn)) for row in found]
