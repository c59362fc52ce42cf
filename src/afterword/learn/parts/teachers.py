"""Names the weights that score the served ids. A teacher is data; `train.runtime` holds and switches weights.

A self-distillation teacher is the same base with another low-rank update, never a second model in memory; only
`External` is another model. Teachers' scores carry no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from afterword.learn.parts.fields import Count, Positive, Share

_FROZEN = ("base", "start", "released", "external")


@dataclass(frozen=True, slots=True)
class Teacher:
    """Named weights; subclasses define how they change."""

    weights: str

    @property
    def key(self) -> str:
        """Key of its weights in a run and in the run's checkpoint."""
        return self.weights if type(self) is Teacher else repr(self)

    @property
    def frozen(self) -> bool:
        """True when its scores stay constant during the run, so that they are computed once."""
        return self.weights in _FROZEN

    @property
    def moving(self) -> bool:
        """True when it has state that follows the student."""
        return isinstance(self, EMA | TrustRegion | Copy)


@dataclass(frozen=True, slots=True)
class EMA(Teacher):
    """Exponential moving average of the merged update B A, starting at the student.

    After k steps (1 - rate)^k of the gap to a fixed student remains. Averages of A and B would give another update.
    """

    weights: str = "average"
    rate: Share = 0.05
    """arXiv 2601.20802 uses 0.05 and 0.01, arXiv 2601.19897 0.01."""
    rank: Count | Literal["exact"] | None = None
    """Keep the best approximation of this rank; None is four times LoRA's (an error of a thousandth). "exact" stacks
    factors until the matrix is smaller, and keeps that: more memory, and a slower teacher."""

    def bound(self, lora: int) -> int | None:
        """Rank that is kept where LoRA has rank `lora`; None is exact."""
        return None if self.rank == "exact" else 4 * lora if self.rank is None else self.rank


@dataclass(frozen=True, slots=True)
class TrustRegion(Teacher):
    """An EMA that stands still while its mean KL(start || teacher) per token of the last step exceeds `bound` nats."""

    weights: str = "trust"
    rate: Share = 0.05
    bound: Positive = 0.1


@dataclass(frozen=True, slots=True)
class Copy(Teacher):
    """The student as it was at the last multiple of `every` steps."""

    weights: str = "copy"
    every: Count = 50


@dataclass(frozen=True, slots=True)
class Released(Teacher):
    """Another adapter of the same base, by its folder."""

    weights: str = "released"
    folder: str = ""


@dataclass(frozen=True, slots=True)
class External(Teacher):
    """Another causal model that reads the same ids: same tokenizer, same vocabulary, which is checked."""

    weights: str = "external"
    model: str = ""
    """As for `afterword train --model`: the built-in name, a folder or a hub id."""
    dtype: Literal["bfloat16", "float32", "auto"] = "auto"


@dataclass(frozen=True, slots=True)
class Routed(Teacher):
    """One teacher per task; `default` for all others. All of them share the student's head, so none is External:
    for external experts give each its own term and route."""

    weights: str = "routed"
    routes: tuple[tuple[str, Teacher], ...] = ()
    default: Teacher = Teacher("start")

    @property
    def frozen(self) -> bool:
        """True when all of its teachers are."""
        return all(t.frozen for t in self.parts)

    @property
    def moving(self) -> bool:
        """Its teachers move for themselves."""
        return False

    @property
    def parts(self) -> tuple[Teacher, ...]:
        """All its teachers, the default last."""
        return (*(t for _, t in self.routes), self.default)

    def of(self, task: str | None) -> Teacher:
        """The teacher of a task."""
        return dict(self.routes).get(task or "", self.default)


LIVE = Teacher("live")
"""The student itself, detached (arXiv 2603.12273). Unstable over long runs: watch drift and entropy."""
BASE = Teacher("base")
"""The base model, adapter off (CLaaS)."""
START = Teacher("start")
"""The adapter that the run continues from, the base model for a fresh one: it keeps what was learned before."""
