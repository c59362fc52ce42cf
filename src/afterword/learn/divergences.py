"""Per-token losses over the whole vocabulary, each with its gradient with respect to the student's logits.

Every estimator is a small frozen object that maps a `Tile` (log-probabilities of both sides for a few tokens)
to (loss [n], gradient [n, V]). Nothing here knows of hidden states, weights or batches. Convention: T teacher,
S student; beta 0 is KL(T||S), beta 1 is KL(S||T), between them the generalised JSD (GKD, arXiv 2306.13649).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

FLOOR = -1e4
"""Log-probabilities below are read as this: a token that both sides forbid (-inf) then contributes exactly 0."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A few tokens, whole vocabulary. All tensors are float32 or wider and carry no gradient."""

    s: Tensor
    """[n, V] student log-probabilities."""
    S: Tensor
    """[n, V] student probabilities."""
    t: Tensor
    """[n, V] teacher log-probabilities; the student's own when the estimator needs no teacher."""
    T: Tensor
    """[n, V] teacher probabilities."""
    ids: Tensor
    """[n] the served token at each position."""


def tile_of(student_logits: Tensor, teacher_logits: Tensor | None, ids: Tensor) -> Tile:
    """Normalise the logits [n, V] of both sides."""
    s = torch.log_softmax(student_logits, -1).clamp_(min=FLOOR)
    S = s.exp()
    if teacher_logits is None:
        return Tile(s, S, s, S, ids)
    t = torch.log_softmax(teacher_logits, -1).clamp_(min=FLOOR)
    return Tile(s, S, t, t.exp(), ids)


class Estimator(Protocol):
    """How the distance between student and teacher is taken at each token."""

    @property
    def needs_teacher(self) -> bool:
        """False for losses that read only the served ids."""

    @property
    def sampled(self) -> bool:
        """True when the gradient is right only in expectation over the student's own samples."""

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """(loss [n], d loss / d student logits [n, V])."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row inner product of [n, V] with [n, V], without a temporary of that size."""
    return torch.bmm(a[:, None, :], b[:, :, None])[:, 0, 0]


@dataclass(frozen=True, slots=True)
class ForwardKL:
    """KL(T||S), beta = 0: covers all that the teacher would say. Gradient S - T."""

    needs_teacher = True
    sampled = False

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        return dot(tile.T, tile.t - tile.s), tile.S - tile.T


FORWARD_KL = ForwardKL()


@dataclass(frozen=True, slots=True)
class ReverseKL:
    """KL(S||T), beta = 1: sharpens what the student already says. Gradient S (log S/T - KL)."""

    needs_teacher = True
    sampled = False

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        ratio = tile.s - tile.t
        loss = dot(tile.S, ratio)
        return loss, ratio.sub_(loss[:, None]).mul_(tile.S)


@dataclass(frozen=True, slots=True)
class JSD:
    """beta KL(T||m) + (1-beta) KL(S||m) with m = beta T + (1-beta) S, 0 < beta < 1 (GKD, OPSD).

    Near agreement about beta (1-beta) KL, so it wants a larger learning rate. The ends are other estimators:
    the formula goes to 0 at both.
    """

    beta: float = 0.5
    needs_teacher = True
    sampled = False

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        b = self.beta
        m = torch.logaddexp(tile.t + math.log(b), tile.s + math.log1p(-b))
        # Where both sides agree m must be exactly their value, or rounding leaves a gradient behind.
        m = torch.where(tile.s == tile.t, tile.s, m)
        ratio = tile.s - m
        student = dot(tile.S, ratio)
        loss = b * dot(tile.T, tile.t - m) + (1 - b) * student
        return loss, ratio.sub_(student[:, None]).mul_(tile.S).mul_(1 - b)


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """-A log S(y) on the served token y, A = log T(y) - log S(y) held constant.

    Its expected gradient over samples of the student is that of KL(S||T) (arXiv 2603.12273, Lemma B.1).
    """

    needs_teacher = True
    sampled = True

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        at = tile.ids[:, None]
        s = tile.s.gather(1, at)
        advantage = tile.t.gather(1, at) - s
        gradient = tile.S * advantage
        gradient.scatter_add_(1, at, -advantage)
        return -(advantage * s)[:, 0], gradient


@dataclass(frozen=True, slots=True)
class NegativeLogLikelihood:
    """-log S(y): plain imitation of the served ids, the control that needs no teacher."""

    needs_teacher = False
    sampled = False

    def __call__(self, tile: Tile) -> tuple[Tensor, Tensor]:
        at = tile.ids[:, None]
        gradient = tile.S.clone()
        gradient.scatter_add_(1, at, torch.full_like(at, -1, dtype=gradient.dtype))
        return -tile.s.gather(1, at)[:, 0], gradient
