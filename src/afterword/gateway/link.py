"""Which turn a request continues: by its id, or by the hash of the history that the client sent again.

Owns the index of recent turns (also those that are not committed yet) and the question to the store behind it. Links
only within one API key and user, and never guesses: two candidates are none. Never writes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from afterword.chat.canonical import text_of, thread_hashes
from afterword.errors import StoreError
from afterword.gateway.wire.request import ChatRequest
from afterword.records import Feedback, Turn, content_hash
from afterword.store import Store

REMEMBERED = 10_000
"""Recent turns in memory; older ones are found in the store."""
SAME_REQUEST = 600.0
"""Seconds within which an equal first message of a named user is the same request, asked again."""

UNFINISHED = ("aborted", "error")
"""Asking again after one of these is a repair (clients do it by themselves), not a judgement."""


@dataclass(frozen=True, slots=True)
class Known:
    """What linking needs of a turn."""

    id: str
    scope: tuple[str | None, str | None]
    conversation: str | None
    thread: str
    request: tuple[str, str | None]
    """Hash of the messages that it answered, and the turn that it continued."""
    at: float


@dataclass(frozen=True, slots=True)
class Link:
    """What a request is to what came before."""

    hashes: tuple[str, ...] = ()
    """One for each prefix of the request's messages."""
    previous: str | None = None
    conversation: str | None = None
    outcome: str = "none"
    """linked, none (nothing to link), unmatched, ambiguous, unknown or foreign (a named turn), unavailable."""
    follow_up: str | None = None
    """The user's words after the previous turn."""
    repeats: str | None = None
    """The earlier turn of the same request."""

    @property
    def asked(self) -> str:
        """Hash of all messages of the request."""
        return self.hashes[-1] if self.hashes else ""

    def feedback(self, user: str | None, turn: str | None) -> list[Feedback]:
        """What the request says about earlier turns; `turn` is the one that answers it, if there is one."""
        if self.repeats is not None:
            if turn is None:
                return []  # asked again and not answered: it will be asked once more
            return [
                Feedback(
                    id="fb-" + content_hash("regenerated", self.repeats, turn),
                    turn=self.repeats,
                    kind="regenerated",
                    next_turn=turn,
                    user=user,
                    source="detector",
                )
            ]
        if self.previous is None or not self.follow_up:
            return []
        return [
            Feedback(
                id="fb-" + content_hash("follow_up", self.previous, self.follow_up),
                turn=self.previous,
                kind="follow_up",
                text=self.follow_up,
                next_turn=turn,
                user=user,
                source="detector",
            )
        ]


class Links:
    """Recent turns in memory, all others in the store."""

    def __init__(self, store: Store, remembered: int = REMEMBERED) -> None:
        self._store = store
        self._size = remembered
        self._turns: OrderedDict[str, Known] = OrderedDict()
        self._threads: dict[str, list[str]] = {}
        self._asked: dict[tuple[str, str | None], str] = {}

    # ---- the index

    def remember(self, turn: Turn, asked: str) -> None:
        """Make a turn linkable before it is committed."""
        request = (asked, turn.previous)
        thread = turn.thread or ""
        known = Known(turn.id, (turn.key, turn.user), turn.conversation, thread, request, time.monotonic())
        self._turns[turn.id] = known
        self._threads.setdefault(thread, []).append(turn.id)
        if turn.finish_reason not in UNFINISHED:
            self._asked[request] = turn.id
        if len(self._turns) > self._size:
            self.forget(next(iter(self._turns)))

    def forget(self, turn: str) -> None:
        """Take a turn out again: it is old, or it could not be stored."""
        known = self._turns.pop(turn, None)
        if known is None:
            return
        rest = [t for t in self._threads[known.thread] if t != turn]
        if rest:
            self._threads[known.thread] = rest
        else:
            del self._threads[known.thread]
        if self._asked.get(known.request) == turn:
            del self._asked[known.request]

    def recent(self, turn: str) -> bool:
        """Is this turn in memory?"""
        return turn in self._turns

    # ---- the question

    def find(self, chat: ChatRequest) -> Link:
        """The link of a request. A store that cannot be read means no link, never an error."""
        hashes = tuple(thread_hashes(chat.scope, chat.messages))
        try:
            previous, conversation, outcome = self._previous(chat, hashes)
            conversation = chat.conversation or conversation
            link = Link(
                hashes=hashes,
                previous=previous,
                conversation=conversation,
                outcome=outcome,
                follow_up=_words(chat) if previous else None,
                repeats=self._repeated(chat, hashes[-1], previous, conversation),
            )
        except StoreError:
            link = Link(hashes=hashes, conversation=chat.conversation, outcome="unavailable")
        return link

    def _previous(self, chat: ChatRequest, hashes: tuple[str, ...]) -> tuple[str | None, str | None, str]:
        if chat.previous is not None:
            scope, conversation = self._scope(chat.previous)
            if scope is None:
                return None, None, "unknown"
            return (chat.previous, conversation, "linked") if scope == chat.scope else (None, None, "foreign")
        last = _last_answer(chat)
        if last is None:
            return None, None, "none"
        thread = hashes[last]
        found = {*self._threads.get(thread, ()), *self._store.turns_of_thread(thread)}
        if len(found) != 1:
            return None, None, "ambiguous" if found else "unmatched"
        turn = found.pop()
        return turn, self._scope(turn)[1], "linked"

    def _scope(self, turn: str) -> tuple[tuple[str | None, str | None] | None, str | None]:
        known = self._turns.get(turn)
        if known is not None:
            return known.scope, known.conversation
        row = self._store.find(Turn, turn)
        return (None, None) if row is None else ((row.key, row.user), row.conversation)

    def _repeated(self, chat: ChatRequest, asked: str, previous: str | None, conversation: str | None) -> str | None:
        """The turn that answered the same messages in the same state.

        A first message is the same request only within a named conversation, or from a named user within minutes:
        many people say "Hi".
        """
        earlier = self._asked.get((asked, previous))
        if earlier is not None:
            known = self._turns[earlier]
            if known.conversation != conversation:
                return None
            recent = chat.user is not None and time.monotonic() - known.at < SAME_REQUEST
            return earlier if previous or conversation or recent else None
        if previous is not None:
            rows = self._store.rows(Turn, newest=True, limit=8, previous=previous)
        elif conversation is not None:
            rows = self._store.rows(Turn, newest=True, limit=8, conversation=conversation, previous=None)
        else:
            return None
        for row in rows:
            if row.finish_reason in UNFINISHED or (row.key, row.user) != chat.scope:
                continue
            if thread_hashes(chat.scope, row.messages)[-1] == asked:
                return row.id
        return None


def _last_answer(chat: ChatRequest) -> int | None:
    """Index of the last assistant message, None when there is none."""
    for index in range(len(chat.messages) - 1, -1, -1):
        if chat.messages[index].get("role") == "assistant":
            return index
    return None


def _words(chat: ChatRequest) -> str | None:
    """What the user said after the last answer; None when nothing was said (a tool's result, an image)."""
    last = _last_answer(chat)
    said = [text_of(m.get("content")) for m in chat.messages[-1 if last is None else last + 1 :] if m["role"] == "user"]
    return "\n\n".join(text for text in said if text.strip()) or None
