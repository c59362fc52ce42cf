"""The objective: a sum of terms, each (sum of weight x loss) over that term's own count.

A term names what the teacher reads, whose weights score, how the distance is taken and how tokens are
averaged. Counts are taken over the whole optimiser batch before it is split, so that neither micro-batches nor
accumulation change the result (`learning.md`, property 7). This module never runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afterword.learn.contexts import Context
from afterword.learn.divergences import Estimator
from afterword.learn.loss_stage import Scores
from afterword.learn.rows import Rows
from afterword.learn.supports import FULL, Support
from afterword.learn.targets import IDENTITY, Target
from afterword.learn.teachers import Teacher
from afterword.learn.weights import PER_SEQUENCE, Average, InteractionWeight, Weight, chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One summand of the objective."""

    name: str
    """For metrics; nothing depends on it."""
    estimator: Estimator
    teacher: Teacher | None
    """None for estimators that read only the served ids."""
    context: Context
    """What the teacher reads."""
    target: Target = IDENTITY
    """What is distilled instead of the teacher as it is."""
    support: Support = FULL
    """The tokens of the vocabulary that are compared."""
    average: Average = PER_SEQUENCE
    weights: tuple[Weight, ...] = (InteractionWeight(),)
    skip_first: int = 0
    """Tokens at the start of each answer that do not count."""
    clip: float | None = None
    """Most that one token's loss can be, after the sum over the vocabulary (a clipped token has no gradient)."""
    scale: float = 1.0
    """Factor of the term in the objective."""

    def keep(self, rows: Rows) -> Tensor:
        """[N] True for tokens that count: a term with hindsight leaves out answers that have none."""
        keep = rows.position >= self.skip_first
        return keep & rows.privileged[rows.row] if self.context.privileged else keep

    def count(self, rows: Rows) -> float:
        """The divisor for a whole optimiser batch."""
        return self.average.count(self.keep(rows), rows)

    def value(self, scores: Scores, rows: Rows, count: float) -> Tensor:
        """This term's part of the objective, from some rows of a batch whose count is `count`; 0 when it is 0."""
        keep = self.keep(rows)
        loss = scores.loss if self.clip is None else scores.loss.clamp(max=self.clip)
        factors = self.average.share(keep, rows).to(loss.dtype) * chain(self.weights, scores, rows).detach()
        # A token that does not count must not count even when its loss is not finite.
        loss = torch.where(keep & (factors != 0), loss, torch.zeros_like(loss))
        return self.scale * (factors * loss).sum() / max(count, 1.0)


def objective(terms: Sequence[Term], scores: Sequence[Scores], rows: Rows, counts: Sequence[float]) -> Tensor:
    """Sum of all terms over some rows of a batch (a scalar with a gradient)."""
    values = [t.value(s, rows, n) for t, s, n in zip(terms, scores, counts, strict=True)]
    return torch.stack(values).sum()
