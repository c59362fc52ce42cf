"""A task that a tiny random model solves now and then, without any package beyond the core."""

from __future__ import annotations

from dataclasses import dataclass

from afterword.forecast.tasks import RIGHT, TaskItem, TaskSplit


@dataclass(frozen=True)
class Evens:
    """Right is an answer whose codes have an even sum, half of a random model's; the teacher may be told anything."""

    name: str = "tiny:evens"
    max_tokens: int = 6
    always: float | None = None

    def items(self, split: TaskSplit, number: int, seed: int) -> list[TaskItem]:
        """Numbered questions."""
        first = 0 if split == "train" else 10_000
        return [
            TaskItem(f"{split}-{seed}-{i}", ({"role": "user", "content": f"Question {first + i}?"},), f"ab{i:02d}")
            for i in range(number)
        ]

    def score(self, item: TaskItem, text: str) -> float:
        """1 for an even sum."""
        return float(sum(map(ord, text)) % 2 == 0) if self.always is None else self.always

    def feedback(self, item: TaskItem, text: str) -> str:
        """Names the length."""
        return "" if self.score(item, text) >= RIGHT else f"It has {len(text)} characters."

    def follow_up(self, item: TaskItem, text: str) -> str:
        """A complaint."""
        return "" if self.score(item, text) >= RIGHT else f"No, like {item.reference}."

    def edit(self, item: TaskItem, text: str) -> str:
        """One character less."""
        return "" if self.score(item, text) >= RIGHT else text[:-1]

    def hints(self, item: TaskItem) -> str:
        """The wish."""
        return "Its codes have an even sum."


def even(turn: object, text: str) -> float:
    """The verifier of `Evens`."""
    return float(sum(map(ord, text)) % 2 == 0)
