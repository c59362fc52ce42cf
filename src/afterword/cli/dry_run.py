"""What a round would learn from, shown before it learns: slices, the influence of users, what is left out and why."""

from __future__ import annotations

from dataclasses import dataclass

from rich.markup import escape

from afterword.cli.context import Context
from afterword.cycle import Settings
from afterword.errors import ModelError, NothingToDo
from afterword.feedback.select.select import Selection
from afterword.records import Interaction, Json
from afterword.store import Store


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `train` would take now."""

    learned: int
    replayed: int
    says: str
    """The same in a sentence; where nothing would be trained, why."""
    excluded: tuple[Json, ...] = ()
    """{reason, interactions, detail} of those that the model cannot learn from: found by encoding as the run does."""


def forecast(store: Store, selection: Selection, settings: Settings) -> Forecast:
    """How many of the chosen interactions a run would take, exclude, and train again. Without a model in `settings`
    nothing is encoded, and so nothing is known of what it would exclude."""
    from afterword.learn.recipes.from_config import checked
    from afterword.train.data.examples import taught
    from afterword.train.stage import balanced, rehearse

    train = settings.train
    made = checked(train)
    chosen = {name for name, weight in selection.weights.items() if weight > 0}
    rows = [row for row in store.usable("train") if row.id in chosen and (row.on_policy or train.off_policy)]
    if len(rows) < max(1, train.min_interactions):
        few = f"{len(rows)} interactions wait, train.min_interactions is {train.min_interactions}"
        return Forecast(0, 0, f"{few}: nothing would be trained")
    try:
        takes = min(len(balanced(rows, made, train) if taught(made) else rows), train.max_interactions)
    except NothingToDo as error:
        return Forecast(0, 0, f"nothing would be trained: {error.message}")
    if not settings.model:
        return Forecast(takes, 0, f"{takes} interactions would be learned, if the model can read them")
    try:
        prepared, again = rehearse(
            store, train, model=settings.model, channel=settings.channel, weights=selection.weights
        )
    except (ModelError, NothingToDo) as error:
        return Forecast(0, 0, f"nothing would be trained: {error.message}")
    first = {one.reason: one.detail for one in reversed(prepared.left)}
    excluded = tuple(
        {"reason": reason, "interactions": number, "detail": first[reason]}
        for reason, number in sorted(prepared.reasons.items(), key=lambda item: -item[1])
    )
    new = len(prepared.rows) - again
    says = f"{new} interactions would be learned" if prepared.rows else "nothing would be trained"
    if max(new, takes) < len(rows):
        says += f" of {len(rows)} that wait"
    if excluded:
        says += f"; {len(prepared.left)} would be excluded"
    if train.replay:
        says += f"; {again} learned before would be trained again (train.replay = {train.replay:g})"
    return Forecast(new, again, says, excluded)


def show_selection(context: Context, store: Store, selection: Selection, settings: Settings, recipe: Json) -> None:
    """The choice as tables, or as JSON, and the `recipe` that would learn from it."""
    found = selection.to_dict()
    off = sum(not store.get(Interaction, name).on_policy for name in selection.weights)
    found["off_policy"] = off
    coming = forecast(store, selection, settings)
    found |= {"would_learn": coming.learned, "would_replay": coming.replayed, "says": coming.says}
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
