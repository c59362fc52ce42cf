"""Composes regularising terms: towards the base, towards gold answers, or towards higher entropy.

An anchor is an ordinary term whose teacher reads the student's context.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from afterword.learn.loss.terms import Term
from afterword.learn.loss.tiles import Tile, dot
from afterword.learn.parts.contexts import CONTEXTS
from afterword.learn.parts.divergences import FORWARD_KL, Follows, NegativeLogLikelihood
from afterword.learn.parts.teachers import BASE
from afterword.learn.parts.weights import TOKEN_MEAN, ByKind

GOLD = "gold"
"""Kind of interactions that are imitated: their answers were written, not sampled, and have no hindsight."""


def kl_to_base(scale: float) -> Term:
    """KL(base||student) on the served ids, the base without hindsight."""
    return Term(name="anchor_kl", estimator=FORWARD_KL, teacher=BASE, context=CONTEXTS["none"], scale=scale)


def imitation(scale: float) -> Term:
    """Negative log-likelihood of the served ids."""
    return Term(
        name="anchor_nll",
        estimator=NegativeLogLikelihood(),
        teacher=None,
        context=CONTEXTS["none"],
        scale=scale,
    )


def gold_mix(scale: float) -> Term:
    """Negative log-likelihood of the answers of interactions of kind "gold" alone (Stable-OPD, arXiv 2604.08527)."""
    return Term(
        name="anchor_gold",
        estimator=NegativeLogLikelihood(),
        teacher=None,
        context=CONTEXTS["none"],
        route=ByKind((GOLD,)),
        scale=scale,
    )


@dataclass(frozen=True, slots=True)
class NegativeEntropy:
    """sum S log S, the negative entropy of the student (nats). Minimising it keeps the student's entropy up."""

    needs_teacher = False
    sampled = False
    distance = False
    follows = Follows.ENTROPY

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        loss = dot(tile.S, tile.s)
        return loss, (tile.s - loss[:, None]).mul_(tile.S)


def entropy_bonus(scale: float) -> Term:
    """Adds `scale` x the mean entropy of the student's tokens to the objective."""
    return Term(
        name="entropy_bonus",
        estimator=NegativeEntropy(),
        teacher=None,
        context=CONTEXTS["none"],
        reduction=TOKEN_MEAN,
        weights=(),
        scale=scale,
    )
