"""What a round would learn from, shown before it learns: slices, the influence of users, what is left out and why."""

from __future__ import annotations

from rich.markup import escape

from afterword.cli.context import Context
from afterword.cycle import Settings
from afterword.feedback.select import Selection
from afterword.records import Candidate, Interaction, Json
from afterword.store import Store


def show_selection(context: Context, store: Store, selection: Selection, settings: Settings, recipe: Json) -> None:
    """The choice as tables, or as JSON, and the `recipe` that would learn from it."""
    found = selection.to_dict()
    off = sum(not store.get(Interaction, name).on_policy for name in selection.weights)
    found["off_policy"] = off
    for one, row in zip(selection.slices, found["slices"], strict=True):
        row["ready"] = one.ready(settings.select)
    if context.json:
        context.emit(found | {"recipe": recipe})
        return
    told = "".join(f", {key} = {value}" for key, value in settings.train.options.items())
    context.out.print(escape(f"recipe {recipe['name']}{told}"))
    rows = [
        (one.task or "(none)", one.interactions, one.users, f"{one.effective:.1f}", f"{one.relevance:.2f}",
         "yes" if one.ready(settings.select) else "no", _most(one.influence))
        for one in selection.slices
    ]  # fmt: skip
    columns = ("task", "interactions", "users", "effective", "relevance", "ready to watch", "most influence")
    context.table(f"{len(selection.weights)} interactions would be learned", columns, rows)
    if selection.left:
        context.table("left out", ("reason", "interactions"), selection.left.most_common())
    if selection.contradictions:
        signs = {-1: "less", 0: "neither", 1: "more"}
        sides = [(c["task"], c["axis"], c["less"], c["more"], signs[c["followed"]]) for c in selection.contradictions]
        context.table("users disagree", ("task", "about", "want less", "want more", "followed"), sides)
    if off and not settings.train.off_policy:
        context.say(f"{off} of them have no served token ids: only `afterword train --off-policy` learns from those.")


def _most(influence: dict[str, float]) -> str:
    """The three largest shares of a slice's weight."""
    return ", ".join(f"{user or '(unnamed)'} {share:.0%}" for user, share in list(influence.items())[:3])


def learned(store: Store) -> set[str]:
    """Interactions that some candidate was trained on, whatever the gate said of it: they are not new, also to a watch
    that is started again. After an erasure its candidates are none, so that everybody else is learned from again."""
    gone = store.tainted()
    return {name for row in store.rows(Candidate) if row.id not in gone for name in row.interactions}


def waiting_line(selection: Selection, waiting: int, needed: int) -> str:
    """What a watch waits for; `selection` is of the slices that are ready."""
    line = f"{waiting} new interactions wait, {needed} start a round"
    later = selection.left["other_slice"]
    return f"{line}; {later} more are of tasks without enough signal yet" if later else line
