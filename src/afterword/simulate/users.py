"""Chooses a persona's reaction to an answer. Pure: the same for the same seed and answers.

Owns the user's side only; `conversations` carries it out over HTTP. Consults the persona's checkers in private: their
grade leaves this module only as what a user would say or do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from afterword.simulate.checkers import CheckResult
from afterword.simulate.editors import EDITORS
from afterword.simulate.personas import Persona, Wish
from afterword.simulate.prompts import TaskPrompt

Act = Literal["complain", "thank", "off_topic", "edit", "retry", "leave"]


@dataclass(frozen=True, slots=True)
class Reaction:
    """A user's reaction to one answer."""

    act: Act
    """The deciding part; "leave" is silence."""
    text: str | None = None
    """The next message, None when the conversation ends here or the same is asked again."""
    events: tuple[dict[str, Any], ...] = ()
    """Bodies for POST /v1/feedback, without the turn."""
    last: bool = False
    """The user does not look at the answer to this message (a thank-you)."""

    @property
    def informs(self) -> bool:
        """Did the user do anything that a server could notice?"""
        return self.text is not None or bool(self.events) or self.act == "retry"


def plan(prompts: Sequence[TaskPrompt], conversations: int, seed: int) -> list[TaskPrompt]:
    """The first questions: the prompts in a shuffled order, and again from the start when more are asked for."""
    shuffled = list(prompts)
    random.Random(f"questions/{seed}").shuffle(shuffled)
    return [shuffled[i % len(shuffled)] for i in range(conversations)]


def opening(persona: Persona, question: str, *, seed: int, conversation: int) -> str:
    """The first message: the question, sometimes with the user's wish, sometimes mistyped."""
    rng = random.Random(f"{persona.name}/{seed}/{conversation}/opening")
    ask, which, slip = (rng.random() for _ in range(3))
    wishes = [wish for wish in persona.wished(conversation) if wish.requests]
    text = question
    if wishes and ask < persona.habits.request:
        requests = wishes[int(which * len(wishes))].requests
        text = f"{question} {requests[rng.randrange(len(requests))]}"
    return misspelt(text, rng) if slip < persona.habits.typos else text


def answer_seed(persona: str, seed: int, conversation: int, number: int) -> int:
    """The seed of the request for a conversation's answer `number` (0 is the first): 31 bits, which every server
    accepts."""
    return random.Random(f"{persona}/{seed}/{conversation}/{number}/answer").getrandbits(31)


def react(
    persona: Persona, mark: CheckResult, answer: str, *, seed: int, conversation: int, asked: int, said: Sequence[str]
) -> Reaction:
    """Decide the reaction to an answer.

    `asked` counts the answers looked at so far; `said` are the user's messages, the question first, so that no phrase
    comes twice. Every call draws the same numbers whatever the answer was: the users of two models differ only where
    answers do.
    """
    rng = random.Random(f"{persona.name}/{seed}/{conversation}/{asked}")
    subject, mood, event, rate, phrase, wrong, again, shrug, notice, slip = (rng.random() for _ in range(10))
    habits, patient = persona.habits, asked <= persona.habits.patience
    events: list[dict[str, Any]] = [{"kind": "rating", "value": -1.0} for _ in range(habits.flood)]

    def types(phrases: Sequence[str]) -> str:
        text = _pick(phrases, phrase, said)
        return misspelt(text, rng) if slip < habits.typos else text

    if rate < habits.rating:
        events.append({"kind": "rating", "value": round(2 * mark.grade - 1, 2)})
    if subject < habits.off_topic and patient:
        return Reaction("off_topic", types(persona.off_topic), tuple(events))
    if mark.passed and wrong < habits.wrong and patient:
        return Reaction("complain", types(persona.wrong), tuple(events))
    if mark.passed:
        if event < habits.accepted:
            events.append({"kind": "accepted"})
        if mood < habits.thanks:
            return Reaction("thank", types(persona.thanks), tuple(events), last=True)
        return Reaction("leave", None, tuple(events))
    unmet = persona.unmet(answer, said[0], conversation) or list(persona.wished(conversation))
    if event < habits.edit and (mended := mended_for(persona, answer, said[0], conversation)) is not None:
        return Reaction("edit", None, (*events, {"kind": "edited", "final_text": mended}))
    if again < habits.retry and patient:
        return Reaction("retry", None, (*events, {"kind": "retried"}))
    if mood < habits.silence or not patient:
        if notice < habits.abandoned:
            events.append({"kind": "abandoned"})
        muttered = types(persona.silence) if shrug < habits.shrug else None
        return Reaction("leave", muttered, tuple(events), last=True)
    return Reaction("complain", types(unmet[0].complaints), tuple(events))


_ROOM = 12
"""Words that an editor may add around an answer which another one shortens."""


def mended_for(persona: Persona, answer: str, question: str, conversation: int) -> str | None:
    """The answer as this persona would have it, all of its wishes granted; None when programs cannot bring that."""
    unmet = persona.unmet(answer, question, conversation)
    mended = mend(answer, unmet)
    if mended is None or persona.mark(mended, question, conversation).passed:
        return mended
    # One edit undid another: a sign-off made the answer too long, or what was cut held the question back.
    broken = [*unmet, *persona.unmet(mended, question, conversation)]
    mended = mend(answer, [_tighter(wish) for wish in persona.wished(conversation) if wish in broken])
    return mended if mended is not None and persona.mark(mended, question, conversation).passed else None


def _tighter(wish: Wish) -> Wish:
    most = wish.options.get("max_words")
    return wish if most is None else replace(wish, options={**wish.options, "max_words": max(1, most - _ROOM)})


def mend(answer: str, unmet: Sequence[Wish]) -> str | None:
    """The answer as the user would have it; None when some wish has no program for it, nothing would change, or
    nothing would be left (an answer of marks only)."""
    mended = answer
    for wish in unmet:
        if wish.editor is None or not answer.strip():
            return None
        mended = EDITORS[wish.editor](mended, wish.options)
    return None if mended.strip() in {"", answer.strip()} else mended


def misspelt(text: str, rng: random.Random) -> str:
    """The text as a hasty hand would type it: one word in eight has a letter doubled, left out or swapped."""
    words = text.split(" ")
    slips = max(1, len(words) // 8)
    long = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for i in rng.sample(long, min(slips, len(long))):
        word, at = words[i], rng.randrange(1, len(words[i]) - 1)
        words[i] = rng.choice((
            word[:at] + word[at] + word[at:], word[:at] + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        ))  # fmt: skip
    return " ".join(words)


def _pick(phrases: Sequence[str], draw: float, said: Sequence[str]) -> str:
    """One of the phrases by a number in [0, 1), none that was already said while there are others."""
    fresh = [phrase for phrase in phrases if phrase not in said] or list(phrases)
    return fresh[int(draw * len(fresh))]
