"""The stage "train": reads Interactions from the store, writes one Candidate.

Owns which interactions a run takes and that a run which was killed is finished before a new one starts. The
training itself is `loop.train_candidate`.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from afterword.config import TrainConfig, current_names
from afterword.errors import NothingToDo
from afterword.learn.recipes.from_config import checked, recipe_of
from afterword.learn.recipes.recipe import Recipe
from afterword.learn.recipes.validate import advice
from afterword.model.loading import load_tokenizer, model_sizes, resolve_model
from afterword.records import Candidate, Interaction, Json, Turn, content_hash
from afterword.store import Store
from afterword.store.files import write_whole
from afterword.store.locks import TRAIN, alone
from afterword.train.artifact import candidate_record, summary_lines
from afterword.train.data.examples import Example, Prepared, choose, encode_examples, taught
from afterword.train.generation.generation import load_verifier
from afterword.train.generation.revise import check_revision, revise_stage, revision_model, with_revisions
from afterword.train.loop import train_candidate
from afterword.train.monitoring.alerts import OFF, STRICT
from afterword.train.monitoring.metrics import StepMetrics
from afterword.train.runtime.distributed import Distributed, init_distributed

_PLAN = "run.json"
_GIVEN_UP = "given-up"
_HELD = 2
"""Answers that users only accepted, for each with words: a bound that was chosen, not measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run was started with; kept in its folder, so that a killed run goes on with the same."""

    candidate: str
    interactions: tuple[str, ...]
    parent: str | None
    model: str
    settings: Json
    weights: dict[str, float] = field(default_factory=dict)
    """Interaction -> factor on its weight: staleness and the caps on loud users."""
    selection: Json = field(default_factory=dict)
    """What was chosen and what was not, for the candidate's metrics."""
    replayed: int = 0
    """How many of the interactions, the first ones, the parent has learned already."""

    @property
    def config(self) -> TrainConfig:
        """The settings, also those that an earlier version stored."""
        return TrainConfig(**current_names("train", self.settings))

    @property
    def folder(self) -> str:
        """Adapter folder relative to the data directory."""
        return f"adapters/{self.candidate}"


def train_stage(
    store: Store,
    directory: Path,
    settings: TrainConfig,
    *,
    model: str,
    channel: str = "default",
    device: str = "auto",
    weights: Mapping[str, float] | None = None,
    selection: Json | None = None,
    progress: Callable[[StepMetrics], None] = lambda metrics: None,
    note: Callable[[str], None] = lambda text: None,
) -> Candidate:
    """Train on the interactions that no released adapter has learned from yet, starting from what is served; of those
    only on the keys of `weights`, if given, with these factors on their weights. `selection` says why, and is kept in
    the candidate's metrics.

    Raises NothingToDo, with what is missing, when there are too few of them, and ConflictError while another training
    works on the directory.
    """
    workers = init_distributed()
    with ExitStack() as held:
        # Held from the plan to the candidate's row: whoever finds an unfinished run knows that it was killed.
        take = partial(held.enter_context, alone(directory, TRAIN, "a training run"))
        make = partial(_next, store, directory, settings, model, channel, weights, selection, note)
        plan = _agreed(workers, make, take)
        return _trained(store, directory, plan, workers, device, progress, note)


def _trained(
    store: Store,
    directory: Path,
    plan: Plan,
    workers: Distributed,
    device: str,
    progress: Callable[[StepMetrics], None],
    note: Callable[[str], None],
) -> Candidate:
    """Train what is planned and write the candidate."""
    for sentence in advice(recipe_of(plan.config)):
        note(sentence)
    run_dir = directory / "runs" / plan.candidate
    parent = store.get(Candidate, plan.parent) if plan.parent else None
    try:
        examples, revisions = _revised(store, directory, plan, _examples(store, plan), device, workers, note)
        result = train_candidate(
            examples,
            model=plan.model,
            out=directory / plan.folder,
            recipe=recipe_of(plan.config),
            parent=directory / parent.path if parent else None,
            run_dir=run_dir,
            seed=int(plan.settings["seed"]),
            device=device,
            progress=progress,
            rules=STRICT if plan.settings.get("stop_rules", True) else OFF,
            cache=directory / "cache" / "teacher",
        )
    except Exception:
        # It may fail again in the same way, so it must not stand in the way of other settings; the same ones go on from
        # its state. A kill leaves no such mark.
        with suppress(OSError):  # on a full disk the error that is raised says more than that of the mark
            (run_dir / _GIVEN_UP).touch()
        raise
    for sentence in summary_lines(result):
        note(sentence)
    candidate = candidate_record(result, id=plan.candidate, path=plan.folder, parent=plan.parent)
    chosen: Json = {"selection": plan.selection} if plan.selection else {}
    if plan.replayed:
        chosen["replayed"] = plan.replayed
    candidate = replace(candidate, metrics={**candidate.metrics, **revisions, **chosen})
    if workers.is_main:
        store.write(candidate)
    return candidate


