"""Decides which of some earlier turns a request continues, by rules from strict to lenient; never guesses.

Where user and conversation are named, an equal answer needs little more; otherwise only a turn that no other resembles
is linked. `trail` defines the compared fingerprints. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from afterword.chat.trail import DEPTH, Trail, squeezed, stored_prints

SURE = 16
"""Characters (without white space) that must be equal before the end of a conversation stands for all of it, where
nobody is named."""
LITTLE = 24
"""Characters that must be equal when the question before the answer reads otherwise."""
RARE = 80
"""The same where nothing explains why."""
COPIED = 200
"""Characters of a whole conversation that is the same one under another name: a chat that was copied."""
TELLING = 12
"""Characters of a question that identify it within a longer text."""
OPENED = 128
"""Questions of candidates that are read to see what stands in them."""

Questions = Callable[[Sequence[str]], Mapping[str, str]]
"""Reads the newest question of each of these turns; one that is not stored yet may be missing."""


class Earlier(NamedTuple):
    """A turn that the request may continue."""

    id: str
    order: float
    """Later turns have greater ones."""
    thread: str
    """Its trail."""
    conversation: str | None


class Choice(NamedTuple):
    """The decision, with its outcome."""

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

    @property
    def same(self) -> bool:
        """Equal in all that the request shows."""
        return not self.wrong and self.shift < 2


def choose(
    trail: Trail,
    earlier: Sequence[Earlier],
    conversation: str | None,
    questions: Questions,
    *,
    crowded: bool = False,
    least: int = SURE,
) -> Choice:
    """Decides for the trail of a request up to its newest answer.

    Args:
        trail: Trail of the request.
        earlier: Turns of the same scope with the same newest answer.
        conversation: Name given by the client.
        questions: Returns the newest questions of turns.
        crowded: True when `earlier` is incomplete; the others differ in the question or before it.
        least: Characters that must be equal when the request shows only the end of a conversation.
    """
    fits = [fit for turn in earlier if (fit := _compare(trail, turn)) is not None]
    if conversation is not None:
        own = [fit for fit in fits if fit.turn.conversation == conversation]
        if own:
            return _within(trail, own, questions)
        copies = [f for f in fits if not f.wrong and f.shift == 0 and f.weight >= COPIED]
        fits = [fit for fit in fits if fit.turn.conversation is None]
        if not fits and copies:
            return _only(copies)
    if not fits:
        return Choice(None, "ambiguous" if crowded else "unmatched")
    return _anywhere(trail, fits, questions, crowded=crowded, least=least)


def _compare(trail: Trail, turn: Earlier) -> _Fit | None:
    """None when an answer before the newest one is another: then it is another conversation."""
    prints, whole = stored_prints(turn.thread)
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


def _only(fits: list[_Fit], unwrapped: bool = False) -> Choice:
    return Choice(fits[0].turn, "linked", unwrapped) if len(fits) == 1 else Choice(None, "ambiguous")


def _within(trail: Trail, fits: list[_Fit], questions: Questions) -> Choice:
    """In one named conversation of one user."""
    best = min((len(fit.wrong), fit.shift) for fit in fits)
    top = [fit for fit in fits if (len(fit.wrong), fit.shift) == best]
    if not best[0]:
        if best[1] == 0 and any(not fit.wrong and fit.shift == 1 for fit in fits):
            return Choice(None, "ambiguous")  # a beginning, or the same words again later, cut off
        # Equal in all that the client shows: what it shows is the newest.
        return Choice(max(top, key=lambda fit: fit.turn.order).turn, "linked")
    asked, unwrapped = _quoting(trail, top, questions)
    if asked:
        return _only(asked, unwrapped)
    if len(top) > 1:
        return Choice(None, "ambiguous")
    return _only(top) if top[0].shift < 2 or top[0].weight >= LITTLE else Choice(None, "unsure")


def _anywhere(trail: Trail, fits: list[_Fit], questions: Questions, *, crowded: bool, least: int) -> Choice:
    """Among all turns of a scope, which may be those of many people."""
    same = [fit for fit in fits if fit.same]
    other = [fit for fit in fits if 1 in fit.wrong and fit.shift < 2]
    unseen = crowded and len(trail.prints) < 3  # turns with another question
    held = [fit for fit in other if fit.turn.thread[0] == "w" or not (same or unseen)]
    if len(same) < 2 and len(held) > OPENED:
        return Choice(None, "ambiguous")  # too many to look into each
    asked, unwrapped = _quoting(trail, held, questions) if len(same) < 2 else ([], False)
    if len(same) + len(asked) > 1:
        return Choice(None, "ambiguous")
    if same:
        sure = same[0].shift == 0 or same[0].weight >= least
        return _only(same) if sure else Choice(None, "unsure")
    if asked:
        sure = asked[0].weight + len(trail.words[1]) >= (LITTLE if least else 0)
        return _only(asked, unwrapped) if sure else Choice(None, "unsure")
    likely = [f for f in fits if (f.shift < 2 or not f.wrong) and not (unseen and 1 in f.wrong)]
    if len(likely) != 1:
        return Choice(None, "ambiguous" if likely or crowded else "unmatched")
    (fit,) = likely
    enough = COPIED if fit.shift == 2 else RARE if 1 in fit.wrong else LITTLE
    return _only(likely) if fit.weight >= enough and len(fit.wrong) < 2 else Choice(None, "unsure")


def _quoting(trail: Trail, fits: list[_Fit], questions: Questions) -> tuple[list[_Fit], bool]:
    """Those whose newest question contains the one that the request shows in its place; and do they: the user may also
    have added to it."""
    shown = trail.words[1] if len(trail.words) > 1 else ""
    fits = [fit for fit in fits if 1 in fit.wrong]
    if not shown or not fits or len(fits) > OPENED:
        return [], False
    read = {name: squeezed(text) for name, text in questions([fit.turn.id for fit in fits]).items()}
    asked = [fit for fit in fits if shown in read.get(fit.turn.id, "")]
    if asked:
        return asked, True
    return [fit for fit in fits if len(q := read.get(fit.turn.id, "")) >= TELLING and q in shown], False
