"""Finds the captured turns behind the answers of a chat that a front end keeps too.

The front end sends the id of its chat with each request (`serve.conversation_from`), so the turns of a chat carry it.
An answer is found by the words of question and answer. Reads the store, never writes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from afterword.chat.canonical import text_of
from afterword.chat.trail import squeezed
from afterword.chat.wrapped import user_words
from afterword.records import BESIDE, Json, Turn
from afterword.store import Store

MOST = 2000
"""Turns of one conversation that are looked at."""


class CapturedChat:
    """The captured turns of one chat.

    Args:
        store: Has the turns.
        chat: The front end's id of the chat.
        user: Whose chat it is; turns of others are never taken. None: not known, so only turns without a user.
    """

    def __init__(self, store: Store, chat: str, user: str | None) -> None:
        self._by_words: dict[tuple[str, str], deque[str]] = defaultdict(deque)
        self._by_answer: dict[str, set[str]] = defaultdict(set)
        self._turns: dict[str, Turn] = {}
        for turn in store.rows(Turn, conversation=chat, limit=MOST) if chat else ():
            if turn.source != "gateway" or turn.automated in BESIDE or turn.user not in (user, None):
                continue
            asked, answered = _asked(turn.messages), squeezed(text_of(turn.answer.get("content")))
            if answered:
                self._by_words[asked, answered].append(turn.id)
                self._by_answer[answered].add(turn.id)
                self._turns[turn.id] = turn

    def __bool__(self) -> bool:
        return bool(self._turns)

    def find(self, messages: Iterable[Json], answer: Json) -> Turn | None:
        """The turn of an answer. Call in the order of the chat: the same answer to the same question, given twice, is
        the next one.

        Args:
            messages: The messages before the answer.
            answer: The answer as it was given, before any edit.

        Returns:
            None when the answer was not captured, or when it cannot be said which turn it is.
        """
        said = squeezed(text_of(answer.get("content")))
        waiting = self._by_words.get((_asked(messages), said))
        if waiting:
            name = waiting.popleft()
            self._by_answer[said].discard(name)
            return self._turns[name]
        left = self._by_answer.get(said, set())
        if len(left) != 1:  # retrieved text around the question may hide it, but then only one may be meant
            return None
        name = left.pop()
        for names in self._by_words.values():
            if name in names:
                names.remove(name)
        return self._turns[name]


def _asked(messages: Iterable[Json]) -> str:
    questions = [message for message in messages if message.get("role") == "user"]
    return squeezed(user_words(text_of(questions[-1].get("content")))[0]) if questions else ""
