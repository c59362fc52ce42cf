"""Finds the turn that a request continues: recent turns in memory, older ones in the store.

Shared by the gateway and the import of traces. `matching` has the rules, `trail` the fingerprints. Never writes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

from afterword.chat.trail import newest_question
from afterword.records import Json, Turn
from afterword.store import Store

T = TypeVar("T")


class RecentTurns(Generic[T]):
    """Turns by id and by the fingerprint of their newest answer; beyond `size` the oldest is dropped."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._turns: OrderedDict[str, tuple[str, T]] = OrderedDict()
        self._answers: dict[str, dict[str, T]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._turns

    def add(self, name: str, answer: str, turn: T) -> T | None:
        """Adds a turn.

        Args:
            name: Its id.
            answer: Fingerprint of its answer.
            turn: The value to return for it.

        Returns:
            The turn that was dropped for it; None without one.
        """
        self.drop(name)
        self._turns[name] = (answer, turn)
        self._answers.setdefault(answer, {})[name] = turn
        return self.drop(next(iter(self._turns))) if len(self._turns) > self._size else None

    def drop(self, name: str) -> T | None:
        """Removes a turn and returns it, None for an unknown one."""
        answer, turn = self._turns.pop(name, (None, None))
        if answer is not None:
            same = self._answers[answer]
            del same[name]
            if not same:
                del self._answers[answer]
        return turn

    def get(self, name: str) -> T | None:
        """The turn with this id, None for an unknown one."""
        return self._turns.get(name, (None, None))[1]

    def answered(self, answer: str) -> list[T]:
        """Turns with this fingerprint of the answer, oldest first."""
        return list(self._answers.get(answer, {}).values())


def stored_questions(store: Store, turns: Sequence[str]) -> dict[str, str]:
    """Returns turn id -> its newest question; turns that are not stored are missing."""
    return {row.id: newest_question(row.messages) for _, row in store.among(Turn, "id", turns)}


def stored_turn_of(store: Store, thread: str) -> str | None:
    """Returns the only stored turn whose whole conversation has this hash; None for none or several."""
    found = store.turns_of_thread(thread)
    return found[0] if len(found) == 1 else None


def last_answer(messages: Sequence[Json]) -> int | None:
    """Index of the last assistant message, None without one."""
    return next((i for i in range(len(messages) - 1, -1, -1) if messages[i].get("role") == "assistant"), None)
