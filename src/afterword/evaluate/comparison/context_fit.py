"""Which held-out interactions the model can read at all: its context is an end that no candidate can move.

Owns the measure of length (prompt, hindsight and an answer of full length together); never asks a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from afterword.chat.canonical import text_of
from afterword.chat.render import encode_content, generation_header, render_prompt
from afterword.errors import ModelError
from afterword.evaluate.comparison.heldout import HeldOut
from afterword.evaluate.scoring.hindsight import CONTEXT, LONGEST_HINDSIGHT
from afterword.learn.parts.contexts import fit_hindsight


@dataclass(slots=True)
class Room:
    """Tokens that a base reads, `longest`, of which an answer may take `max_tokens`; counts what does not fit."""

    tokenizer: Any
    longest: int
    max_tokens: int
    vocabulary: int = 1 << 62
    """Ids that the base has embeddings for."""
    left_out: int = 0

    def __post_init__(self) -> None:
        generation_header(self.tokenizer)  # without one it is an error, not so many conversations left out

    def fits(self, item: HeldOut) -> bool:
        """Whether both arms can be asked and scored on it; one such conversation would end the whole suite."""
        try:
            fits = self._fits(item)
        except ModelError:  # the template refuses the conversation
            fits = False
        self.left_out += not fits
        return fits

    def _fits(self, item: HeldOut) -> bool:
        turn = item.turn
        given = turn.completion_ids or encode_content(self.tokenizer, text_of(turn.answer.get("content")), "assistant")
        room = self.longest - max(len(given), self.max_tokens) - 1  # the end of turn
        prompt = render_prompt(self.tokenizer, turn.messages, turn.tools).ids
        if room < 1 or len(prompt) > room or max(*given, *prompt, 0) >= self.vocabulary:
            return False
        if not item.interaction.hindsight.strip():
            return True
        seen = fit_hindsight(
            self.tokenizer, CONTEXT, turn.messages, turn.answer, item.interaction.hindsight,
            room=room, longest=LONGEST_HINDSIGHT, tools=turn.tools,
        )  # fmt: skip
        return seen is not None and max(seen.prompt.ids) < self.vocabulary
