"""Finds the captured turns behind the answers of a chat that a front end keeps too.

The front end sends the id of its chat with each request (`serve.conversation_from`), so the turns of a chat carry it.
An answer is found by the words of question and answer. Reads the store, never writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from afterword.chat.canonical import text_of
from afterword.chat.trail import squeezed
from afterword.chat.wrapped import user_words
from afterword.records import BESIDE, Json, Turn
from afterword.store import Store

MOST = 2000
"""Turns of one conversation that are looked at."""


class ChatAnswer(NamedTuple):
    """An answer as the front end keeps it, in the form in which it is compared."""

    key: str
    """The front end's id of it."""
    asked: str
    answered: str


class CapturedAnswer(NamedTuple):
    """The turn of an answer."""

    turn: Turn
    edited: bool
    """The front end keeps other words than were served: its user edited them."""


class CapturedChat:
    """The captured turns of one chat.

    Args:
        store: Has the turns.
        chat: The front end's id of the chat.
        user: Whose chat it is; turns of others are never taken. None: not known, so only turns without a user.
    """

    def __init__(self, store: Store, chat: str, user: str | None) -> None:
        self._turns: list[tuple[str, str, Turn]] = []
        """Question, answer and turn, in the order of their requests."""
        for turn in store.rows(Turn, conversation=chat, limit=MOST) if chat else ():
            if turn.source != "gateway" or turn.automated in BESIDE or turn.user not in (user, None):
                continue
            asked, answered = asked_in(turn.messages), answered_in(turn.answer)
            if answered:
                self._turns.append((asked, answered, turn))

    def __bool__(self) -> bool:
        return bool(self._turns)

    def match(self, answers: Sequence[ChatAnswer]) -> dict[str, CapturedAnswer]:
        """The turns of the answers of a chat.

        Each turn is taken once. The same question with the same answer, given twice, is two turns in order. Next come
        answers whose question differs, as with retrieved text around it, if only one turn may be meant. At last, an
        answer in other words to a question with one turn left is that turn, edited.

        Args:
            answers: In the order of the chat.

        Returns:
            The key of each captured answer -> its turn.
        """
        found: dict[str, CapturedAnswer] = {}
        left = list(self._turns)
        for same, edited in ((_both, False), (_answer, False), (_question, True)):
            unique = same is not _both
            open_ = [one for one in answers if one.key not in found]
            for one in open_:
                turns = [row for row in left if same(row, one)]
                if not turns or (unique and len(turns) > 1):
                    continue
                if edited and sum(other.asked == one.asked for other in open_) > 1:
                    continue  # which of them was edited cannot be said
                found[one.key] = CapturedAnswer(turns[0][2], edited)
                left.remove(turns[0])
        return found


_Row = tuple[str, str, Turn]


def _both(row: _Row, one: ChatAnswer) -> bool:
    return row[:2] == (one.asked, one.answered)


def _answer(row: _Row, one: ChatAnswer) -> bool:
    return row[1] == one.answered


def _question(row: _Row, one: ChatAnswer) -> bool:
    return row[0] == one.asked


def answered_in(answer: Json) -> str:
    """The compared form of an answer: its text without white space."""
    return squeezed(text_of(answer.get("content")))


def asked_in(messages: Iterable[Json]) -> str:
    """The compared form of a question: the user's newest message, without retrieved text and white space."""
    questions = [message for message in messages if message.get("role") == "user"]
    return squeezed(user_words(text_of(questions[-1].get("content")))[0]) if questions else ""
