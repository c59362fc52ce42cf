"""Turns and feedback as a gateway would write them under a canary: users with habits, no HTTP."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from afterword.records import Feedback, Record, Release, Turn, content_hash
from afterword.store import Store


@dataclass
class Habits:
    """What the users of one arm do, a turn: shares of accepted and edited answers."""

    accepted: float = 0.4
    edited: float = 0.2
    errors: float = 0.0
    pace: float = 0.02
    """Seconds a token."""


@dataclass
class Crowd:
    """Users who come back; each has a mood of its own, so the turns of one are not independent."""

    canary: Release
    new: Habits
    old: Habits
    served: str | None = None
    users: int = 200
    seed: int = 0
    moody: float = 0.15
    _number: int = 0
    _dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._moods = [self._dice.uniform(-self.moody, self.moody) for _ in range(self.users)]

    def talk(self, turns: int) -> list[Record]:
        """The rows of so many more turns."""
        return [row for _ in range(turns) for row in self._turn()]

    def _turn(self) -> Iterable[Record]:
        user = self._dice.randrange(self.users)
        unit = content_hash("user", None, f"u{user}")
        inside = self.canary.gets(unit)
        habits = self.new if inside else self.old
        self._number += 1
        name = f"chatcmpl-{self.seed}-{self._number:06d}"
        failed = self._dice.random() < habits.errors
        yield Turn(
            id=name,
            messages=({"role": "user", "content": "Hi"},),
            answer={"role": "assistant", "content": "Hello."},
            completion_ids=tuple(range(10)),
            finish_reason="error" if failed else "stop",
            user=f"u{user}",
            unit=unit,
            canary=self.canary.id,
            adapter=self.canary.adapter if inside else self.served,
            seconds=10 * habits.pace * self._dice.uniform(0.8, 1.25),
        )
        draw = self._dice.random() + self._moods[user]
        if failed:
            return
        if draw < habits.accepted:
            yield Feedback(id=f"fb-{name}", turn=name, kind="accepted")
        elif draw > 1 - habits.edited:
            yield Feedback(id=f"fb-{name}", turn=name, kind="retried")


def settle(store: Store, rows: list[Record], size: int = 200) -> None:
    """Write rows in groups."""
    for start in range(0, len(rows), size):
        store.write(*rows[start : start + size])
