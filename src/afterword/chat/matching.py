"""Which of some earlier turns a request continues: the rules, from strict to lenient. They never guess.

Owns what counts as the same conversation when a client changed what it sent (`trail` says what is compared). Where user
and conversation are named, an equal answer needs little more; where they are not, many people have said the same, and
only a turn that no other resembles is linked. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from afterword.chat.trail import DEPTH, SIZE, WHOLE, Trail, squeezed

SURE = 40
"""Characters (without white space) that must be equal before the end of a conversation stands for all of it."""
RARE = 80
"""Characters of an answer that identify it although the question before it reads otherwise now."""
COPIED = 200
"""Characters of a whole conversation that is the same one under another name: a chat that was copied."""
QUOTED = 12
"""Characters of a question that identify it within a longer text."""
LITTLE = 24
"""The same as SURE, within one named conversation."""
OPENED = 8
"""Questions of candidates that are read to see what stands in them."""

Contains = Callable[[str, str], bool]
"""Does the newest question of this turn contain these words? Reads the turn."""


class Earlier(NamedTuple):
    """A turn that the request may continue."""

    id: str
    order: float
    """Later turns have greater ones."""
    thread: str
    """Its trail."""
    conversation: str | None


class Choice(NamedTuple):
    """What was decided."""

    turn: Earlier | None
    outcome: str
    """linked; unmatched: none resembles; ambiguous: several do; unsure: one does, but too little of it is known."""
    unwrapped: bool = False
    """The question before the answer stood in other text when it was asked; now it reads as the user wrote it."""


class _Fit(NamedTuple):
    """How a turn's trail compares with that of the request."""

    turn: Earlier
    wrong: tuple[int, ...]
    """Places of questions that read otherwise."""
    shift: int
    """0: as long as each other; 1: the request shows less of it; 2: it shows more than the turn had."""
    weight: int
    """Characters that are equal."""


def choose(
    trail: Trail, found: Sequence[Earlier], conversation: str | None, contains: Contains, *, crowded: bool = False
) -> Choice:
    """Decide for the trail of a request up to its newest answer.

    `found` are turns with the same newest answer in the same scope. `crowded`: there are more than these, but those
    that match without a difference are all here.
    """
    fits = [fit for turn in found if (fit := _compare(trail, turn)) is not None]
    if conversation is not None:
        own = [fit for fit in fits if fit.turn.conversation == conversation]
        if own:
            return _within(trail, own, contains)
        copies = [f for f in fits if not f.wrong and f.shift == 0 and f.weight >= COPIED]
        fits = [fit for fit in fits if fit.turn.conversation is None]
        if not fits and copies:
            return _only(copies)
    if not fits:
        return Choice(None, "ambiguous" if crowded else "unmatched")
    return _anywhere(trail, fits, contains, crowded=crowded)


def _compare(trail: Trail, turn: Earlier) -> _Fit | None:
    """None when an answer before the newest one is another: then it is another conversation."""
    whole = turn.thread.endswith(WHOLE)
    prints = [turn.thread[i : i + SIZE] for i in range(0, len(turn.thread) - whole, SIZE)]
    common = min(len(prints), len(trail.prints))
    wrong = tuple(i for i in range(common) if prints[i] != trail.prints[i])
    if any(prints[i][0] == "a" or trail.prints[i][0] == "a" for i in wrong) or not common:
        return None
    # Behind its last message a whole trail ends; one that is not goes on unseen.
    ours = len(trail.prints) if trail.whole else DEPTH + 1
    theirs = len(prints) if whole else DEPTH + 1
    shift = 0 if ours == theirs else 1 if ours < theirs else 2
    weight = sum(len(trail.words[i]) for i in range(common) if i not in wrong)
    return _Fit(turn, wrong, shift, weight)


def _only(fits: list[_Fit], *, unwrapped: bool = False) -> Choice:
    return Choice(fits[0].turn, "linked", unwrapped) if len(fits) == 1 else Choice(None, "ambiguous")


def _within(trail: Trail, fits: list[_Fit], contains: Contains) -> Choice:
    """In one named conversation of one user."""
    best = min((len(fit.wrong), fit.shift) for fit in fits)
    top = [fit for fit in fits if (len(fit.wrong), fit.shift) == best]
    if not best[0]:
        if best[1] == 0 and any(not fit.wrong and fit.shift == 1 for fit in fits):
            return Choice(None, "ambiguous")  # a beginning, or the same words again later, cut off
        # Equal in all that the client shows: what it shows is the newest.
        return Choice(max(top, key=lambda fit: fit.turn.order).turn, "linked")
    asked = _quoting(trail, top, contains, 1)
    if asked:
        return _only(asked, unwrapped=True)
    if len(top) == 1 and top[0].weight >= LITTLE:
        return _only(top)
    return Choice(None, "ambiguous" if len(top) > 1 else "unsure")


def _anywhere(trail: Trail, fits: list[_Fit], contains: Contains, *, crowded: bool) -> Choice:
    """Among all turns of a scope, which may be those of many people."""
    same = [fit for fit in fits if not fit.wrong and fit.shift < 2]
    asked = [] if crowded else _quoting(trail, [fit for fit in fits if fit.wrong == (1,)], contains, QUOTED)
    if same or asked:
        only = _only([*same, *asked], unwrapped=bool(asked))
        if same and only.turn is not None and (same[0].shift or crowded) and same[0].weight < SURE:
            return Choice(None, "unsure")
        return only
    if crowded:
        return Choice(None, "ambiguous")
    likely = [fit for fit in fits if fit.shift < 2 or not fit.wrong]
    if len(likely) != 1:
        return Choice(None, "ambiguous" if likely else "unmatched")
    (fit,) = likely
    enough = COPIED if fit.shift == 2 else RARE
    return _only(likely) if fit.weight >= enough and len(fit.wrong) < 2 else Choice(None, "unsure")


def _quoting(trail: Trail, fits: list[_Fit], contains: Contains, least: int) -> list[_Fit]:
    """Those whose newest question contains the one that the request shows in its place."""
    shown = trail.words[1] if len(trail.words) > 1 else ""
    if len(shown) < least or len(fits) > OPENED:
        return []
    return [fit for fit in fits if 1 in fit.wrong and contains(fit.turn.id, shown)]


def quotes(question: str, shown: str) -> bool:
    """Do the words `shown` (without white space) stand within a longer question?"""
    text = squeezed(question)
    return len(text) > len(shown) and shown in text
