"""Reads the turns around a turn: an accepted later attempt at its request, and abandoned follow-ups.

A request of a program beside a conversation (a title) never stands in a later history: the user's next message
continues the answer before it. That sign needs no words and no language. Reads the store, never writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from afterword.chat.trail import DEPTH, asked_key, trail_of
from afterword.feedback.collect.decide import turn_skip_reason
from afterword.feedback.collect.signals import FeedbackCase, Signal, answer_text, read
from afterword.feedback.settings import CollectSettings
from afterword.records import Feedback, Skip, Turn, content_hash, not_to_imitate
from afterword.store import Store
from afterword.store.attribution import speaker

NEAR = 64
"""Turns of the same conversation, parent or user that are looked at, oldest first."""


def accepted_attempt(store: Store, turn: Turn, feedback: tuple[Feedback, ...], settings: CollectSettings) -> str | None:
    """The answer (or the user's edit of it) of the first later attempt that was accepted, None without one.

    Accepted by the user who asked again: the words of one user are never shown as another's.
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
    case = FeedbackCase(turn=attempt, feedback=rows)
    if turn_skip_reason(case) is not None:
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


# ---- follow-ups that the conversation did not go on from

REASON = "left_behind"
TIMES = 2
"""Conversations that must have left the same text behind before it is taken for a template everywhere."""
SHORTEST = 40
"""Characters of a text that may be a template; a shorter one is said by many people."""


class LeftBehind:
    """Messages that their conversations abandoned, as far as captured."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turns: dict[str, set[str]] | None = None
        """Turns on which a text was left behind, by the hash of the text."""

    def among(self, rows: Mapping[str, Sequence[Feedback]], turns: Mapping[str, Turn]) -> frozenset[str]:
        """Ids of follow-ups that were left behind, of the feedback on some turns.

        Only for what the gateway saw: in a file that holds several branches a person wrote each of them.
        """
        follow_ups = {
            turn: [f for f in group if f.kind == "follow_up" and f.source == "detector" and f.next_turn]
            for turn, group in rows.items()
            if turn in turns and turns[turn].source == "gateway"
        }
        named = [f.next_turn for group in follow_ups.values() for f in group if f.next_turn]
        if not named:
            return frozenset()
        went_on = self._store.continued(named)
        found = set()
        for group in follow_ups.values():
            for at, row in enumerate(group):
                if row.next_turn in went_on:
                    continue
                if any(later.next_turn in went_on and later.text != row.text for later in group[at + 1 :]):
                    self._add([row])
                    found.add(row.id)
                elif self._is_template(row):
                    found.add(row.id)
        return frozenset(found)

    def _is_template(self, row: Feedback) -> bool:
        text = row.text or ""
        return len(text) >= SHORTEST and len(self._known().get(content_hash(text), set()) - {row.turn}) >= TIMES

    def _add(self, rows: Iterable[Feedback]) -> None:
        known = self._known()
        for row in rows:
            if row.text and len(row.text) >= SHORTEST:
                known[content_hash(row.text)].add(row.turn)

    def _known(self) -> dict[str, set[str]]:
        """By text, from what earlier collections skipped; read when it is first needed."""
        if self._turns is None:
            self._turns = defaultdict(set)
            ids = [skip.feedback for skip in self._store.rows(Skip, reason=REASON)]
            self._add([row for _, row in self._store.among(Feedback, "id", ids)])
        return self._turns
