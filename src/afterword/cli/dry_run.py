"""Prints the training plan of a round: slices, influence of users, exclusions with reasons."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.cycle import Settings, plan_stage, select_stage
from afterword.errors import AdapterError, ModelError, NothingToDo
from afterword.feedback.select.plan import plan_training
from afterword.feedback.select.select import Selection
from afterword.records import Interaction, Json
from afterword.store import Store


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecast of the next `train`."""

    learned: int
    replayed: int
    says: str
    """The same in a sentence; where nothing would be trained, why."""
    excluded: tuple[Json, ...] = ()
    """{reason, interactions, detail} of those that the model cannot be trained on."""
    steps: int | None = None
    """Optimiser steps; None without a model."""


def forecast(store: Store, selection: Selection, settings: Settings) -> Forecast:
    """The plan that `train` would execute on this selection, in numbers."""
    try:
        plan = plan_stage(store, settings, selection)
    except (AdapterError, ModelError, NothingToDo) as error:
        return Forecast(0, 0, f"nothing would be trained: {error.message}")
    new = len(plan.interactions) - plan.replayed
    if plan.steps is None:
        return Forecast(new, plan.replayed, f"{new} interactions would be learned, if the model can read them")
    first = {one.reason: one.detail for one in reversed(plan.excluded)}
    counts = Counter(one.reason for one in plan.excluded)
    excluded = tuple(
        {"reason": reason, "interactions": number, "detail": first[reason]} for reason, number in counts.most_common()
    )
    gone = {one.interaction for one in plan.excluded}
    again = sum(name not in gone for name in plan.interactions[: plan.replayed])
    new = len(plan.interactions) - len(gone) - again
    says = f"{new} interactions would be learned" if plan.steps else "nothing would be trained"
    if new < plan.waiting:
        says += f" of {plan.waiting} that wait"
    if plan.steps:
        says += f", in {plan.steps} steps"
    if excluded:
        says += f"; {len(gone)} would be excluded"
    if settings.train.replay:
        says += f"; {again} learned before would be trained again (train.replay = {settings.train.replay:g})"
    return Forecast(new, again, says, excluded, plan.steps)


def next_training(store: Store, settings: Settings) -> str | None:
    """The command that would train on the waiting interactions; None when too little does. Counts only: no recipe, no
    model."""
    selection = select_stage(store, settings)
    for train, command in (
        (settings.train, "`afterword train`."),
        (
            replace(settings.train, off_policy=True),
            "`afterword train --off-policy`: too few of the answers that wait have served token ids.",
        ),
    ):
        with suppress(NothingToDo):
            plan_training(store, train, selection, channel=settings.channel)
            return f"Next: {command}"
    return None


def show_selection(
    context: CommandContext, store: Store, selection: Selection, settings: Settings, recipe: Json
) -> None:
    """The choice as tables, or as JSON, and the `recipe` that would learn from it."""
    found = selection.to_dict()
    off = sum(not store.get(Interaction, name).on_policy for name in selection.weights)
    found["off_policy"] = off
    coming = forecast(store, selection, settings)
    found |= {
        "would_learn": coming.learned,
        "would_replay": coming.replayed,
        "steps": coming.steps,
        "says": coming.says,
    }
    found["excluded"] = list(coming.excluded)
    for one, row in zip(selection.slices, found["slices"], strict=True):
        row["ready"] = one.ready(settings.select)
    if context.json:
        context.emit(found | {"recipe": recipe})
        return
    told = "".join(f", {key} = {value}" for key, value in settings.train.options.items())
    context.out.print(escape(f"recipe {recipe['name']}{told}"))
    context.out.print(coming.says)
    rows = [
        (one.task or "(none)", one.interactions, one.users, f"{one.effective:.1f}", f"{one.relevance:.2f}",
         "yes" if one.ready(settings.select) else "no", _most(one.influence))
        for one in selection.slices
    ]  # fmt: skip
    columns = ("task", "interactions", "users", "effective", "relevance", "ready to watch", "most influence")
    context.table("may be learned", columns, rows)
    if coming.excluded:
        context.table(
            "excluded, as the run would", ("reason", "interactions", "the first of them"),
            [tuple(one.values()) for one in coming.excluded],
        )  # fmt: skip
    if selection.left:
        context.table("left out", ("reason", "interactions"), selection.left.most_common())
    if selection.contradictions:
        signs = {-1: "less", 0: "neither", 1: "more"}
        sides = [(c["task"], c["axis"], c["less"], c["more"], signs[c["followed"]]) for c in selection.contradictions]
        context.table("users disagree", ("task", "about", "want less", "want more", "followed"), sides)
    if off and not settings.train.off_policy:
        who = f"{off} of those that may be learned have no served token ids"
        context.say(f"{who}: only `afterword train --off-policy` learns from them.")


def _most(influence: dict[str, float]) -> str:
    """The three largest shares of a slice's weight."""
    return ", ".join(f"{user or '(unnamed)'} {share:.0%}" for user, share in list(influence.items())[:3])
