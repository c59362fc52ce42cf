"""Measure a heat map: the base model reads a turn with its own hindsight and with another interaction's.

Owns the loading of the model for it; the scoring is `learn`'s, the drawing is `heatmap`'s. Writes nothing.
"""

from __future__ import annotations

from afterword.chat.canonical import text_of
from afterword.evaluate.heatmap import Heatmap
from afterword.evaluate.hindsight import CONTEXT
from afterword.learn.diagnostics import token_advantages
from afterword.learn.models import load_model, load_tokenizer
from afterword.records import Interaction, Turn


def measure_heatmap(
    turn: Turn, interaction: Interaction, other: Interaction | None, *, model: str, device: str = "auto"
) -> Heatmap:
    """The heat map of `turn` under `interaction`'s hindsight, with `other`'s as the control.

    UsageError when the answer is empty or too long for the model; ModelError when the model cannot be loaded.
    """
    base, tokenizer = load_model(model, device=device), load_tokenizer(model)
    asked = [m for m in turn.messages if m.get("role") == "user"]
    control = None if other is None else other.hindsight
    return Heatmap(
        turn=turn.id,
        question=text_of(asked[-1].get("content")) if asked else "",
        hindsight=interaction.hindsight,
        tokens=token_advantages(base, tokenizer, turn, interaction.hindsight, CONTEXT),
        control_hindsight=control,
        control=() if control is None else token_advantages(base, tokenizer, turn, control, CONTEXT),
    )
