"""Which interaction goes to which term: a route is a test of what is known of an answer.

What a route leaves out counts in neither the numerator nor the denominator of its term. A route reads the kind of
feedback, its reward or the task; never the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from afterword.learn.loss.token_batch import Answer


@runtime_checkable
class Route(Protocol):
    """Does this answer belong to the term?"""

    def __call__(self, answer: Answer) -> bool:
        """True when it does."""


@dataclass(frozen=True, slots=True)
class Everything:
    """All answers."""

    def __call__(self, answer: Answer) -> bool:
        return True


EVERYTHING = Everything()


@dataclass(frozen=True, slots=True)
class ByKind:
    """Answers whose feedback is of one of these kinds (`follow_up`, `edited`, `tests` ...)."""

    kinds: tuple[str, ...]

    def __call__(self, answer: Answer) -> bool:
        return answer.kind in self.kinds


@dataclass(frozen=True, slots=True)
class NotKind:
    """Answers whose feedback is of any other kind."""

    kinds: tuple[str, ...]

    def __call__(self, answer: Answer) -> bool:
        return answer.kind not in self.kinds


@dataclass(frozen=True, slots=True)
class ByCorrectness:
    """Answers that were judged right (reward above 0), or those judged wrong (0, as verifiers say it, or below). What
    nobody judged is neither."""

    correct: bool

    def __call__(self, answer: Answer) -> bool:
        return answer.reward is not None and (answer.reward > 0 if self.correct else answer.reward <= 0)


@dataclass(frozen=True, slots=True)
class ByTask:
    """Answers of one of these tasks (`code`, `support` ...); None is "no task"."""

    tasks: tuple[str | None, ...]

    def __call__(self, answer: Answer) -> bool:
        return answer.task in self.tasks
