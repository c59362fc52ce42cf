"""What a persona does after an answer: pure decisions, the same for the same seed and the same answers.

Owns the user's side only; `talk` carries it out over HTTP. The persona's checker is consulted here, privately:
no mark ever leaves this module except as what a user would say or do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from afterword.simulate.checkers import Mark
from afterword.simulate.editors import EDITORS
from afterword.simulate.personas import Persona
from afterword.simulate.prompts import Prompt

Act = Literal["complain", "thank", "off_topic", "edit", "leave"]


@dataclass(frozen=True, slots=True)
class Reaction:
    """What the user does about one answer."""

    act: Act
    """The deciding part; "leave" is silence."""
    text: str | None = None
    """The next message, None when the conversation ends here."""
    events: tuple[dict[str, Any], ...] = ()
    """Bodies for POST /v1/feedback, without the turn."""
    last: bool = False
    """The user does not look at the answer to this message (a thank-you)."""


def plan(prompts: Sequence[Prompt], conversations: int, seed: int) -> list[Prompt]:
    """The first questions: the prompts in a shuffled order, and again from the start when more are asked for."""
    shuffled = list(prompts)
    random.Random(f"questions/{seed}").shuffle(shuffled)
    return [shuffled[i % len(shuffled)] for i in range(conversations)]


def react(
    persona: Persona, mark: Mark, answer: str, *, seed: int, conversation: int, asked: int, said: Sequence[str]
) -> Reaction:
    """Decide what to do about an answer.

    `asked` counts the user's messages so far; `said` are those messages, so that no phrase comes twice. Every
    call draws the same numbers whatever the answer was: the users of two models differ only where answers do.
    """
    rng = random.Random(f"{persona.name}/{seed}/{conversation}/{asked}")
    subject, mood, event, rate, phrase = (rng.random() for _ in range(5))
    habits, patient = persona.habits, asked <= persona.habits.patience
    events: list[dict[str, Any]] = []
    if rate < habits.rating:
        events.append({"kind": "rating", "value": round(2 * mark.grade - 1, 2)})
    if subject < habits.off_topic and patient:
        return Reaction("off_topic", _pick(persona.off_topic, phrase, said), tuple(events))
    if mark.passed:
        if event < habits.accepted:
            events.append({"kind": "accepted"})
        if mood < habits.thanks:
            return Reaction("thank", _pick(persona.thanks, phrase, said), tuple(events), last=True)
        return Reaction("leave", None, tuple(events))
    if persona.editor and event < habits.edit and answer.strip():
        mended = EDITORS[persona.editor](answer, persona.options)
        return Reaction("edit", None, (*events, {"kind": "edited", "final_text": mended}))
    if mood < habits.silence or not patient:
        return Reaction("leave", None, tuple(events))
    return Reaction("complain", _pick(persona.complaints, phrase, said), tuple(events))


def _pick(phrases: Sequence[str], draw: float, said: Sequence[str]) -> str:
    """One of the phrases by a number in [0, 1), none that was already said while there are others."""
    fresh = [phrase for phrase in phrases if phrase not in said] or list(phrases)
    return fresh[int(draw * len(fresh))]
