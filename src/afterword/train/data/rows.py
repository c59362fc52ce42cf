"""Holds an interaction as token ids: the inputs of the student and of each teacher, and the scored spans.

Built by `examples`; a row is data alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from afterword.learn.loss.token_batch import UNKNOWN, AnswerInfo
from afterword.learn.parts.contexts import CONTEXTS, Context

NONE = CONTEXTS["none"]
"""The context under which the student reads a row."""
Between = tuple[tuple[int, tuple[int, ...]], ...]
"""Ids that are read and not scored, each with the position in the completion before which they stand."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An interaction as token ids."""

    interaction: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    """All scored ids; with `between` they are several spans."""
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
    """Positions of completion ids that write private data: masked in every loss."""
    changed: tuple[int, ...] = ()
    """Positions of completion ids that the user changed or removed."""
    between: Between = ()
    """What the student reads between the scored spans: the turns of an episode that are no answers, ascending."""
    teacher_between: dict[Context, Between] = field(default_factory=dict)
    """The same under the contexts where a teacher reads something else there, before the same positions."""

    credit: tuple[tuple[Hashable, tuple[float, ...]], ...] = ()
    """Rule of credit -> advantage of each completion id, for turns of episodes."""
    also: tuple[str, ...] = ()
    """Interactions of the earlier spans, for a row of several turns."""
    group: Hashable = None
    """Whose rewards and measures are compared; None: answers to the same prompt."""
    to: tuple[int, ...] | None = None
    """The prompt whose answers are compared, where the row's own goes on with the beginning of an answer."""

    @property
    def interactions(self) -> tuple[str, ...]:
        """Every interaction that the row trains."""
        return (*self.also, self.interaction)

    @property
    def asked(self) -> tuple[int, ...]:
        """The prompt whose answers are a group."""
        return self.before if self.to is None else self.to

    @property
    def longest_prompt(self) -> int:
        """Ids of the longest that either side reads beside the scored ones."""
        return max(sum(map(len, self.parts(where)[::2])) for where in (NONE, *self.teacher_prompts))

    def reads(self, context: Context) -> tuple[int, ...]:
        """The prompt under a context; the student's own for one that shows nothing."""
        return self.teacher_prompts[context] if context.privileged else self.prompt

    def parts(self, context: Context) -> tuple[tuple[int, ...], ...]:
        """The row under a context as `packing` reads it: the prompt, a scored span, ids between, the next span ..."""
        between = self.teacher_between.get(context, self.between) if context.privileged else self.between
        ends = [*self.breaks, len(self.completion)]
        spans = [self.completion[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        read = [self.reads(context), *(ids for _, ids in between)]
        return tuple(part for pair in zip(read, spans, strict=True) for part in pair)

    @property
    def before(self) -> tuple[int, ...]:
        """All that the student reads before the last scored span: the prompt of that answer."""
        return tuple(i for part in self.parts(NONE)[:-1] for i in part)

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The last scored span: the answer of the interaction itself."""
        return self.completion[self.breaks[-1] if self.between else 0 :]

    @property
    def breaks(self) -> tuple[int, ...]:
        """Positions in the completion at which another scored span begins."""
        return tuple(place for place, _ in self.between)