def _revised(
    store: Store,
    directory: Path,
    plan: Plan,
    examples: list[Example],
    device: str,
    workers: Distributed,
    note: Callable[[str], None],
) -> tuple[list[Example], Json]:
    """The examples with the model's second drafts, where the plan wants them, and the figures of that pass."""
    settings = plan.config
    if settings.revise == "off":
        return examples, {}
    cost: Json = {}
    if workers.is_main:
        parent = store.get(Candidate, plan.parent) if plan.parent else None
        spent = revise_stage(
            store,
            examples,
            recipe_of(settings),
            model=plan.model,
            parent=(parent.id, directory / parent.path) if parent else None,
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


def _agreed(workers: Distributed, make: Callable[[], Plan], take: Callable[[], object]) -> Plan:
    """The plan of the first process, which takes the lock, also in the others; when it has none, none waits for it."""
    plan: Plan | None = None
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
    store: Store,
    directory: Path,
    settings: TrainConfig,
    model: str,
    channel: str,
    weights: Mapping[str, float] | None,
    selection: Json | None,
    note: Callable[[str], None],
) -> Plan:
    """The run that was killed, or a new one."""
    plan = _unfinished(store, directory)
    if plan is None:
        return _planned(store, directory, settings, model, channel, weights, selection)
    note(f"finishing {plan.candidate}, which was interrupted ({len(plan.interactions)} interactions)")
    return plan


def _planned(
    store: Store,
    directory: Path,
    settings: TrainConfig,
    model: str,
    channel: str,
    weights: Mapping[str, float] | None,
    selection: Json | None,
) -> Plan:
    made = checked(settings)  # a typo or an impossible recipe fails first
    check_revision(settings.revise, made)
    if made.verifier:
        load_verifier(made.verifier)
    again, chosen = _taken(store, made, settings, model, channel, weights)
    chosen = (*again, *chosen)
    release = store.release(channel)
    parent = release.candidate if release else None
    kept: Json = {name: getattr(settings, name) for name in TrainConfig.__dataclass_fields__}
    name = f"cand-{content_hash(chosen, parent, model, kept)[:16]}"
    factors = {row: round(weights[row], 6) for row in chosen if weights.get(row, 1.0) != 1.0} if weights else {}
    plan = Plan(name, chosen, parent, model, kept, factors, selection or {}, len(again))
    if store.find(Candidate, plan.candidate) is not None:
        raise NothingToDo(
            f"candidate {plan.candidate} was already trained on exactly these {len(chosen)} interactions. Evaluate it "
            "with `afterword evaluate`, wait for new interactions, or change [train], for example its seed."
        )
    run_dir = directory / "runs" / plan.candidate
    run_dir.mkdir(parents=True, exist_ok=True)
    write_whole(run_dir / _PLAN, json.dumps({name: getattr(plan, name) for name in Plan.__dataclass_fields__}))
    (run_dir / _GIVEN_UP).unlink(missing_ok=True)  # asked for again: a kill from here on is finished as any other
    return plan


