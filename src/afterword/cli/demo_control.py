"""Questions of the demo that have nothing to do with the persona's wish: are they answered as rightly as before?

Owns which questions and when an answer is right; the facts are those of the suite `forgetting`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from afterword.evaluate.data import built_in
from afterword.records import Json
from afterword.simulate import ServedAnswer, TaskPrompt

CONTROLS = 16
QUICK_CONTROLS = 2


@dataclass(frozen=True, slots=True)
class Control:
    """One question about a fact, with its answers before and after."""

    question: str
    expected: str
    """Words that a right answer contains."""
    before: str
    after: str

    def right(self, side: str) -> bool:
        """Does the answer `before` or `after` contain the expected words?"""
        said = _words(self.before if side == "before" else self.after)
        return f" {_words(self.expected).strip()} " in said

    def to_dict(self) -> Json:
        """For `report.json`."""
        return {
            "question": self.question, "expected": self.expected, "before": self.before, "after": self.after,
            "right_before": self.right("before"), "right_after": self.right("after"),
        }  # fmt: skip


def control_questions(count: int = CONTROLS) -> list[tuple[TaskPrompt, str]]:
    """`count` of the built-in questions of general knowledge, evenly spread, each with its right answer.

    A question whose own words contain the answer is not taken.
    """
    rows = [
        (TaskPrompt("control", row["question"]), str(row["options"][0]))
        for row in built_in("choices")
        if f" {_words(row['options'][0]).strip()} " not in _words(row["question"])
    ]
    return rows[:: max(1, len(rows) // count)][:count]


def controls(
    questions: Sequence[tuple[TaskPrompt, str]], before: Sequence[ServedAnswer], after: Sequence[ServedAnswer]
) -> list[Control]:
    """The questions with both answers."""
    return [
        Control(asked.text, expected, one.text, two.text)
        for (asked, expected), one, two in zip(questions, before, after, strict=True)
    ]


def shown(rows: Sequence[Json]) -> Json | None:
    """The example for a person: one that was right before, and after it too where there is one. None without any."""
    ranked = sorted(rows, key=lambda row: (not row["right_before"], not row["right_after"]))
    return ranked[0] if ranked else None


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"\w+", text.lower())) + " "
