"""Makes the plan of a training run from a selection: which interactions, their order, weights, exclusions and steps.

The only place that selects the interactions of a training. Dry runs, `collect`, `cycle` and `train` read the same plan.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Protocol

from afterword.config import TrainConfig, trains_episodes
from afterword.errors import NothingToDo
from afterword.feedback.select.select import Selection
from afterword.records import Candidate, Excluded, Interaction, Json, TrainingPlan, Turn, content_hash
from afterword.store import Store

SILENT_PER_WORDED = 2
"""Most interactions without words for each one with words, in a run that learns from words. Chosen, not measured."""


class PlanEncoder(Protocol):
    """Knows a run's recipe and, where `model` is not empty, which interactions its model can be trained on."""

    recipe: str
    model: str
    reads_hindsight: bool

    def newest_trainable(self, newest: Iterable[Interaction], most: int) -> list[Interaction]:
        """The first of `newest` of which `most` can be trained, including the untrainable ones between them."""

    def encode(self, rows: Sequence[Interaction], seed: int) -> tuple[tuple[Excluded, ...], int | None]:
        """The rows that cannot be trained, and the optimiser steps of a run over the others."""


def plan_training(
    store: Store,
    settings: TrainConfig,
    selection: Selection | None = None,
    *,
    channel: str = "default",
    encoder: PlanEncoder | None = None,
    start: Candidate | None = None,
) -> TrainingPlan:
    """Plan a run over interactions that no released adapter of `channel` was trained on.

    Args:
        start: The candidate that the run goes on from; None goes on from the adapter that `channel` serves.
        selection: limits the run to its interactions and scales their weights; None takes all with factor 1.
        encoder: the recipe and model of the run. Without one the plan counts what is stored: nothing is balanced
            or encoded, so `excluded` is empty and `steps` None.

    Raises:
        NothingToDo: with what is missing, when too few interactions wait or exactly this run was made before.
        ModelError: when the tokenizer cannot be loaded or its template cannot be trained.
        AdapterError: when a released teacher does not fit the model.
    """
    release = store.release(channel)
    parent = start.id if start is not None else release.candidate if release else None
    spent, episodes = store.learned_by(parent), trains_episodes(settings)
    if selection is None:
        selected = [row for row in store.usable("train", episodes=episodes) if row.id not in spent]
    else:
        selected = [row for row in selection.rows if selection.weights[row.id] > 0.0]
    waiting = [row for row in selected if row.on_policy or settings.off_policy]
    if len(waiting) < max(1, settings.min_interactions):
        raise NothingToDo(_too_few(store, waiting, settings))
    worded = encoder is not None and encoder.reads_hindsight and not episodes
    taken = balance(waiting, encoder.recipe, settings) if encoder and worded else waiting
    if episodes:
        taken = newest_episodes(taken, settings.max_interactions)
    elif len(taken) > settings.max_interactions:
        newest = reversed(taken)
        most = settings.max_interactions
        taken = encoder.newest_trainable(newest, most) if encoder else list(newest)[:most]
    age = {row.id: i for i, row in enumerate(waiting)}
    new = sorted(taken, key=lambda row: age[row.id])
    replayed = draw_replay(store, spent, len(new), settings)
    excluded, steps = encoder.encode([*replayed, *new], settings.seed) if encoder else ((), None)
    return _plan(
        store,
        settings,
        parent,
        encoder.model if encoder else "",
        interactions=tuple(row.id for row in (*replayed, *new)),
        selection=selection,
        replayed=len(replayed),
        waiting=len(waiting),
        excluded=excluded,
        steps=steps,
    )


def newest_episodes(rows: Sequence[Interaction], most: int) -> list[Interaction]:
    """The newest whole episodes with at most `most` turns together, at least one, in the given order."""
    sizes = Counter(row.episode_id for row in rows)
    kept: set[str | None] = set()
    for name in dict.fromkeys(row.episode_id for row in reversed(rows)):
        if kept and sum(sizes[one] for one in kept) + sizes[name] > most:
            break
        kept.add(name)
    return [row for row in rows if row.episode_id in kept]


def balance(waiting: Sequence[Interaction], recipe: str, settings: TrainConfig) -> list[Interaction]:
    """Limit interactions without words to the newest `SILENT_PER_WORDED` for each with words, oldest first.

    Where users accept much and say little, praise would be the whole run.

    Raises:
        NothingToDo: when fewer than `settings.min_interactions` are left.
    """
    found: list[Interaction] = []
    silent: deque[Interaction] = deque()
    room = 0
    for row in reversed(waiting):
        if row.hindsight.strip():
            found.append(row)
            room += SILENT_PER_WORDED
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
        f"{recipe} takes at most {SILENT_PER_WORDED} such answers for each one that users say something about, and "
        f"train.min_interactions is {settings.min_interactions}."
    )


def draw_replay(store: Store, spent: set[str], new: int, settings: TrainConfig) -> list[Interaction]:
    """`train.replay` x `new` interactions of those that the served adapter was trained on, drawn at random."""
    if not settings.replay:
        return []
    usable = store.usable("train", episodes=trains_episodes(settings))
    rows = [row for row in usable if row.id in spent and (row.on_policy or settings.off_policy)]
    rng = random.Random(f"replay/{settings.seed}/{len(spent)}")
    drawn = rng.sample(rows, min(len(rows), round(settings.replay * new)))
    return sorted(drawn, key=lambda row: (row.created_at, row.id))


def _plan(
    store: Store,
    settings: TrainConfig,
    parent: str | None,
    model: str,
    *,
    interactions: tuple[str, ...],
    selection: Selection | None,
    replayed: int,
    waiting: int,
    excluded: tuple[Excluded, ...],
    steps: int | None,
) -> TrainingPlan:
    """The plan under the id of its candidate; NothingToDo when that candidate exists."""
    kept: Json = asdict(settings)
    candidate = f"cand-{content_hash(interactions, parent, model, kept)[:16]}"
    if store.find(Candidate, candidate) is not None:
        raise NothingToDo(
            f"candidate {candidate} was already trained on exactly these {len(interactions)} interactions. Evaluate it "
            "with `afterword evaluate`, wait for new interactions, or change [train], for example its seed."
        )
    factors = selection.weights if selection is not None else {}
    return TrainingPlan(
        candidate=candidate,
        interactions=interactions,
        parent=parent,
        model=model,
        settings=kept,
        weights={row: round(factors[row], 6) for row in interactions if factors.get(row, 1.0) != 1.0},
        selection=selection.to_dict() if selection is not None else {},
        replayed=replayed,
        waiting=waiting,
        excluded=excluded,
        steps=steps,
    )


def _too_few(store: Store, waiting: Sequence[Interaction], settings: TrainConfig) -> str:
    everything = store.usable("train", episodes=trains_episodes(settings))
    off_policy = sum(not row.on_policy for row in everything)
    message = (
        f"{len(waiting)} interactions wait to be learned, train.min_interactions is {settings.min_interactions} "
        f"({len(everything)} in all, {len(everything) - len(waiting)} of them learned already or excluded)."
    )
    if off_policy and not settings.off_policy:
        message += (
            f" {off_policy} come from turns without served token ids: `afterword train --off-policy` (or "
            "train.off_policy = true) trains those."
        )
    if store.newest(Turn) is None:
        return message + " Chat through `afterword serve`, or `afterword import FILE`."
    return message + " Run `afterword collect` after more feedback came in."
