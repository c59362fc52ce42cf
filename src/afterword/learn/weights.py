"""Which tokens count, and how much: masks before averaging, weights on top, averages below.

A weight maps (scores, rows) to [N] factors without a gradient; `chain` multiplies several. An average says
what one term's losses are divided by, so that the result does not depend on how a batch was split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from afterword.learn.loss_stage import Scores
from afterword.learn.rows import Rows


class Weight(Protocol):
    """Factors for the tokens of a batch; needs only rows of the same answer, never other answers."""

    def __call__(self, scores: Scores, rows: Rows) -> Tensor:
        """[N] factors, no gradient."""


@dataclass(frozen=True, slots=True)
class InteractionWeight:
    """The strength of the interaction that a token belongs to. In the numerator only: half the strength, half
    the step."""

    def __call__(self, scores: Scores, rows: Rows) -> Tensor:
        return rows.weight[rows.row]


def chain(weights: Sequence[Weight], scores: Scores, rows: Rows) -> Tensor:
    """[N] product of all factors, ones for an empty chain."""
    factors = torch.ones_like(scores.entropy_student)
    for weight in weights:
        factors = factors * weight(scores, rows).to(factors.dtype)
    return factors


class Average(Protocol):
    """What the losses of a term are divided by."""

    def share(self, keep: Tensor, rows: Rows) -> Tensor:
        """[N] share of each kept token; `keep` [N] is True for tokens that count."""

    def count(self, keep: Tensor, rows: Rows) -> float:
        """The divisor: the sum of all shares of a whole batch."""


@dataclass(frozen=True, slots=True)
class PerSequence:
    """Every answer counts the same: one decisive first token is not lost in a mean over long answers."""

    def share(self, keep: Tensor, rows: Rows) -> Tensor:
        kept = torch.zeros(len(rows.length), device=keep.device).index_add_(0, rows.row, keep.float())
        return keep.float() / kept.clamp(min=1)[rows.row]

    def count(self, keep: Tensor, rows: Rows) -> float:
        return float(len(torch.unique(rows.row[keep])))


PER_SEQUENCE = PerSequence()


@dataclass(frozen=True, slots=True)
class PerToken:
    """Every token counts the same, so long answers count more."""

    def share(self, keep: Tensor, rows: Rows) -> Tensor:
        return keep.float()

    def count(self, keep: Tensor, rows: Rows) -> float:
        return float(keep.sum())
