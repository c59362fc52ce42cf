"""Describes the answers of a pass: the weights that write them, their context, the sampling, and the selection.

A generation is data; `train.generation` draws. A recipe has one for the student and may have more; terms select answers
by origin (`ByOrigin`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

from afterword.learn.loss.token_batch import Origin
from afterword.learn.parts.contexts import CONTEXTS, Context
from afterword.learn.parts.fields import CountOrZero, Share
from afterword.learn.parts.teachers import LIVE, Teacher


class Draft(NamedTuple):
    """An answer as a filter sees it."""

    reward: float | None
    length: int
    """Tokens."""
    ended: bool
    """True when it ended by itself."""


@runtime_checkable
class AnswerFilter(Protocol):
    """Which answers of a pass are trained; the others count in no term and in no group."""

    @property
    def needs_reward(self) -> bool:
        """True when it reads the verifier's reward."""

    def __call__(self, drafts: Sequence[Draft]) -> list[bool]:
        """True for each answer that is kept, over all answers of the generation."""


@dataclass(frozen=True, slots=True)
class Right:
    """Answers with a reward above 0."""

    needs_reward = True

    def __call__(self, drafts: Sequence[Draft]) -> list[bool]:
        return [(draft.reward or 0.0) > 0 for draft in drafts]


@dataclass(frozen=True, slots=True)
class Ended:
    """Answers that ended by themselves, not at the limit of tokens."""

    needs_reward = False

    def __call__(self, drafts: Sequence[Draft]) -> list[bool]:
        return [draft.ended for draft in drafts]


@dataclass(frozen=True, slots=True)
class Longest:
    """This share of the answers, the longest ones; of equally long ones the first."""

    share: Share = 0.9
    needs_reward = False

    def __call__(self, drafts: Sequence[Draft]) -> list[bool]:
        order = sorted(range(len(drafts)), key=lambda i: (-drafts[i].length, i))
        kept = set(order[: round(self.share * len(drafts))])
        return [i in kept for i in range(len(drafts))]


When = Literal["always", "none_right", "some_right"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One way to write answers to the prompts of a run."""

    weights: Teacher = LIVE
    """Whose weights write."""
    context: Context = CONTEXTS["none"]
    """What they read; the student's own prompt by default."""
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Answers to each prompt; None is the recipe's `num_generations`."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    """0 takes the likeliest token."""
    top_p: Share = 1.0
    top_k: CountOrZero = 0
    """Most likely tokens that are drawn from; 0 is all."""
    prefix: CountOrZero = 0
    """Tokens of the served answer that the new one begins with; they are read and not scored."""
    finish: Teacher | None = None
    """Weights that write on from the middle of the answer; both halves are scored, each a span."""
    when: When = "always"
    """For which prompts, by the rewards of the recipe's first generation: all, those of which no answer is right, or
    those of which one is."""
    keep: tuple[AnswerFilter, ...] = ()
    """Filters, one after the other."""

    @property
    def origin(self) -> Origin:
        """Origin of its answers, for routes."""
        if self.finish is not None:
            return "spliced"
        if self.weights != LIVE:
            return "teacher"
        return "privileged" if self.context.privileged else "student"

    @property
    def plain(self) -> bool:
        """True when its answers are samples of the student's own distribution under `context`."""
        whole = self.temperature == 1.0 and self.top_p >= 1.0 and not self.top_k
        return self.weights == LIVE and self.finish is None and whole

    @property
    def known(self) -> bool:
        """True when the log-probabilities of its answers are those of one distribution over the whole vocabulary, so
        that an importance ratio may divide by them."""
        return self.finish is None and self.temperature > 0 and self.top_p >= 1.0 and not self.top_k

    @property
    def needs_reward(self) -> bool:
        """True when a verifier has to judge the answers before."""
        return self.when != "always" or any(one.needs_reward for one in self.keep)


STUDENT = Generation()
"""The student's own answers to its own prompts, sampled from its whole distribution."""
