"""Peer success: a later attempt at the same request that the user accepted.

Owns the search through the store; what counts as accepted is decided by the same readings as everything else.
Never writes.
"""

from __future__ import annotations

from collections.abc import Iterator

from afterword.chat.trail import DEPTH, asked_key, trail_of
from afterword.feedback.collect.decide import turn_refusal
from afterword.feedback.collect.signals import Case, Signal, answer_text, read
from afterword.feedback.settings import CollectSettings
from afterword.records import Feedback, Turn, not_to_imitate
from afterword.store import Store
from afterword.store.attribution import speaker

NEAR = 64
"""Turns of the same conversation, parent or user that are looked at, oldest first."""


def accepted_attempt(store: Store, turn: Turn, feedback: tuple[Feedback, ...], settings: CollectSettings) -> str | None:
    """The answer (or the user's edit of it) of the first later attempt that was accepted, None without one.

    Accepted by whoever asked again: the words of one user are never shown as another's.
    """
    for attempt in _attempts(store, turn, feedback):
        answer = _accepted(store, attempt, speaker(feedback, turn.user), settings)
        if answer is not None:
            return answer
    return None


def _attempts(store: Store, turn: Turn, feedback: tuple[Feedback, ...]) -> Iterator[Turn]:
    seen = {turn.id}
    for attempt in (*_linked(store, turn, feedback), *_same_request(store, turn)):
        if attempt.id not in seen and attempt.key == turn.key and attempt.user == turn.user:
            seen.add(attempt.id)
            yield attempt


def _linked(store: Store, turn: Turn, feedback: tuple[Feedback, ...]) -> list[Turn]:
    """The chain of next attempts that the feedback names, as far as they are later and asked the same: a client that
    names its next turn, whatever was asked, must not teach the answer to something else."""
    asked = _asked(turn)
    chain: list[Turn] = []
    rows = list(feedback)
    while rows and len(chain) < NEAR:
        names = {f.next_turn for f in rows if f.next_turn and f.kind in {"retried", "regenerated"}}
        names -= {t.id for t in chain}
        turns = [t for _, t in store.among(Turn, "id", sorted(names))] if names else []
        turns = [t for t in turns if t.created_at >= turn.created_at and _asked(t) == asked]
        chain += turns
        rows = [f for _, f in store.among(Feedback, "turn", [t.id for t in turns])] if turns else []
    return chain


def _same_request(store: Store, turn: Turn) -> list[Turn]:
    """Later turns with the same messages, in the narrowest scope that is known."""
    scope = next(((c, v) for c in ("conversation", "previous", "user") if (v := getattr(turn, c)) is not None), None)
    if scope is None:
        return []
    asked = _asked(turn)
    later = store.rows(Turn, newest=True, limit=NEAR, **dict([scope]))
    same = [t for t in later if t.created_at >= turn.created_at and _asked(t) == asked]
    return same[::-1]


def _asked(turn: Turn) -> str:
    """What the request asks; a clock in its system prompt makes it no other one."""
    return asked_key(trail_of((), turn.messages, DEPTH + 1), turn.messages)


def _accepted(store: Store, attempt: Turn, user: str | None, settings: CollectSettings) -> str | None:
    rows = tuple(f for _, f in store.among(Feedback, "turn", [attempt.id]) if speaker((f,), attempt.user) == user)
    gone = {f.retracts for _, f in store.among(Feedback, "retracts", [f.id for f in rows])}
    gone |= store.superseded([attempt.id])
    case = Case(turn=attempt, feedback=rows)
    if turn_refusal(case) is not None:
        return None
    signals = [s for f in rows if f.id not in gone and isinstance(s := read(case, f, settings), Signal)]
    if any(s.firm and s.polarity < 0 for s in signals):
        return None
    edits = [s.feedback.final_text for s in signals if s.feedback.kind == "edited"]
    if edits:
        return (edits[-1] or "").strip()
    if not_to_imitate(attempt.answer):
        return None
    return answer_text(attempt) if any(s.polarity > 0 for s in signals) else None