def _taken(
    store: Store,
    made: Recipe,
    settings: TrainConfig,
    model: str,
    channel: str,
    weights: Mapping[str, float] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Interactions of a new run: those that are trained again, and the new ones. NothingToDo when these are too few."""
    spent = store.spent(channel)
    fresh = [row for row in store.usable("train") if row.id not in spent and (row.on_policy or settings.off_policy)]
    if weights is not None:
        fresh = [row for row in fresh if weights.get(row.id, 0.0) > 0.0]
    if len(fresh) < settings.min_interactions:
        raise NothingToDo(_too_few(store, fresh, settings))
    age = {row.id: i for i, row in enumerate(fresh)}
    if taught(made):
        fresh = balanced(fresh, made, settings)
    chosen = tuple(sorted(_chosen(store, fresh, settings, model), key=age.__getitem__))
    return learned_again(store, spent, len(chosen), settings), chosen


def rehearse(
    store: Store, settings: TrainConfig, *, model: str, channel: str, weights: Mapping[str, float] | None
) -> tuple[Prepared, int]:
    """What a run would train now and what it would exclude, encoded as the run does, and how many of its rows it would
    train again; nothing is written and no weights are loaded.

    Raises NothingToDo when too few interactions wait, ModelError when the tokenizer cannot be loaded or its template
    cannot be trained.
    """
    made = checked(settings)
    again, chosen = _taken(store, made, settings, model, channel, weights)
    rows = [store.get(Interaction, name) for name in (*again, *chosen)]
    examples = [Example(row, store.get(Turn, row.turn)) for row in rows]
    limit, vocabulary = model_sizes(resolve_model(model))
    found = encode_examples(examples, load_tokenizer(model), made, limit=limit, vocabulary=vocabulary)
    return found, sum(row.interaction in again for row in found.rows)


def balanced(waiting: list[Interaction], made: Recipe, settings: TrainConfig) -> list[Interaction]:
    """In the order in which they are taken, last first: the newest, but of those without words, with which users were
    only content, at most `_HELD` for each with words. Where people accept much and say little they would be the run.

    Raises NothingToDo when too few are left.
    """
    found: list[Interaction] = []
    silent: deque[Interaction] = deque()
    room = 0
    for row in reversed(waiting):
        if row.hindsight.strip():
            found.append(row)
            room += _HELD
        else:
            silent.append(row)
        while silent and room:
            found.append(silent.popleft())
            room -= 1
    if len(found) >= max(1, settings.min_interactions):
        return found[::-1]
    words = sum(bool(row.hindsight.strip()) for row in waiting)
    carry = f"{words} of them {'carry' if words > 1 else 'carries'}" if words else "none of them carries"
    raise NothingToDo(
        f"{len(waiting)} interactions wait to be learned and {carry} words: users were content with the other answers. "
        f"{made.name} takes at most {_HELD} such answers for each one that users say something about, and "
        f"train.min_interactions is {settings.min_interactions}."
    )


def learned_again(store: Store, spent: set[str], new: int, settings: TrainConfig) -> tuple[str, ...]:
    """For each of `new` interactions `train.replay` that the served adapter has learned already, drawn at random."""
    if not settings.replay:
        return ()
    rows = [row for row in store.usable("train") if row.id in spent and (row.on_policy or settings.off_policy)]
    rng = random.Random(f"replay/{settings.seed}/{len(spent)}")
    drawn = rng.sample(rows, min(len(rows), round(settings.replay * new)))
    return tuple(row.id for row in sorted(drawn, key=lambda row: (row.created_at, row.id)))


def _chosen(store: Store, waiting: list[Interaction], settings: TrainConfig, model: str) -> tuple[str, ...]:
    """The last that can be trained, with those on the way that cannot: the run counts why."""
    if len(waiting) <= settings.max_interactions:
        return tuple(row.id for row in waiting)
    limit, vocabulary = model_sizes(resolve_model(model))
    newest = (Example(row, store.get(Turn, row.turn)) for row in reversed(waiting))
    chosen = choose(
        newest,
        load_tokenizer(model),
        recipe_of(settings),
        limit=limit,
        vocabulary=vocabulary,
        most=settings.max_interactions,
    )
    return tuple(example.interaction.id for example in reversed(chosen))


def _too_few(store: Store, fresh: list[Interaction], settings: TrainConfig) -> str:
    everything = store.usable("train")
    off_policy = sum(not row.on_policy for row in everything)
    message = (
        f"{len(fresh)} interactions wait to be learned, train.min_interactions is {settings.min_interactions} "
        f"({len(everything)} in all, {len(everything) - len(fresh)} of them learned already or left out)."
    )
    if off_policy and not settings.off_policy:
        message += (
            f" {off_policy} come from turns without served token ids: `afterword train --off-policy` (or "
            "train.off_policy = true) trains those."
        )
    if store.newest(Turn) is None:
        return message + " Chat through `afterword serve`, or `afterword import FILE`."
    return message + " Run `afterword collect` after more feedback came in."


def _unfinished(store: Store, directory: Path) -> Plan | None:
    """The newest run that was started, did not fail and has no Candidate row: it was killed.

    One of whose interactions has been taken back, rejected or erased since is not finished: a new run leaves it out.
    """
    usable = {row.id for row in store.usable("train")}
    plans = sorted((directory / "runs").glob(f"*/{_PLAN}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in plans:
        data = json.loads(path.read_text("utf-8"))
        plan = Plan(**{**data, "interactions": tuple(data["interactions"])})
        left = store.find(Candidate, plan.candidate) is None and not (path.parent / _GIVEN_UP).exists()
        if left and usable.issuperset(plan.interactions):
            return plan
    return None


def _examples(store: Store, plan: Plan) -> list[Example]:
    examples = []
    for identifier in plan.interactions:
        interaction = store.get(Interaction, identifier)
        factor = plan.weights.get(identifier, 1.0)
        interaction = replace(interaction, weight=interaction.weight * factor)
        examples.append(Example(interaction, store.get(Turn, interaction.turn)))
    return examples
