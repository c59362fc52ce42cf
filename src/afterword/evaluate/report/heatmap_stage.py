"""Measure a heat map: the base model reads a turn with its own hindsight and with another interaction's.

Owns the loading of the model for it and the choice of the control; the scoring is learn's, the drawing is heatmap's.
Writes nothing.
"""

from __future__ import annotations

from afterword.chat.canonical import text_of
from afterword.chat.words import words
from afterword.evaluate.report.heatmap import Heatmap
from afterword.evaluate.scoring.hindsight import CONTEXT
from afterword.learn.diagnostics import token_advantages
from afterword.model.loading import load_model, load_tokenizer
from afterword.records import Feedback, Interaction, Skip, Turn, content_hash
from afterword.store import Store

LOOKED = 400
"""Interactions, the newest, among which a control is looked for."""
ALIKE = 0.2
"""Share of common words from which two messages may well want the same."""


def measure_heatmap(turn: Turn, hindsight: str, control: str | None, *, model: str, device: str = "auto") -> Heatmap:
    """The heat map of `turn` under `hindsight`, with `control` (words about another answer) beside it.

    UsageError when the answer is empty or too long for the model; ModelError when the model cannot be loaded.
    """
    base, tokenizer = load_model(model, device=device), load_tokenizer(model)
    asked = [m for m in turn.messages if m.get("role") == "user"]
    return Heatmap(
        turn=turn.id,
        question=text_of(asked[-1].get("content")) if asked else "",
        hindsight=hindsight,
        tokens=token_advantages(base, tokenizer, turn, hindsight, CONTEXT),
        control_hindsight=control,
        control=() if control is None else token_advantages(base, tokenizer, turn, control, CONTEXT),
    )


def control_for(store: Store, turn: Turn, hindsight: str) -> str | None:
    """Words about another turn that say something else, always the same ones for the same rows; None without any.

    A user who wants the same every time gives no control by another complaint: where all words are alike, an off-topic
    message is taken instead.
    """
    own = set(words(hindsight))
    rows = store.rows(Interaction, newest=True, limit=LOOKED)
    ranked = sorted(
        (_likeness(own, row.hindsight), content_hash("control", turn.id, row.id), row.hindsight)
        for row in rows
        if row.hindsight and row.turn != turn.id and row.hindsight != hindsight
    )
    if ranked and ranked[0][0] < ALIKE:
        return ranked[0][2]
    for skip in store.rows(Skip, reason="off_topic"):
        feedback = store.find(Feedback, skip.feedback)
        if feedback is not None and feedback.text and feedback.turn != turn.id:
            return feedback.text
    return ranked[0][2] if ranked else None


def _likeness(own: set[str], text: str) -> float:
    """Words in common over words in either."""
    other = set(words(text))
    return len(own & other) / max(1, len(own | other))
