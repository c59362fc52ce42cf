"""What a run trains on: interactions as token ids, and those that were left out with their reasons.

Plain data; how it comes about is `examples`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from afterword.learn.loss.token_batch import UNKNOWN, AnswerInfo
from afterword.learn.parts.contexts import Context
from afterword.records import Interaction, Turn


@dataclass(frozen=True, slots=True)
class Example:
    """An interaction with the turn it is about."""

    interaction: Interaction
    turn: Turn


@dataclass(frozen=True, slots=True)
class Encoded:
    """An interaction as ids."""

    interaction: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    teacher_prompts: dict[Context, tuple[int, ...]]
    """The prompt of each context that the recipe's terms use. By the context itself: two may share a name."""
    privileged: bool | frozenset[Context]
    """The contexts that hold something for the teacher which the student does not read; True is all, False none."""
    weight: float
    on_policy: bool
    cut: int
    """Hindsight tokens that did not fit."""
    answer: AnswerInfo = UNKNOWN
    served: tuple[float, ...] = ()
    """Log-probability of each completion id at sampling, NaN where it is unknown; empty: all unknown."""
    private: tuple[int, ...] = ()
    """Places of completion ids that write private data: they count in no loss."""
    changed: tuple[int, ...] = ()
    """Places of completion ids that the user changed or removed."""

    @property
    def longest_prompt(self) -> int:
        """Ids of the longest that either side reads before the answer."""
        return max(map(len, (self.prompt, *self.teacher_prompts.values())))

    def reads(self, context: Context) -> tuple[int, ...]:
        """The prompt under a context; the student's own for one that shows nothing."""
        return self.teacher_prompts[context] if context.privileged else self.prompt


@dataclass(frozen=True, slots=True)
class Left:
    """An interaction that is not trained. `reason` is a short code that is counted."""

    interaction: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is trained and what is not."""

    rows: tuple[Encoded, ...]
    left: tuple[Left, ...]
    used: tuple[Example, ...] = field(repr=False)
    """The examples behind `rows`, in the same order."""
    limit: int
    """Most tokens of a prompt and its answer that every model of the run reads."""

    @property
    def reasons(self) -> dict[str, int]:
        """How many were left out, by reason."""
        return dict(Counter(one.reason for one in self.left))
