"""Links a request to the turn that it continues: by id, or by the history that the client sent again.

Owns the index of recent turns, committed or not, and the fallback to the store. Links only within one API key and user;
on doubt links nothing (`chat.matching` has the rules). Never writes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from afterword.chat.canonical import text_of, thread_hashes
from afterword.chat.linking import RecentTurns, last_answer, stored_questions, stored_turn_of
from afterword.chat.matching import SURE, Choice, Earlier, choose
from afterword.chat.trail import DEPTH, SIZE, Trail, aside, asked_key, newest_question, trail_of
from afterword.chat.wrapped import user_words, words_like
from afterword.errors import StoreError
from afterword.gateway.wire.request import ChatRequest, scope_of
from afterword.records import Feedback, Json, Turn, content_hash
from afterword.store import Store, TrailTurn

REMEMBERED = 10_000
"""Recent turns in memory; older ones are found in the store."""
SAME_REQUEST = 600.0
"""Seconds within which an equal first message of a named user is the same request, asked again."""

CROWD = 128
"""Turns of one scope with the same newest answer that are compared one by one; "Yes." may have been said more often."""
MULTITUDE = 4096
"""The same for a look at their fingerprints alone, which takes a millisecond."""
UNLINKED = ("unmatched", "ambiguous", "unsure", "unknown", "foreign", "unavailable")
"""Outcomes of a request that has a history and is linked to nothing."""
UNFINISHED = ("aborted", "error")
"""Asking again after one of these is a repair (clients do it by themselves), not a judgement."""


Request = tuple[str, str | None, str | None, str]
"""Hash of the messages that were answered, the turn that they continued, the conversation, the model that was asked."""


@dataclass(frozen=True, slots=True)
class LinkableTurn:
    """The fields of a turn that linking needs."""

    id: str
    scope: tuple[str | None, str | None]
    conversation: str | None
    thread: str
    """Its trail, "" when nobody can continue it."""
    request: Request
    at: float
    order: int
    """Grows with every turn."""


@dataclass(frozen=True, slots=True)
class Link:
    """How a request relates to earlier turns."""

    sent: Trail = field(default_factory=Trail)
    """The trail of the request."""
    asked: str = ""
    """What the request asks (`asked_key`)."""
    previous: str | None = None
    conversation: str | None = None
    outcome: str = "none"
    """linked, none (nothing to link), beside (a program's request that is no part of the conversation), or why not:
    unmatched, ambiguous, unsure (too little is equal), unknown or foreign (a named turn), unavailable."""
    follow_up: str | None = None
    """The user's words after the previous turn."""
    repeats: str | None = None
    """The earlier turn of the same request."""
    corrections: tuple[Feedback, ...] = ()
    """An earlier follow-up in the user's own words, now that the history shows them, and the retraction of what was
    taken for them."""

    @property
    def unlinked(self) -> str | None:
        """Why a request with a history is linked to nothing; None for all others."""
        return self.outcome if self.outcome in UNLINKED else None

    def feedback(self, user: str | None, turn: str | None) -> list[Feedback]:
        """Builds the feedback that a request gives on earlier turns.

        Args:
            user: User of the request.
            turn: Id of the turn that answers it; None without an answer.

        Returns:
            Corrections, and a follow-up or regeneration event.
        """
        if self.repeats is not None and turn is None:
            return []  # asked again and not answered: it will be asked once more
        rows = list(self.corrections)
        if self.repeats is not None:
            name = content_hash("regenerated", self.repeats, turn)
            rows.append(_said("regenerated", name, self.repeats, next_turn=turn, user=user))
        elif self.previous is not None and self.follow_up:
            rows.append(_follow_up(self.previous, self.follow_up, turn, user))
        return rows


def _said(kind: str, name: str, turn: str, **more: str | None) -> Feedback:
    return Feedback(id=f"fb-{name}", turn=turn, kind=kind, source="detector", **more)  # type: ignore[arg-type]


def _follow_up(on: str, words: str, turn: str | None, user: str | None) -> Feedback:
    name = content_hash("follow_up", on, words)
    return _said("follow_up", name, on, text=words, next_turn=turn, user=user)


class Links:
    """Finds the turn that a request continues: recent turns in memory, all others in the store."""

    def __init__(self, store: Store, remembered: int = REMEMBERED) -> None:
        self._store = store
        self._recent: RecentTurns[LinkableTurn] = RecentTurns(remembered)
        self._asked: dict[Request, str] = {}
        self._order = 0

    # ---- the index

    def remember(self, turn: Turn, asked: str, model: str = "") -> None:
        """Makes a turn linkable before it is committed.

        Args:
            turn: The turn.
            asked: Key of the request's question (`asked_key`).
            model: Model name in the request.
        """
        request = (asked, turn.previous, turn.conversation, model)
        thread = turn.thread or ""
        self._order += 1
        known = LinkableTurn(
            turn.id, _scope_of(turn), turn.conversation, thread, request, time.monotonic(), self._order
        )
        self._without_request(self._recent.add(turn.id, thread[:SIZE], known))
        if turn.finish_reason not in UNFINISHED:
            self._asked[request] = turn.id

    def forget(self, turn: str) -> None:
        """Removes a turn from the index: it is old, or it could not be stored."""
        self._without_request(self._recent.drop(turn))

    def _without_request(self, known: LinkableTurn | None) -> None:
        if known is not None and self._asked.get(known.request) == known.id:
            del self._asked[known.request]

    def recent(self, turn: str) -> bool:
        """True when the turn is in memory."""
        return turn in self._recent

    # ---- the question

    def find(self, chat: ChatRequest, adapter: str | None = None) -> Link:
        """Links a request to earlier turns.

        Args:
            chat: The request.
            adapter: Adapter that answers it.

        Returns:
            The link; outcome "unavailable" when the store cannot be read.
        """
        sent = trail_of(chat.scope, chat.history, DEPTH + 1)
        asked = asked_key(sent, chat.messages)
        try:
            choice, previous, conversation = self._previous(chat, sent.answered())
            conversation = chat.conversation or conversation
            if chat.beside:  # the conversation goes on from the answer before, not from this one
                return Link(sent=sent, asked=asked, conversation=conversation, outcome="beside")
            corrections: tuple[Feedback, ...] = ()
            words = (chat.newest.words or None) if previous else None
            if choice.unwrapped and previous:
                now, corrections = self._unwrapped(chat, previous)
                words = now if chat.newest.origin is None else None
            return Link(
                sent=sent,
                asked=asked,
                previous=previous,
                conversation=conversation,
                outcome=choice.outcome,
                follow_up=words,
                repeats=None if chat.retry else self._repeated(chat, asked, previous, conversation, adapter),
                corrections=corrections,
            )
        except StoreError:
            return Link(sent=sent, asked=asked, conversation=chat.conversation, outcome="unavailable")

    def _previous(self, chat: ChatRequest, trail: Trail) -> tuple[Choice, str | None, str | None]:
        """What was decided, the turn before and its conversation."""
        if chat.previous is not None:
            scope, conversation = self._scope(chat.previous)
            if scope == chat.scope:
                return Choice(None, "linked"), chat.previous, conversation
            return Choice(None, "unknown" if scope is None else "foreign"), None, None
        if not trail.prints:
            return Choice(None, "none"), None, None
        found, crowded = self._candidates(trail, chat.conversation)
        least = SURE if chat.user is None else 0
        choice = choose(
            trail, found, chat.conversation, partial(stored_questions, self._store), crowded=crowded, least=least
        )
        if choice.turn is not None:
            return choice, choice.turn.id, choice.turn.conversation
        if choice.outcome == "unmatched" and (old := self._of_an_older_version(chat)) is not None:
            return Choice(None, "linked"), old, self._scope(old)[1]
        return choice, None, None

    def _candidates(self, trail: Trail, conversation: str | None) -> tuple[list[Earlier], bool]:
        """Turns with the same newest answer, and whether there are more than these."""
        plain, held = trail.prints, aside(trail.prints)
        rows = self._store.turns_on_trails((plain[0], held[0]), CROWD + 1)
        found: dict[str, Earlier] = {}
        crowded = False
        for prints in (plain, held):
            known = self._recent.answered(prints[0])
            stored = [row for row in rows if row.thread[0] == prints[0][0]]
            if len(known) > CROWD or len(stored) > CROWD:
                crowded = True
                known, stored = self._of_a_crowd(prints, known, conversation, skip=prints is plain)
            found |= {row.id: Earlier(*row) for row in stored}
            newer = 2**53  # than any row that is not in memory
            found |= {k.id: Earlier(k.id, newer + k.order, k.thread, k.conversation) for k in known}
        return list(found.values()), crowded

    def _of_a_crowd(
        self, prints: Sequence[str], known: list[LinkableTurn], conversation: str | None, *, skip: bool
    ) -> tuple[list[LinkableTurn], list[TrailTurn]]:
        """Of very many turns with one answer: those of the named conversation, and those that agree in all that the
        request shows, or else in the last two messages, or else (`skip`) in all but the question."""
        answer = prints[0]
        own = [k for k in known if conversation is not None and k.conversation == conversation]
        stored = [] if conversation is None else self._store.turns_of_conversation_on_trail(conversation, answer, CROWD)
        for start in dict.fromkeys(("".join(prints), "".join(prints[:2]))):
            same = [k for k in known if k.thread.startswith(start)]
            rows = self._store.turns_on_trails((start,), CROWD + 1)
            if rows or same:
                return own + same[: CROWD + 1], stored + rows
        if skip and len(prints) > 2:
            rest, at = "".join(prints[2:]), 2 * SIZE
            later = self._store.turns_on_trail_later(answer, at, rest, MULTITUDE, CROWD + 1)
            if later is not None and len(known) <= MULTITUDE:
                same = [k for k in known if k.thread.startswith(rest, at)]
                return own + same[: CROWD + 1], stored + later
        return own, stored

    def _of_an_older_version(self, chat: ChatRequest) -> str | None:
        """Turns that were stored before there were trails are found by the hash of the whole history."""
        last = last_answer(chat.messages)
        hashes = [] if last is None else thread_hashes(chat.scope, chat.messages[: last + 1])
        return stored_turn_of(self._store, hashes[-1]) if hashes else None

    def _scope(self, turn: str) -> tuple[tuple[str | None, str | None] | None, str | None]:
        known = self._recent.get(turn)
        if known is not None:
            return known.scope, known.conversation
        row = self._store.find(Turn, turn)
        return (None, None) if row is None else (_scope_of(row), row.conversation)

    def _repeated(
        self, chat: ChatRequest, asked: str, previous: str | None, conversation: str | None, adapter: str | None
    ) -> str | None:
        """The turn that answered the same messages in the same state, asked of the same model.

        A first message is the same request only within a named conversation, or from a named user within minutes:
        many people say "Hi". Another model is asked for a comparison, which is no judgement.
        """
        earlier = self._asked.get((asked, previous, conversation, chat.model))
        if earlier is not None:
            known = self._recent.get(earlier)
            recent = known is not None and chat.user is not None and time.monotonic() - known.at < SAME_REQUEST
            return earlier if previous or conversation or recent else None
        if previous is not None:
            rows = self._store.rows(Turn, newest=True, limit=8, previous=previous)
        elif conversation is not None:
            rows = self._store.rows(Turn, newest=True, limit=8, conversation=conversation, previous=None)
        else:
            return None
        for row in rows:
            if row.finish_reason in UNFINISHED or _scope_of(row) != chat.scope or row.id in self._recent:
                continue
            if "@" in chat.model and row.adapter != adapter:
                continue  # a version that was named, where another one had answered
            if asked_key(trail_of(chat.scope, row.messages, DEPTH + 1), row.messages) == asked:
                return row.id
        return None

    def _unwrapped(self, chat: ChatRequest, previous: str) -> tuple[str | None, tuple[Feedback, ...]]:
        """The client puts text around the newest question in a way of its own, as the previous turn shows: the user's
        words now, if they can be told from it, and what has to be corrected about that turn."""
        turn = self._store.find(Turn, previous)
        answer = last_answer(chat.messages) or 0
        words = _words_before(chat.messages, answer)
        if turn is None or not words:
            return None, ()
        now = words_like(newest_question(turn.messages), words, newest_question(chat.messages))
        return now, self._corrections(turn, words, chat.user)

    def _corrections(self, turn: Turn, words: str, user: str | None) -> tuple[Feedback, ...]:
        """The question of `turn` was a follow-up itself: it is said again in the user's words, and what was taken for
        them is taken back."""
        if turn.previous is None or turn.automated:
            return ()
        rows = list(self._store.rows(Feedback, turn=turn.previous))
        taken_back = {row.retracts for row in rows if row.retracts}
        told = [row for row in rows if row.kind == "follow_up" and row.next_turn == turn.id]
        fresh = _follow_up(turn.previous, words, turn.id, user)
        if any(row.id in taken_back or row.id == fresh.id for row in told):
            return ()
        retract = partial(_said, "retraction", turn=turn.previous, user=user)
        wrong = [retract(name=content_hash("unwrapped", row.id), retracts=row.id) for row in told]
        return (*wrong, fresh)


def _scope_of(turn: Turn) -> tuple[str | None, str | None]:
    return scope_of(turn.key, turn.user, turn.episode_id)


def _words_before(messages: list[Json], answer: int) -> str | None:
    """What the user said before the answer at this index."""
    start = answer
    while start > 0 and messages[start - 1].get("role") == "user":
        start -= 1
    return _spoken(messages[start:answer])


def _spoken(messages: list[Json]) -> str | None:
    said = [user_words(text_of(m.get("content")))[0] for m in messages if m.get("role") == "user"]
    return "\n\n".join(text for text in said if text.strip()) or None
