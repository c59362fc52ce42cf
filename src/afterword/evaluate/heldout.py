"""The held-out interactions that a candidate is measured on, with all that is known of each.

Owns which rows of the store are compared; never asks a model and never writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from afterword.chat.canonical import text_of
from afterword.errors import NothingToDo
from afterword.records import Feedback, Interaction, Turn
from afterword.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """One (x, y, o) that was never trained on."""

    interaction: Interaction
    turn: Turn
    conversation: str
    """What it is clustered by: answers within one conversation are not independent."""
    final_text: str | None = None
    """The answer as the user left it, where they edited it."""

    @property
    def question(self) -> str:
        """The last user message of the prompt."""
        asked = [m for m in self.turn.messages if m.get("role") == "user"]
        return text_of(asked[-1].get("content")) if asked else ""


def held_out(store: Store, limit: int) -> list[HeldOut]:
    """The newest `limit` usable held-out interactions, oldest first."""
    kept = store.usable("holdout")[-limit:]
    return [_complete(store, interaction) for interaction in kept]


def require(items: list[HeldOut]) -> list[HeldOut]:
    """`items`, or NothingToDo with what is missing."""
    if not items:
        raise NothingToDo(
            "there is no held-out interaction to measure a candidate on: a share of the conversations is held "
            "out when feedback is collected. Run `afterword collect`, or wait for more conversations with follow-ups."
        )
    return items


def _complete(store: Store, interaction: Interaction) -> HeldOut:
    turn = store.get(Turn, interaction.turn)
    chain = list(store.ancestors(turn.id))
    root, named = chain[-1][0], next((c for _, c in chain if c is not None), None)
    edits = [store.find(Feedback, identifier) for identifier in interaction.feedback]
    finals = [e.final_text for e in edits if e is not None and e.final_text is not None]
    return HeldOut(
        interaction=interaction, turn=turn, conversation=named or root, final_text=finals[-1] if finals else None
    )
